#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/session.h"
#include "mtp/generation.h"
#include "mtp/generator.h"

namespace foretoken {

/// What a single text's decoding can be asked for: the generator's options and the generation's.
struct DecodeOptions {
  int64_t max_new_tokens = 128;
  int mtp = 0;             // most drafts a window; 0: off. 0 .. kMaxDraft
  bool controller = true;  // let the controller choose shorter drafts, down to 0
  int64_t draft_vocab = kAutoDraftVocab;
  bool draft_mtp = true;     // who drafts: the MTP layer
  bool draft_ngram = false;  // the text's own past, before the MTP layer where both do
  SamplingOptions sampling;
  LogitRules rules;
  bool ignore_eos = false;
  const std::atomic<bool>* stop = nullptr;  // set from a signal handler: ends after the current window or prompt chunk

  /// Called after each chunk of the prompt with the tokens of it that have been read.
  std::function<void(int64_t prompt_tokens)> on_prompt;
  // As GenerationOptions.
  std::function<bool(TokenId)> on_token;
  std::function<void(int64_t position, const float* logits)> on_logits;
  bool all_prompt_logits = false;

  /// Forced acceptance (bench): drafts come from this known continuation, each right with probability
  /// forced_acceptance; see ForcedText. The MTP layer runs in either case.
  std::span<const TokenId> forced_continuation;
  double forced_acceptance = 1.0;
  uint64_t forced_seed = 0;

  [[nodiscard]] GeneratorOptions generator() const;
  [[nodiscard]] GenerationOptions generation(int64_t prompt_tokens) const;
};

struct DecodeResult {
  std::vector<TokenId> ids;  // new tokens; a token that ended the generation is not among them
  StopReason stop_reason = StopReason::kLength;
  DecodeStatistics statistics;
};

/// Checks that this model can have the drafts asked for. Throws InputError: "... has no MTP layer: it can have --mtp 0
/// only".
void check_mtp(const Model& model, int mtp);

/// Throws InputError if the prompt does not leave room for one token in the context.
void check_prompt_length(const Model& model, int64_t prompt_tokens, int64_t ctx_size);

/// Continues `prompt` in a fresh sequence of `session` (reset first). The ids and every logit are the same for all
/// values of mtp, controller, draft_vocab and for all session options but kv_type. REQUIRES: !prompt.empty();
/// session.options().with_mtp and max_window > mtp if mtp > 0. Throws InputError if the prompt does not leave room for
/// one token in the context.
[[nodiscard]] DecodeResult decode(Session& session, std::span<const TokenId> prompt, const DecodeOptions& options);

}  // namespace foretoken
