#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

/// Expert reads of a split by where they were served: one for each distinct expert of a layer in a pass.
struct ReadsByPlace {
  int64_t placed = 0;  // on the device from the start
  int64_t hot = 0;     // on the device, in an entry for hot experts
  int64_t host = 0;    // in RAM

  [[nodiscard]] int64_t total() const { return placed + hot + host; }
  /// Of the reads that the entries could have served, the share that they did.
  [[nodiscard]] double hit_rate() const {
    return hot + host == 0 ? 0.0 : static_cast<double>(hot) / static_cast<double>(hot + host);
  }
};

/// Which routed experts of a model's layers are on the device, and which of the others should be: bookkeeping alone,
/// whoever copies the weights.
///
///   places of a layer  [0, placed)               the experts [0, placed), for ever
///                      [placed, placed + entries)  hot experts, the most used of the rest
///
/// Uses are counted with a decay, so that a text that turns to other things gets other experts. An entry is given away to
/// an expert that was clearly more used; while its weights are on their way nobody is in it.
///
/// INVARIANT: places(l)[e] is what a pass may rely on until choose() or finish() is called: between passes.
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
    std::vector<int32_t> places;   // [num_experts]
    std::vector<uint32_t> uses;    // [num_experts] decayed
    std::vector<uint8_t> filling;  // [num_experts]
  };
  [[nodiscard]] const Layer& at(int layer) const { return layers_[layer]; }
  void decay();

  const int num_experts_;
  std::vector<Layer> layers_;
  ReadsByPlace reads_;
  int passes_ = 0;  // since the last decay
};

}  // namespace foretoken
