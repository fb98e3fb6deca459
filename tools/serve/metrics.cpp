#include "tools/serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace foretoken {

namespace {

template <class Value>
void write_metric(std::string& to, const char* type, const std::string& name, const char* help, Value value) {
  to += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", name, help, type, value);
}

double per_second(int64_t tokens, double ms) {
  return ms > 0 ? 1e3 * static_cast<double>(tokens) / ms : 0.0;
}

double share(double part, int64_t of) {
  return of > 0 ? part / static_cast<double>(of) : 0.0;
}

}  // namespace

void Histogram::add(double seconds, int64_t times) {
  for (size_t i = 0; i < kBounds.size(); ++i) counts_[i] += seconds <= kBounds[i] ? times : 0;
  count_ += times;
  sum_ += seconds * static_cast<double>(times);
}

void Histogram::write(const std::string& name, const std::string& help, std::string& to) const {
  to += fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  for (size_t i = 0; i < kBounds.size(); ++i)
    to += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBounds[i], counts_[i]);
  to += fmt::format("{0}_bucket{{le=\"+Inf\"}} {1}\n{0}_sum {2}\n{0}_count {1}\n", name, count_, sum_);
}

void Metrics::count_step(const Generator::Step& step, double weight_bytes) {
  const std::lock_guard lock(mutex_);
  ++steps_;
  windows_ += step.num_windows;
  window_rows_ += step.window_rows;
  distinct_experts_ += step.distinct_experts;
  if (step.num_windows > 0) weight_bytes_ += weight_bytes;
}

void Metrics::count_answer(const AnswerEnd& end, double time_to_first_token_ms) {
  const DecodeStatistics& s = end.statistics;
  const std::lock_guard lock(mutex_);
  ++requests_;
  requests_cancelled_ += end.reason == StopReason::kInterrupted ? 1 : 0;
  requests_failed_ += end.reason == StopReason::kFailed ? 1 : 0;
  prompt_tokens_ += s.prompt_tokens;
  cached_tokens_ += end.cached_tokens;
  cache_hits_ += end.cached_tokens > 0 ? 1 : 0;
  prompt_ms_ += s.prompt_ms;
  new_tokens_ += s.new_tokens;
  decode_tokens_ += s.decode_tokens;
  decode_ms_ += s.decode_ms;
  drafted_ += s.drafted;
  accepted_ += s.accepted;
  for (size_t k = 1; k < s.windows_by_k.size(); ++k) drafts_ += s.windows_by_k[k];
  accepted_by_position_.resize(std::max(accepted_by_position_.size(), s.accepted_by_position.size()));
  for (size_t i = 0; i < s.accepted_by_position.size(); ++i) accepted_by_position_[i] += s.accepted_by_position[i];
  if (time_to_first_token_ms > 0) first_token_.add(time_to_first_token_ms / 1e3);
  if (s.decode_tokens > 0)
    between_tokens_.add(s.decode_ms / 1e3 / static_cast<double>(s.decode_tokens), s.decode_tokens);
}

void Metrics::set_load(int processing, int deferred) {
  const std::lock_guard lock(mutex_);
  processing_ = processing;
  deferred_ = deferred;
}

void Metrics::set_cache(int num_checkpoints, size_t bytes, int num_pages) {
  const std::lock_guard lock(mutex_);
  num_checkpoints_ = num_checkpoints;
  cache_bytes_ = bytes;
  cache_pages_ = num_pages;
}

void Metrics::set_pages(int num_pages, int num_free) {
  const std::lock_guard lock(mutex_);
  num_pages_ = num_pages;
  free_pages_ = num_free;
}

std::string Metrics::text() const {
  const std::lock_guard lock(mutex_);
  std::string to;
  const auto counter = [&](const char* name, const char* help, auto value) {
    write_metric(to, "counter", name, help, value);
  };
  const auto gauge = [&](const char* name, const char* help, auto value) {
    write_metric(to, "gauge", name, help, value);
  };
  counter("llamacpp:prompt_tokens_total", "Prompt tokens that were computed.", prompt_tokens_);
  counter("llamacpp:prompt_tokens_cached_total", "Prompt tokens that were taken from the prefix cache.",
          cached_tokens_);
  counter("llamacpp:prompt_seconds_total", "Time of reading prompts.", prompt_ms_ / 1e3);
  counter("llamacpp:tokens_predicted_total", "Tokens that were made.", new_tokens_);
  counter("llamacpp:tokens_predicted_seconds_total", "Time of making tokens, after the first of each answer.",
          decode_ms_ / 1e3);
  counter("llamacpp:n_decode_total", "Steps of the engine.", steps_);
  counter("llamacpp:spec_decode_num_drafts_total", "Windows with drafts.", drafts_);
  counter("llamacpp:spec_decode_num_draft_tokens_total", "Tokens that were drafted.", drafted_);
  counter("llamacpp:spec_decode_num_accepted_tokens_total", "Drafts that were accepted.", accepted_);
  const std::string by_position = "llamacpp:spec_decode_num_accepted_tokens_per_pos_total";
  to += fmt::format("# HELP {0} Drafts that were accepted, by their position.\n# TYPE {0} counter\n", by_position);
  for (size_t i = 0; i < accepted_by_position_.size(); ++i)
    to += fmt::format("{}{{position=\"{}\"}} {}\n", by_position, i, accepted_by_position_[i]);
  gauge("llamacpp:prompt_tokens_seconds", "Prompt tokens a second.", per_second(prompt_tokens_, prompt_ms_));
  gauge("llamacpp:predicted_tokens_seconds", "Tokens a second of one answer.", per_second(decode_tokens_, decode_ms_));
  gauge("llamacpp:requests_processing", "Answers that run.", processing_);
  gauge("llamacpp:requests_deferred", "Answers that wait.", deferred_);
  gauge("llamacpp:n_busy_slots_per_decode", "Answers in a step, on average.",
        share(static_cast<double>(windows_), steps_));
  counter("foretoken:answers_total", "Answers that ended.", requests_);
  counter("foretoken:answers_cancelled_total", "Answers whose client left, or that the server's end cut off.",
          requests_cancelled_);
  counter("foretoken:answers_failed_total", "Answers that ended in an error.", requests_failed_);
  counter("foretoken:cache_hits_total", "Answers that began from the prefix cache.", cache_hits_);
  gauge("foretoken:batch_rows", "Rows of windows in a step, on average.",
        share(static_cast<double>(window_rows_), steps_));
  gauge("foretoken:distinct_experts", "Distinct experts that a step reads, in units of one token's, on average.",
        share(distinct_experts_, steps_));
  gauge("foretoken:bytes_per_token", "Bytes of weights that steps with windows read, for each token that was made.",
        share(weight_bytes_, new_tokens_));
  gauge("foretoken:cache_checkpoints", "Checkpoints of texts in the prefix cache.", num_checkpoints_);
  gauge("foretoken:cache_bytes", "Memory that the prefix cache takes beside the pages.", cache_bytes_);
  gauge("foretoken:cache_pages", "Pages of the KV memory that the prefix cache holds.", cache_pages_);
  gauge("foretoken:kv_pages", "Pages of the KV memory, of 256 positions.", num_pages_);
  gauge("foretoken:kv_pages_free", "Pages that neither a text nor the prefix cache holds.", free_pages_);
  first_token_.write("foretoken:time_to_first_token_seconds", "From a request's arrival to its first token.", to);
  between_tokens_.write("foretoken:time_between_tokens_seconds", "Mean time of a token, by answer.", to);
  return to;
}

}  // namespace foretoken
