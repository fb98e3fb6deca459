#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/weights.h"
#include "engine/sequence/float_rows.h"
#include "engine/sequence/sequence_state.h"
#include "kernels/base/aligned_buffer.h"

namespace foretoken {

/// What the delta-net layers remember of each sequence, without snapshots.
///
/// A pass over a window applies only its first row to the state (that row is always kept) and leaves the inputs of all
/// its rows in a bank; the next pass first replays the rows that were kept, [1, kept), in the same arithmetic, while it
/// has the state in cache anyway. A pass over a prompt chunk is always kept whole and applies all of its rows.
///
///   state      rows [0, length - replay)
///   bank old   rows [length - kept, length): of them the last `replay` are not yet in the state
///   bank new   rows of the running pass
///
/// INVARIANTS: 1. history of a layer holds the conv_taps - 1 raw rows before bank old (zeros before the start).
///             2. the running pass moves them forward by `kept` rows, layer by layer, before it reads them.
class RecurrentState {
 public:
  RecurrentState() = default;
  RecurrentState(std::span<const DeltaNetShape> layers, int max_window, int num_sequences);

  /// What one layer keeps of the rows of a window.
  struct Bank {
    FloatRows raw;    // [max_window, conv_channels] before the convolution
    FloatRows mixed;  // [max_window, conv_channels] after convolution, SiLU and normalisation: q, k, v
    FloatRows beta;   // [max_window, num_value_heads]
    FloatRows decay;  // [max_window, num_value_heads]
  };
  /// Of one sequence in one layer.
  struct Layer {
    DeltaNetShape shape;
    AlignedBuffer state;  // float [num_value_heads][state_size (key)][state_size (value)]
    FloatRows history;    // [conv_taps - 1, conv_channels], oldest first
    std::array<Bank, 2> banks;

    [[nodiscard]] const Bank& old_bank(const BankTurn& turn) const { return banks[turn.old_bank]; }
    [[nodiscard]] Bank& new_bank(const BankTurn& turn) { return banks[1 - turn.old_bank]; }
  };

  [[nodiscard]] int num_layers() const { return num_layers_; }
  [[nodiscard]] Layer& layer(int recurrent_idx, int sequence_slot) {
    return layers_[sequence_slot * num_layers_ + recurrent_idx];
  }

  /// The sequence in this slot starts anew.
  void reset(int sequence_slot);
  /// States and histories of one sequence with nothing to replay, layer after layer.
  [[nodiscard]] size_t state_bytes() const;
  void read(int sequence_slot, std::span<std::byte> to);
  void write(int sequence_slot, std::span<const std::byte> from);
  [[nodiscard]] size_t size_bytes() const;

 private:
  int num_layers_ = 0;
  std::vector<Layer> layers_;  // [sequences][num_layers]
};

}  // namespace foretoken
