#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace foretoken {

/// Longest draft.
inline constexpr int kMaxDraft = 8;

/// What one generation did and took. Times are wall clock.
struct DecodeStatistics {
  int64_t prompt_tokens = 0;
  double prompt_ms = 0;               // trunk and MTP layer over the prompt
  double prompt_mtp_ms = 0;           // of it: the MTP layer
  double time_to_first_token_ms = 0;  // from the call to the first new token
  int64_t new_tokens = 0;
  double decode_ms = 0;       // after the first new token
  int64_t decode_tokens = 0;  // tokens made in decode_ms: new_tokens - 1

  int64_t verify_passes = 0;    // windows after the prompt
  int64_t verified_tokens = 0;  // tokens they produced: accepted + corrected or bonus
  int64_t drafted = 0;
  int64_t accepted = 0;
  std::vector<int64_t> drafted_by_position;   // [kMaxDraft], position 0 is the first draft of a window
  std::vector<int64_t> accepted_by_position;  // [kMaxDraft]
  std::vector<int64_t> windows_by_k;          // [kMaxDraft + 1] histogram of drafts a window

  double draft_ms = 0, verify_ms = 0, accept_ms = 0, refresh_ms = 0;
  std::vector<double> verify_ms_by_rows;         // [kMaxDraft + 2] sum over windows of n rows
  std::vector<int64_t> windows_by_rows;          // [kMaxDraft + 2]
  std::vector<double> distinct_experts_by_rows;  // [kMaxDraft + 2] sum over windows of (mean over layers of distinct
                                                 // experts / top_k): U(n)
  double draft_step_ms = 0;                      // sum over chained single steps
  int64_t draft_steps = 0;

  /// Why drafting stopped: what was not finite in the MTP layer. Empty: it did not stop. The text is the same.
  std::string draft_fault;

  [[nodiscard]] double acceptance_length() const {
    return verify_passes == 0 ? 1.0 : static_cast<double>(verified_tokens) / static_cast<double>(verify_passes);
  }
  [[nodiscard]] double mean_k() const {
    return verify_passes == 0 ? 0.0 : static_cast<double>(drafted) / static_cast<double>(verify_passes);
  }
  [[nodiscard]] double decode_tokens_per_second() const {
    return decode_ms > 0 ? 1e3 * static_cast<double>(decode_tokens) / decode_ms : 0.0;
  }
  [[nodiscard]] double prompt_tokens_per_second() const {
    return prompt_ms > 0 ? 1e3 * static_cast<double>(prompt_tokens) / prompt_ms : 0.0;
  }
};

}  // namespace foretoken
