#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "engine/session.h"
#include "mtp/draft_vocabulary.h"
#include "mtp/statistics.h"

namespace foretoken {

/// Longest draft.
inline constexpr int kMaxDraft = 8;

struct DecodeOptions {
  int64_t max_new_tokens = 128;  // n-predict; the context's end stops a generation too
  int mtp = 0;                   // most drafts a window; 0: off. 0 .. kMaxDraft
  bool controller = true;        // let the controller choose shorter drafts, down to 0
  // Head rows that drafts read (low ids; special and seen ones are added); 0: all; kAutoDraftVocab: auto_draft_vocab().
  int64_t draft_vocab = kAutoDraftVocab;
  SamplingOptions sampling;
  bool ignore_eos = false;
  const std::atomic<bool>* stop = nullptr;  // set from a signal handler: ends after the current window or prompt chunk

  /// Called for each new token, in order; false ends the generation.
  std::function<bool(TokenId)> on_token;
  /// Called with the logits [vocab_size] at each position in order: positions 0 .. prompt-1 too if all_prompt_logits is
  /// set. For checks.
  std::function<void(int64_t position, const float* logits)> on_logits;
  bool all_prompt_logits = false;

  /// Forced acceptance (bench): drafts come from this known continuation, each right with probability forced_acceptance
  /// (keyed by position and forced_seed), else a wrong token. Empty: the MTP layer's own drafts count. The MTP layer
  /// runs in either case.
  std::span<const TokenId> forced_continuation;
  double forced_acceptance = 1.0;
  uint64_t forced_seed = 0;
};

/// True with probability `p`, keyed by (seed, position): whether a forced draft is right. The same drafts are right in
/// every arm of a benchmark.
[[nodiscard]] bool forced_coin(uint64_t seed, int64_t position, double p);

enum class StopReason { kLength, kEndOfGeneration, kContextFull, kInterrupted, kCallback };
[[nodiscard]] std::string_view stop_reason_name(
    StopReason reason);  // "length", "end_of_generation", "context_full", "interrupted", "callback"

struct DecodeResult {
  std::vector<TokenId> ids;  // new tokens; a token that ended the generation is not among them
  StopReason stop_reason = StopReason::kLength;
  DecodeStatistics statistics;
};

/// Checks that this model can have the drafts asked for. Throws InputError: "... has no MTP layer: it can have --mtp 0
/// only".
void check_mtp(const Model& model, int mtp);

/// Continues `prompt` in a fresh sequence of `session` (reset first). The ids and every logit are the same for all
/// values of mtp, controller, draft_vocab and for all session options but kv_type. REQUIRES: !prompt.empty();
/// session.options().with_mtp and max_window > mtp if mtp > 0. Throws InputError if the prompt does not leave room for
/// one token in the context.
[[nodiscard]] DecodeResult decode(Session& session, std::span<const TokenId> prompt, const DecodeOptions& options);

}  // namespace foretoken
