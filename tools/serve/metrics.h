#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "mtp/generator.h"
#include "tools/serve/channel.h"

namespace foretoken {

/// Counts of durations up to each of some bounds, as Prometheus' histograms have them.
class Histogram {
 public:
  static constexpr std::array<double, 14> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                     0.25,  0.5,    1,     2.5,  5,     10,   60};  // seconds
  void add(double seconds, int64_t times = 1);
  /// Appends the lines of this metric.
  void write(const std::string& name, const std::string& help, std::string& to) const;

 private:
  std::array<int64_t, kBounds.size()> counts_{};
  int64_t count_ = 0;
  double sum_ = 0;
};

/// What /metrics tells. Any thread may call it.
class Metrics {
 public:
  /// weight_bytes: of the trunk, that its pass had to read.
  void count_step(const Generator::Step& step, double weight_bytes);
  /// time_to_first_token_ms: 0 where there was none.
  void count_answer(const AnswerEnd& end, double time_to_first_token_ms);
  void set_load(int processing, int deferred);
  void set_cache(int num_checkpoints, size_t bytes, int num_pages);
  /// Of the KV memory: all pages, and those that neither a text nor the cache holds.
  void set_pages(int num_pages, int num_free);

  /// Prometheus' text format 0.0.4.
  [[nodiscard]] std::string text() const;

 private:
  mutable std::mutex mutex_;
  int64_t requests_ = 0, requests_cancelled_ = 0, requests_failed_ = 0, cache_hits_ = 0;
  int64_t prompt_tokens_ = 0, cached_tokens_ = 0, new_tokens_ = 0, decode_tokens_ = 0;
  double prompt_ms_ = 0, decode_ms_ = 0;
  int64_t steps_ = 0, windows_ = 0, window_rows_ = 0;
  double distinct_experts_ = 0, weight_bytes_ = 0;  // sums over steps
  int64_t drafts_ = 0, drafted_ = 0, accepted_ = 0;
  std::vector<int64_t> accepted_by_position_;
  int processing_ = 0, deferred_ = 0;
  int num_checkpoints_ = 0, cache_pages_ = 0, num_pages_ = 0, free_pages_ = 0;
  size_t cache_bytes_ = 0;
  Histogram first_token_, between_tokens_;
};

}  // namespace foretoken
