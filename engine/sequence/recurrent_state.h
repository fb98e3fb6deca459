#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/sequence/float_rows.h"
#include "kernels/base/aligned_buffer.h"

namespace foretoken {

/// Where the sequence stands in the two slots that take turns: of the host's states and of a device's.
struct SlotTurn {
  int old_slot = 0;
  int kept = 0;    // rows of slot old that belong to the sequence
  int replay = 0;  // of them, how many, the last ones, the state still lacks

  /// The running pass is over: slot new becomes slot old, its first `num_kept` rows belong to the sequence. `in_slot`
  /// is false for a prompt chunk, whose rows are all in state and history already.
  void commit(int num_kept, bool in_slot) {
    old_slot = 1 - old_slot;
    kept = in_slot ? num_kept : 0;
    replay = in_slot ? num_kept - 1 : 0;
  }
  void reset() { kept = replay = 0; }
};

/// What the delta-net layers remember of a sequence, without snapshots.
///
/// A pass over a window applies only its first row to the state (that row is always kept) and leaves the inputs of all
/// its rows in a slot; the next pass first replays the rows that were kept, [1, kept), in the same arithmetic, while it
/// has the state in cache anyway. A pass over more rows than a window (a prompt chunk) is always kept whole and applies
/// all of them.
///
///   state      rows [0, length - replay)
///   slot old   rows [length - kept, length): of them the last `replay` are not yet in the state
///   slot new   rows of the running pass
///
/// INVARIANTS: 1. history of a layer holds the conv_taps - 1 raw rows before slot old (zeros before the start).
///             2. the running pass moves them forward by `kept` rows, layer by layer, before it reads them.
class RecurrentState {
 public:
  RecurrentState() = default;
  RecurrentState(const ModelConfig& config, int max_window);

  /// What one layer keeps of the rows of a window.
  struct Slot {
    FloatRows raw;    // [max_window, conv_channels] before the convolution
    FloatRows mixed;  // [max_window, conv_channels] after convolution, SiLU and normalisation: q, k, v
    FloatRows beta;   // [max_window, num_value_heads]
    FloatRows decay;  // [max_window, num_value_heads]
  };
  struct Layer {
    AlignedBuffer state;  // float [num_value_heads][state_size (key)][state_size (value)]
    FloatRows history;    // [conv_taps - 1, conv_channels], oldest first
    std::array<Slot, 2> slots;
  };

  [[nodiscard]] Layer& layer(int recurrent_idx) { return layers_[static_cast<size_t>(recurrent_idx)]; }
  [[nodiscard]] const Slot& old_slot(const Layer& layer) const {
    return layer.slots[static_cast<size_t>(turn_.old_slot)];
  }
  [[nodiscard]] Slot& new_slot(Layer& layer) { return layer.slots[static_cast<size_t>(1 - turn_.old_slot)]; }

  [[nodiscard]] int kept() const { return turn_.kept; }
  [[nodiscard]] int replay() const { return turn_.replay; }

  /// The running pass is over; see SlotTurn.
  void commit(int kept, bool in_slot) { turn_.commit(kept, in_slot); }
  void reset();
  [[nodiscard]] size_t size_bytes() const;

 private:
  std::vector<Layer> layers_;
  SlotTurn turn_;
};

}  // namespace foretoken
