#include "mtp/generation.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken {

std::string no_room_in_context(int64_t num_tokens, int64_t ctx_size) {
  return fmt::format("{} tokens leave no room for a new one in a context of {} positions", num_tokens, ctx_size);
}

std::string no_room_in_pages(int64_t prompt_tokens, int64_t positions, int num_pages) {
  return fmt::format("a prompt of {} tokens and {} new ones need {} positions of KV memory; {} are there",
                     prompt_tokens, positions - prompt_tokens, positions, int64_t{num_pages} * kPagePositions);
}

std::string_view stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::kNone:
      return "";
    case StopReason::kLength:
      return "length";
    case StopReason::kEndOfGeneration:
      return "end_of_generation";
    case StopReason::kContextFull:
      return "context_full";
    case StopReason::kInterrupted:
      return "interrupted";
    case StopReason::kCallback:
      return "callback";
    case StopReason::kFailed:
      return "failed";
  }
  FT_CHECK(false);
  return {};
}

Generation::Generation(Sequence& sequence, std::vector<TokenId> prompt, GenerationOptions options)
    : sequence_(sequence), prompt_(std::move(prompt)), options_(std::move(options)) {
  FT_CHECK(!prompt_.empty() && sequence.length() == 0);
  options_.sampling.check();
  if (options_.rules.any()) ruled_.emplace(options_.rules, prompt_);
  drafts_ = options_.max_drafts > 0;
  window_.sequence = &sequence_;
  window_.sampling = &options_.sampling;
  window_.drafts.reserve(kMaxDraft);
  window_.confidences.reserve(kMaxDraft);
  choices_.reserve(kMaxDraft + 1);
  DecodeStatistics& s = statistics_;
  s.drafted_by_position.assign(kMaxDraft, 0);
  s.accepted_by_position.assign(kMaxDraft, 0);
  s.windows_by_k.assign(kMaxDraft + 1, 0);
  s.verify_ms_by_rows.assign(kMaxDraft + 2, 0);
  s.windows_by_rows.assign(kMaxDraft + 2, 0);
  s.distinct_experts_by_rows.assign(kMaxDraft + 2, 0);
}

void Generation::stop(StopReason reason) {
  if (is_finished()) return;
  stop_reason_ = reason;
  DecodeStatistics& s = statistics_;
  if (was_read_) s.decode_ms = watch_.lap_ms();
  s.new_tokens = static_cast<int64_t>(ids_.size());
  s.decode_tokens = std::max<int64_t>(0, s.new_tokens - 1);
}

int64_t Generation::positions_needed(int64_t prompt_tokens, int64_t max_new_tokens, int64_t ctx_size) {
  return max_new_tokens >= ctx_size - prompt_tokens ? ctx_size : prompt_tokens + max_new_tokens;
}

int64_t Generation::tokens_left(int64_t ctx_size) const {
  return std::min(options_.max_new_tokens - static_cast<int64_t>(ids_.size()), ctx_size - sequence_.length() - 1);
}

int Generation::most_drafts(int64_t ctx_size) const {
  if (!drafts_) return 0;
  return static_cast<int>(std::clamp<int64_t>(tokens_left(ctx_size) - 1, 0, options_.max_drafts));
}

bool Generation::emit(TokenId id, const TokenOrigin& origin, bool ends_text) {
  if (options_.on_origin) options_.on_origin(origin);
  if (ends_text && !options_.ignore_eos) {
    stop(StopReason::kEndOfGeneration);
    return false;
  }
  ids_.push_back(id);
  if (ruled_) ruled_->push(id);
  if (options_.on_token && !options_.on_token(id)) {
    stop(StopReason::kCallback);
    return false;
  }
  return true;
}

// Tokens behind the one that ended the text are no tokens: of the accepted drafts only those count that came out, the
// ending one included.
void Generation::count_window(int num_accepted, int num_emitted) {
  DecodeStatistics& s = statistics_;
  const size_t num_drafts = window_.drafts.size();
  const int counted = std::min(num_accepted, num_emitted);
  ++s.verify_passes;
  ++s.windows_by_k[num_drafts];
  s.drafted += static_cast<int64_t>(num_drafts);
  s.accepted += counted;
  s.verified_tokens += num_emitted;
  for (size_t i = 0; i < num_drafts; ++i) {
    ++s.drafted_by_position[i];
    if (static_cast<int>(i) < counted) ++s.accepted_by_position[i];
  }
}

}  // namespace foretoken
