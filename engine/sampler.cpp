#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/math.h"
#include "kernels/select/gumbel.h"
#include "kernels/select/softmax.h"

namespace foretoken {

namespace {

using gumbel::kNoiseBits;
using gumbel::noise_bits;
using gumbel::noise_from_bits;
using gumbel::stream_start;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// noise_from_bits(bits) is no larger: -log(u) >= v >= 2^(width - 1 - 40), width being that of bits.
float noise_bound(uint64_t bits) {
  constexpr float kLn2 = 0.693148f;  // rounded up
  return static_cast<float>(kNoiseBits + 1 - std::bit_width(bits)) * kLn2;
}
constexpr float kLargestNoise = 28.5f;  // above noise_bound(0)

// argmax of x + noise over what is offered. Nearly every id is dismissed by the bound, without a logarithm.
class Choice {
 public:
  Choice(uint64_t seed, int64_t position) : start_(stream_start(seed, position)) {}

  void offer(float x, TokenId id) {
    const uint64_t bits = noise_bits(start_, id);
    if (!cannot_win(x, noise_bound(bits))) offer(x, id, bits);
  }

  // offer() for n neighbouring ids none of whose x is above `largest`.
  void offer_block(const float* x, TokenId first_id, int64_t n, float largest) {
    if (cannot_win(largest, kLargestNoise)) return;
    // Bits at and above a power of two cannot win: the largest such power, found once, leaves one comparison an id.
    int width = kNoiseBits;
    while (width > 0 && cannot_win(largest, noise_bound(uint64_t{1} << (width - 1)))) --width;
    const uint64_t limit = uint64_t{1} << width;
    for (int64_t i = 0; i < n; ++i) {
      const TokenId id = first_id + static_cast<TokenId>(i);
      const uint64_t bits = noise_bits(start_, id);
      if (bits < limit && !cannot_win(x[i], noise_bound(bits))) offer(x[i], id, bits);
    }
  }

  TokenId best_id() const { return best_id_; }

 private:
  void offer(float x, TokenId id, uint64_t bits) {
    const float score = x + noise_from_bits(bits);
    if (score > best_score_ || (score == best_score_ && id < best_id_)) {
      best_score_ = score;
      best_id_ = id;
    }
  }

  // True only if x + noise rounded to float is below the best score for every noise up to the bound. Rounding of x +
  // noise and of the logarithms is below 2^-22 of the larger magnitude; past -10^6 (and at -infinity) no score was ever
  // near.
  bool cannot_win(float x, float bound) const {
    const float rounding = 1e-3f + 1e-6f * std::min(-x, 1e6f);
    return x + bound + rounding < best_score_;
  }

  uint64_t start_;
  float best_score_ = -kInfinity;
  TokenId best_id_ = std::numeric_limits<TokenId>::max();
};

// The scaled logits of one choice.
struct Scaled {
  static constexpr int64_t kBlock = 64;
  std::vector<float> x;          // [vocab] (logit - largest logit) / temperature, in [-inf, 0]
  std::vector<float> block_max;  // of each kBlock of x

  int64_t size() const { return static_cast<int64_t>(x.size()); }

  // Calls visit(ids begin, end) for the blocks that hold an x above `above()`, which may rise on the way.
  template <class Above, class Visit>
  void for_blocks_above(const Above& above, const Visit& visit) const {
    for (int64_t begin = 0; begin < size(); begin += kBlock) {
      if (block_max[begin / kBlock] > above()) visit(begin, std::min(begin + kBlock, size()));
    }
  }
};

// What the filters have kept so far, in rising id.
struct Kept {
  std::vector<float> x;
  std::vector<TokenId> ids;

  void clear() {
    x.clear();
    ids.clear();
  }
  void add(float value, int64_t id) {
    x.push_back(value);
    ids.push_back(static_cast<TokenId>(id));
  }
  // Keeps entry i if stays(i).
  template <class Stays>
  void filter(const Stays& stays) {
    size_t n = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!stays(i)) continue;
      x[n] = x[i];
      ids[n] = ids[i];
      ++n;
    }
    x.resize(n);
    ids.resize(n);
  }
};

void scale_logits(const float* logits, int64_t n, float largest, float temperature, Scaled& scaled) {
  scaled.x.resize(n);
  scaled.block_max.clear();
  for (int64_t begin = 0; begin < n; begin += Scaled::kBlock) {
    float* const x = scaled.x.data() + begin;
    const int64_t count = std::min(Scaled::kBlock, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      const float value = (logits[begin + i] - largest) / temperature;
      x[i] = value <= 0.0f ? value : -kInfinity;  // NaN
    }
    constexpr int kLanes = 8;  // a single running maximum would be a chain that the compiler may not split
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, -kInfinity);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
    for (; i < count; ++i) lanes[0] = std::max(lanes[0], x[i]);
    scaled.block_max.push_back(*std::max_element(lanes, lanes + kLanes));
  }
}

TokenId choose_from_all(const Scaled& scaled, TokenId largest_id, Choice choice) {
  choice.offer(0.0f, largest_id);  // a good score at once lets the bound dismiss more
  for (int64_t begin = 0; begin < scaled.size(); begin += Scaled::kBlock) {
    choice.offer_block(scaled.x.data() + begin, static_cast<TokenId>(begin),
                       std::min(Scaled::kBlock, scaled.size() - begin), scaled.block_max[begin / Scaled::kBlock]);
  }
  return choice.best_id();
}

// Ids with x > `above`.
void collect_above(const Scaled& scaled, float above, Kept& kept) {
  scaled.for_blocks_above([=] { return above; },
                          [&](int64_t begin, int64_t end) {
                            for (int64_t i = begin; i < end; ++i) {
                              const float x = scaled.x[i];
                              if (x > above) kept.add(x, i);
                            }
                          });
}

// The ids of the k largest x, the lower id of equals. Gathers values that beat the k-th largest so far and halves the
// heap of them when it is full; most of a vocabulary fails the first comparison of its block.
void collect_top_k(const Scaled& scaled, size_t k, Kept& kept) {
  static thread_local std::vector<float> heap;
  heap.clear();
  const size_t capacity = 2 * k + Scaled::kBlock;
  heap.reserve(capacity);
  float kth = -kInfinity;  // a later value equal to it has a higher id than k others and is out
  const auto shrink = [&] {
    std::nth_element(heap.begin(), heap.begin() + static_cast<std::ptrdiff_t>(k) - 1, heap.end(), std::greater<>());
    heap.resize(k);
    kth = heap[k - 1];
  };
  scaled.for_blocks_above([&] { return kth; },
                          [&](int64_t begin, int64_t end) {
                            for (int64_t i = begin; i < end; ++i) {
                              const float x = scaled.x[i];
                              if (x > kth) heap.push_back(x);
                            }
                            if (heap.size() + Scaled::kBlock > capacity) shrink();
                          });
  if (heap.size() < k) return collect_above(scaled, -kInfinity, kept);  // fewer than k are finite
  shrink();
  auto equals = std::count(heap.begin(), heap.end(), kth);
  const float below = std::nextafter(kth, -kInfinity);
  scaled.for_blocks_above([=] { return below; },
                          [&](int64_t begin, int64_t end) {
                            for (int64_t i = begin; i < end; ++i) {
                              const float x = scaled.x[i];
                              if (x > kth || (x == kth && equals-- > 0)) kept.add(x, i);
                            }
                          });
}

// Keeps the smallest set of largest probabilities that holds top_p of the mass. Nothing is sorted but the probabilities
// within 1/128 of the last one kept: a first pass adds the mass up by the upper half of the float (exponent and 7
// bits), which is in order. Mass is counted in units of 2^-52, so sums are exact and their order does not matter.
void keep_top_p(Isa isa, float top_p, Kept& kept) {
  static thread_local std::vector<float> p;
  static thread_local std::vector<uint64_t> mass;
  const size_t n = kept.ids.size();
  p.resize(n);
  softmax(isa, kept.x.data(), static_cast<int64_t>(n), p.data());
  const auto units = [](float probability) {
    return static_cast<uint64_t>(static_cast<int64_t>(static_cast<double>(probability) * 0x1p52));
  };
  const auto half = [](float probability) { return static_cast<size_t>(std::bit_cast<uint32_t>(probability) >> 16); };
  mass.assign(half(1.0f) + 1, 0);
  for (float probability : p) mass[half(probability)] += units(probability);
  uint64_t total = 0;
  for (uint64_t m : mass) total += m;
  const double target = static_cast<double>(top_p) * static_cast<double>(total);

  uint64_t reached = 0;
  size_t last_half = mass.size() - 1;
  while (last_half > 0 && static_cast<double>(reached + mass[last_half]) < target) reached += mass[last_half--];
  static thread_local std::vector<size_t> last;
  last.clear();
  last.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    if (half(p[i]) == last_half) last.push_back(i);
  }
  std::sort(last.begin(), last.end(), [](size_t a, size_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); });
  size_t cut = 0;
  while (cut + 1 < last.size() && static_cast<double>(reached + units(p[last[cut]])) < target)
    reached += units(p[last[cut++]]);
  const float last_p = p[last[cut]];
  kept.filter([&](size_t i) { return p[i] > last_p || (p[i] == last_p && i <= last[cut]); });
}

// Keeps the tokens whose surprise -log p is closest to the entropy, until they hold typical_p of the mass (Meister et al.,
// "Locally typical sampling"). Sums run in double and in rising id.
void keep_typical_p(Isa isa, float typical_p, Kept& kept) {
  static thread_local std::vector<float> p, distance, surprise;
  static thread_local std::vector<size_t> order;
  static thread_local std::vector<char> stays;
  const size_t n = kept.ids.size();
  for (std::vector<float>* values : {&p, &distance, &surprise}) values->resize(n);
  order.resize(n);
  stays.assign(n, 0);
  softmax(isa, kept.x.data(), static_cast<int64_t>(n), p.data());
  double entropy = 0;
  for (size_t i = 0; i < n; ++i) {
    surprise[i] = p[i] > 0 ? -math::log(p[i]) : kInfinity;
    if (p[i] > 0) entropy += static_cast<double>(p[i]) * static_cast<double>(surprise[i]);
  }
  for (size_t i = 0; i < n; ++i) {
    distance[i] = static_cast<float>(std::abs(static_cast<double>(surprise[i]) - entropy));
    order[i] = i;
  }
  std::sort(order.begin(), order.end(),
            [](size_t a, size_t b) { return distance[a] < distance[b] || (distance[a] == distance[b] && a < b); });
  double mass = 0;
  for (size_t i = 0; i < n; ++i) {
    stays[order[i]] = 1;
    mass += static_cast<double>(p[order[i]]);
    if (mass >= static_cast<double>(typical_p)) break;
  }
  kept.filter([](size_t i) { return stays[i] != 0; });
}

// Every x below it has exp(x) < min_p.
float surely_below_min_p(float min_p) {
  return math::log(std::max(min_p, std::numeric_limits<float>::min())) - 1e-3f;
}

// Keeps weights exp(x) >= min_p times the largest, which is exp(0) = 1. The exponential decides only near the edge.
void keep_min_p(float min_p, Kept& kept) {
  const float low = surely_below_min_p(min_p), high = low + 2e-3f;
  kept.filter([&](size_t i) { return kept.x[i] > high || (kept.x[i] > low && math::exp(kept.x[i]) >= min_p); });
}

}  // namespace

void SamplingOptions::check() const {
  const auto refuse = [](const char* flag, auto value, const char* range) {
    throw UsageError(fmt::format("{} {}: out of range; it takes {}", flag, value, range));
  };
  if (!(temperature >= 0) || !std::isfinite(temperature))
    refuse("--temp", temperature, "a finite number of at least 0 (0: greedy)");
  if (top_k < 0) refuse("--top-k", top_k, "0 (all tokens) or more");
  if (!(typical_p > 0 && typical_p <= 1)) refuse("--typical-p", typical_p, "more than 0 and at most 1 (1: off)");
  if (!(top_p > 0 && top_p <= 1)) refuse("--top-p", top_p, "more than 0 and at most 1 (1: off)");
  if (!(min_p >= 0 && min_p <= 1)) refuse("--min-p", min_p, "0 (off) to 1");
}

float gumbel_noise(uint64_t seed, int64_t position, TokenId id) {
  return noise_from_bits(noise_bits(stream_start(seed, position), id));
}

TokenId choose_token(Isa isa, const float* logits, int64_t vocab_size, const SamplingOptions& options,
                     int64_t position) {
  FT_CHECK(vocab_size > 0 && vocab_size <= std::numeric_limits<TokenId>::max());
  const auto largest_id = static_cast<TokenId>(argmax(isa, logits, vocab_size));
  const float largest = logits[largest_id];
  if (options.temperature == 0.0f || !std::isfinite(largest)) return largest_id;

  // Scratch that grows to the vocabulary once and stays: a few megabytes for each thread that samples.
  static thread_local Scaled scaled;
  static thread_local Kept kept;
  scale_logits(logits, vocab_size, largest, options.temperature, scaled);
  Choice choice(options.seed, position);
  const bool by_rank = options.top_k > 0 && options.top_k < vocab_size;
  const bool by_mass = options.typical_p < 1.0f || options.top_p < 1.0f;
  if (!by_rank && !by_mass && options.min_p <= 0.0f) return choose_from_all(scaled, largest_id, choice);

  kept.clear();
  if (by_rank) {
    collect_top_k(scaled, static_cast<size_t>(options.top_k), kept);
  } else {
    collect_above(scaled, by_mass ? -kInfinity : surely_below_min_p(options.min_p), kept);
  }
  if (options.typical_p < 1.0f) keep_typical_p(isa, options.typical_p, kept);
  if (options.top_p < 1.0f) keep_top_p(isa, options.top_p, kept);
  if (options.min_p > 0.0f) keep_min_p(options.min_p, kept);
  for (size_t i = 0; i < kept.ids.size(); ++i) choice.offer(kept.x[i], kept.ids[i]);
  return choice.best_id();
}

}  // namespace foretoken
