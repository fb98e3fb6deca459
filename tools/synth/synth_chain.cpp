#include "tools/synth/synth_chain.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/error.h"
#include "tools/synth/synth_random.h"
#include "tools/synth/synth_vocabulary.h"

namespace foretoken::synth {

namespace {

constexpr int64_t kLongestCycle = 16384;
constexpr double kSlowPeriod = 30;
constexpr float kTopLogit = 20;
constexpr float kFlagWeight =
    1;  // half of what a flag adds; as large as the identity, so that every quantiser meets it exactly
constexpr float kRouterDeviation = 1.5f;  // of the router's logits
constexpr float kRouterNoise = 0.003f;    // share of it that comes from the whole row
constexpr float kHiddenShare = 0.1f;      // of the MTP layer's input that comes from the hidden state

double normal_cdf(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0));
}

// n random signs, 64 of each random number.
void fill_signs(uint64_t key, int64_t n, float* out) {
  for (int64_t begin = 0; begin < n; begin += 64) {
    const uint64_t bits = derive(key, static_cast<uint64_t>(begin / 64));
    for (int64_t i = begin; i < std::min(begin + 64, n); ++i) out[i] = sign(bits << (i - begin));
  }
}

// The x with f(x) = target, f rising over [low, high].
template <class F>
double solve(const F& f, double target, double low, double high) {
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (f(middle) < target ? low : high) = middle;
  }
  return (low + high) / 2;
}

}  // namespace

double overlap_from_correlation(double rho, double chosen_share) {
  if (chosen_share >= 1 || rho >= 1) return 1;
  const double quantile = solve(normal_cdf, 1 - chosen_share, -9, 9);
  // P(both above) = integral over z above the quantile of phi(z) P(other above | z), by the midpoint rule.
  constexpr int kSteps = 2000;
  const double step = (9 - quantile) / kSteps, rest = std::sqrt(1 - rho * rho);
  double both = 0;
  for (int i = 0; i < kSteps; ++i) {
    const double z = quantile + (i + 0.5) * step;
    both += step * std::exp(-z * z / 2) / std::sqrt(2 * M_PI) * normal_cdf((rho * z - quantile) / rest);
  }
  return both / chosen_share;
}

Cycle::Cycle(int64_t vocab_size, uint64_t seed) {
  for (TokenId id = 0; id < vocab_size && length() < kLongestCycle; ++id) {
    if (is_printable(id, vocab_size)) ids_.push_back(id);
  }
  const uint64_t order_key = derive(seed, "cycle order"), stand_in_key = derive(seed, "cycle stand-ins");
  for (size_t i = ids_.size() - 1; i > 0; --i) std::swap(ids_[i], ids_[derive(order_key, i) % (i + 1)]);
  places_.resize(vocab_size);
  for (size_t id = 0; id < places_.size(); ++id) {
    places_[id] = static_cast<int64_t>(derive(stand_in_key, id) % ids_.size());
  }
  for (size_t place = 0; place < ids_.size(); ++place) {
    places_[ids_[place]] = static_cast<int64_t>(place);
  }
}

std::vector<TokenId> Cycle::continuation(TokenId last, int64_t count) const {
  std::vector<TokenId> ids;
  for (int64_t i = 1; i <= count; ++i) ids.push_back(id_at(place_of(last) + i));
  return ids;
}

Chain::Chain(const ChainSpec& spec) : spec_(spec), cycle_(spec.vocab_size, spec.seed), slow_period_(kSlowPeriod) {
  FT_CHECK(spec.hidden_dim >= 64 && spec.hidden_dim % 32 == 0);
  content_dims_ = spec.hidden_dim - spec.hidden_dim / 4;
  slow_begin_ = content_dims_ + 2 * kFlags;
  fast_begin_ = (slow_begin_ + spec.hidden_dim) / 2;

  if (spec.num_experts > 0) {
    const double chosen = static_cast<double>(spec.experts_per_token) / spec.num_experts;
    const auto overlap = [&](double rho) { return overlap_from_correlation(rho, chosen); };
    const double rho = spec.overlap <= chosen ? 0.0 : spec.overlap >= 1 ? 1.0 : solve(overlap, spec.overlap, 0, 1);
    const double most = 1 - 1 / kSlowPeriod;
    slow_share_ = std::min(1.0, rho / most);
    if (rho > most) slow_period_ = 1 / std::max(1 - rho, 1e-9);
  }

  // Which drafts go wrong: of each 32 neighbours the same number (to one), in random places, so that short runs see the
  // rate asked for.
  constexpr int64_t kGroup = 32;
  const uint64_t wrong_key = derive(spec.seed, "wrong drafts");
  for (int flag = 0; flag < kFlags; ++flag) {
    flag_place_[flag] =
        static_cast<int64_t>(derive(wrong_key, static_cast<uint64_t>(flag)) % static_cast<uint64_t>(cycle_.length()));
  }
  flags_.assign(cycle_.length(), 0);
  for (int64_t begin = 0; begin < cycle_.length(); begin += kGroup) {
    const int64_t end = std::min(begin + kGroup, cycle_.length());
    const auto wrong_before = [&](int64_t place) {
      return std::llround(static_cast<double>(place) * (1 - spec.acceptance));
    };
    std::vector<int64_t> places(static_cast<size_t>(end - begin));
    std::iota(places.begin(), places.end(), begin);
    const auto key = [&](int64_t place) { return derive(wrong_key, static_cast<uint64_t>(place) + kFlags); };
    std::sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    for (int64_t i = 0; i < wrong_before(end) - wrong_before(begin); ++i) {
      const int64_t place = places[i];
      int more = 1 + static_cast<int>(key(place) % 3);
      for (int step = 0; step < kFlags && more > 0; ++step) {
        const int flag = static_cast<int>((key(place) / 3 + static_cast<uint64_t>(step)) % kFlags);
        if (flag_place_[flag] == place) continue;  // its content would only make the draft surer
        flags_[place] |= static_cast<uint8_t>(1 << flag);
        --more;
      }
    }
  }
}

double Chain::acceptance() const {
  return static_cast<double>(std::count(flags_.begin(), flags_.end(), 0)) / static_cast<double>(flags_.size());
}

void Chain::content(int64_t place, float* out) const {
  fill_signs(derive(derive(spec_.seed, "content"), static_cast<uint64_t>(cycle_.id_at(place))), content_dims_, out);
}

void Chain::embedding_row(TokenId id, float* row) const {
  const int64_t place = cycle_.place_of(id);
  content(place, row);
  for (int flag = 0; flag < kFlags; ++flag) {
    row[flag_dim(flag)] = flags_[place] >> flag & 1 ? 1.0f : -1.0f;
    row[constant_dim(flag)] = 1.0f;
  }
  const uint64_t code_key = derive(spec_.seed, "code");
  for (int64_t i = slow_begin_; i < spec_.hidden_dim; ++i) {
    const uint64_t dim_key = derive(code_key, static_cast<uint64_t>(i));
    const double phase = uniform(dim_key) * slow_period_;
    const auto step = i < fast_begin_ ? static_cast<uint64_t>((static_cast<double>(place) + phase) / slow_period_)
                                      : static_cast<uint64_t>(place);
    row[i] = sign(derive(dim_key, step));
  }
}

void Chain::head_row(TokenId id, float* row) const {
  std::fill(row, row + spec_.hidden_dim, 0.0f);
  if (!is_printable(id, spec_.vocab_size)) return;
  const float size = kTopLogit / static_cast<float>(content_dims_);
  if (cycle_.has(id)) {
    content(cycle_.place_of(id) + cycle_.length() - 1, row);
  } else {  // as likely as any id that does not come next
    fill_signs(derive(derive(spec_.seed, "other heads"), static_cast<uint64_t>(id)), content_dims_, row);
  }
  for (int64_t i = 0; i < content_dims_; ++i) row[i] *= size;
}

void Chain::router_row(uint64_t router_key, int64_t expert, float* row) const {
  const uint64_t key = derive(router_key, static_cast<uint64_t>(expert));
  const auto deviation = [](double variance, int64_t dims) {
    return kRouterDeviation * static_cast<float>(std::sqrt(variance / static_cast<double>(dims)));
  };
  const float everywhere = kRouterNoise * deviation(1, spec_.hidden_dim);
  const float slow = deviation(slow_share_, fast_begin_ - slow_begin_);
  const float fast = deviation(1 - slow_share_, spec_.hidden_dim - fast_begin_);
  for (int64_t i = 0; i < spec_.hidden_dim; ++i) {
    const float size = everywhere + (i < slow_begin_ ? 0.0f : i < fast_begin_ ? slow : fast);
    row[i] = size * normal(derive(key, static_cast<uint64_t>(i)));
  }
}

void Chain::eh_proj_row(int64_t output, float* row) const {
  const int64_t dim = spec_.hidden_dim;
  std::fill(row, row + dim, 0.0f);
  row[output] = 1.0f;
  if (output < content_dims_) {
    std::vector<float> other(static_cast<size_t>(content_dims_));
    for (int flag = 0; flag < kFlags; ++flag) {
      content(flag_place_[flag], other.data());
      row[flag_dim(flag)] = row[constant_dim(flag)] = kFlagWeight * other[output];
    }
  }
  const uint64_t key = derive(derive(spec_.seed, "hidden share"), static_cast<uint64_t>(output));
  const float size = kHiddenShare / std::sqrt(static_cast<float>(dim));
  for (int64_t i = 0; i < dim; ++i) row[dim + i] = size * normal(derive(key, static_cast<uint64_t>(i)));
}

double Chain::measured_overlap(uint64_t router_key) const {
  const auto dim = static_cast<size_t>(spec_.hidden_dim);
  const auto num_experts = static_cast<size_t>(spec_.num_experts), top_k = static_cast<size_t>(spec_.experts_per_token);
  if (num_experts == 0) return 1;
  std::vector<float> routers(num_experts * dim), embedding(dim);
  for (size_t e = 0; e < num_experts; ++e) router_row(router_key, static_cast<int64_t>(e), &routers[e * dim]);
  std::vector<bool> before(num_experts);
  size_t repeated = 0, pairs = 0;
  for (int64_t place = 0; place <= std::min<int64_t>(1024, cycle_.length() - 1); ++place) {
    embedding_row(cycle_.id_at(place), embedding.data());
    std::vector<std::pair<float, size_t>> scores;
    for (size_t e = 0; e < num_experts; ++e) {
      float lanes[8] = {};
      for (size_t i = 0; i < dim; i += 8) {
        for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += routers[e * dim + i + lane] * embedding[i + lane];
      }
      scores.emplace_back(-std::accumulate(lanes, lanes + 8, 0.0f), e);
    }
    std::partial_sort(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(top_k), scores.end());
    std::vector<bool> now(num_experts);
    for (size_t rank = 0; rank < top_k; ++rank) {
      now[scores[rank].second] = true;
      repeated += before[scores[rank].second];
    }
    pairs += place > 0;
    before = std::move(now);
  }
  return static_cast<double>(repeated) / static_cast<double>(pairs * top_k);
}

}  // namespace foretoken::synth
