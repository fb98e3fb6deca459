#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/fetch_list.h"

namespace foretoken {

/// Expert reads of a split by where they were served: one for each distinct expert of a layer in a pass.
struct ReadsByPlace {
  int64_t placed = 0;   // on the device from the start
  int64_t hot = 0;      // on the device, in an entry for hot experts
  int64_t fetched = 0;  // on the device, which read it over the bus for this pass
  int64_t host = 0;     // in RAM

  [[nodiscard]] int64_t total() const { return placed + hot + fetched + host; }
  /// Of the reads that the entries could have served, the share that they did.
  [[nodiscard]] double hit_rate() const {
    const int64_t all = hot + fetched + host;
    return all == 0 ? 0.0 : static_cast<double>(hot) / static_cast<double>(all);
  }
};

/// Which routed experts of a model's layers are on the device, and which of the others should be: bookkeeping alone,
/// whoever copies the weights.
///
///   places of a layer  [0, placed)               the experts [0, placed), for ever
///                      [placed, placed + entries)  hot experts, the most used of the rest
///
/// Who comes to an entry, and when, is decided in one of two ways:
///   fetching  the device reads experts that a pass misses itself, in the midst of the pass, into the entries that rank lowest
///             (candidates(), fetch()): by uses, of which one counts 5% less with each pass that came later;
///   filling   a thread sends experts beside the passes (choose(), finish()). Uses are counted with a decay, so that a text
///             that turns to other things gets other experts. An entry is given away to an expert that was clearly more used;
///             while its weights are on their way nobody is in it.
///
/// INVARIANT: places(l)[e] is what a pass may rely on until choose() or finish() is called, between passes, or the layer's
/// fetch() in it.
class HotExperts {
 public:
  /// placed[l] experts of layer l are on the device; layers where these are not all have `entries` more (fewer where
  /// fewer are left).
  HotExperts(std::vector<int> placed, int num_experts, int entries);

  [[nodiscard]] int num_layers() const { return static_cast<int>(layers_.size()); }
  [[nodiscard]] int placed(int layer) const { return at(layer).placed; }
  /// Experts that the device has room for.
  [[nodiscard]] int capacity(int layer) const { return at(layer).placed + static_cast<int>(at(layer).entries.size()); }
  /// Some expert of the layer may be in RAM alone.
  [[nodiscard]] bool is_split(int layer) const { return at(layer).placed < num_experts_; }
  /// [num_experts] where each expert is on the device, or -1.
  [[nodiscard]] std::span<const int32_t> places(int layer) const { return at(layer).places; }

  /// The expert served some row of a pass.
  void count(int layer, int expert);
  [[nodiscard]] const ReadsByPlace& reads() const { return reads_; }

  /// The entries of a layer that rank lowest, for at most `most` experts of the next pass.
  [[nodiscard]] cuda::FetchCandidates candidates(int layer, int most) const;
  /// A pass uses these experts, rising and each once, and was told these candidates: those that come are in their places
  /// from now on. Returns how many. REQUIRES: they were counted.
  int fetch(int layer, std::span<const int32_t> used, const cuda::FetchCandidates& candidates);

  struct Fill {
    int layer = 0;
    int expert = 0;
    int place = 0;
  };
  /// At most `most` experts that should come to the device now, the most worthwhile first. Whoever was in their places
  /// is so no longer.
  [[nodiscard]] std::vector<Fill> choose(int most);
  /// The weights of `fill` have arrived.
  void finish(const Fill& fill);

 private:
  struct Entry {
    int32_t expert = -1;  // nobody
    bool filling = false;
  };
  struct Layer {
    int placed = 0;
    std::vector<Entry> entries;
    std::vector<int32_t> places;      // [num_experts]
    std::vector<uint32_t> uses;       // [num_experts] decayed
    std::vector<uint8_t> filling;     // [num_experts]
    std::vector<double> recent_uses;  // [num_experts] as candidates() ranks them
    double use_weight = 1;            // of a use in the running pass: it grows, instead of all others falling
  };
  [[nodiscard]] const Layer& at(int layer) const { return layers_[layer]; }
  void decay();

  const int num_experts_;
  std::vector<Layer> layers_;
  ReadsByPlace reads_;
  int passes_ = 0;  // since the last decay
};

}  // namespace foretoken
