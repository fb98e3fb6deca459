#include "engine/cuda/hot_experts.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

// One use counts so many; halved every kDecayPasses passes. Guesses: no machine has measured them.
constexpr uint32_t kUse = 16;
constexpr int kDecayPasses = 64;
// Two uses more than whoever is in the entry: copying an expert costs about as much as computing it twice.
constexpr uint32_t kMargin = 2 * kUse;

}  // namespace

HotExperts::HotExperts(std::vector<int> placed, int num_experts, int entries)
    : num_experts_(num_experts), layers_(placed.size()) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    FT_CHECK(placed[l] >= 0 && placed[l] <= num_experts && entries >= 0);
    layer.placed = placed[l];
    layer.entries.resize(std::min(entries, num_experts - placed[l]));
    layer.places.assign(num_experts, -1);
    for (int e = 0; e < placed[l]; ++e) layer.places[e] = e;
    layer.uses.assign(num_experts, 0);
    layer.filling.assign(num_experts, 0);
  }
}

void HotExperts::count(int layer, int expert) {
  Layer& l = layers_[layer];
  const auto e = static_cast<size_t>(expert);
  l.uses[e] += kUse;
  ++(l.places[e] < 0 ? reads_.host : l.places[e] < l.placed ? reads_.placed : reads_.hot);
}

void HotExperts::decay() {
  if (++passes_ < kDecayPasses) return;
  passes_ = 0;
  for (Layer& layer : layers_) {
    for (uint32_t& uses : layer.uses) uses /= 2;
  }
}

std::vector<HotExperts::Fill> HotExperts::choose(int most) {
  struct Wish {
    uint32_t gain;
    Fill fill;
    size_t entry;
  };
  std::vector<Wish> wishes;
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    // The least used entry against the most used expert that is in none: one a layer and pass.
    size_t victim = layer.entries.size();
    uint32_t least = 0;
    for (size_t s = 0; s < layer.entries.size(); ++s) {
      const Entry& entry = layer.entries[s];
      if (entry.filling) continue;
      const uint32_t uses = entry.expert < 0 ? 0 : layer.uses[entry.expert] + kMargin;
      if (victim < layer.entries.size() && uses >= least) continue;
      victim = s;
      least = uses;
    }
    if (victim == layer.entries.size()) continue;
    size_t wanted = 0;
    uint32_t largest = 0;
    for (size_t e = 0; e < layer.uses.size(); ++e) {
      if (layer.places[e] >= 0 || layer.filling[e] != 0 || layer.uses[e] <= largest) continue;
      wanted = e;
      largest = layer.uses[e];
    }
    if (largest <= least) continue;
    const Fill fill{static_cast<int>(i), static_cast<int>(wanted), layer.placed + static_cast<int>(victim)};
    wishes.push_back({largest - least, fill, victim});
  }
  std::stable_sort(wishes.begin(), wishes.end(), [](const Wish& a, const Wish& b) { return a.gain > b.gain; });
  if (wishes.size() > static_cast<size_t>(most)) wishes.resize(most);
  std::vector<Fill> fills;
  for (const Wish& wish : wishes) {
    Layer& layer = layers_[wish.fill.layer];
    Entry& entry = layer.entries[wish.entry];
    if (entry.expert >= 0) layer.places[entry.expert] = -1;
    entry = {-1, true};
    layer.filling[wish.fill.expert] = 1;
    fills.push_back(wish.fill);
  }
  decay();
  return fills;
}

void HotExperts::finish(const Fill& fill) {
  Layer& layer = layers_[fill.layer];
  Entry& entry = layer.entries[fill.place - layer.placed];
  FT_CHECK(entry.filling && entry.expert == -1);
  entry = {fill.expert, false};
  layer.filling[fill.expert] = 0;
  layer.places[fill.expert] = fill.place;
}

}  // namespace foretoken
