#pragma once

#include <cstdint>

#include "engine/text/tokenizer.h"
#include "kernels/base/isa.h"

namespace foretoken {

struct SamplingOptions {
  float temperature = 0.0f;  // 0: greedy
  int top_k = 0;             // keep the k largest logits; 0: all
  float typical_p = 1.0f;    // keep the tokens closest to the expected surprise that hold typical_p together; 1: all
  float top_p = 1.0f;        // keep the smallest set of largest probabilities that reaches top_p
  float min_p = 0.0f;        // keep tokens with p >= min_p * largest p
  uint64_t seed = 0;

  /// Throws UsageError for a value outside its range (temperature >= 0, top_k >= 0, 0 < typical_p <= 1, 0 < top_p <= 1, 0 <= min_p <= 1).
  void check() const;
};

/// The choice at a position: a function of (logits, options, position) alone, so a draft can be compared with it and a
/// seeded sample is the same text with any window. Greedy: argmax, lower id of equals. Otherwise: filters in the order
/// top-k, typical-p, top-p, min-p (ties in every order: lower id first) over p = softmax(logits / temperature), each over what the
/// filter before it kept (top-p's share is a share of what top-k left), then argmax over the kept ids of logit /
/// temperature + gumbel(seed, position, id): the Gumbel-max trick, which samples exactly from the filtered softmax. The
/// noise is -log(-log(u)), u in (0, 1) made from a hash of (seed, position, id); log is the library's own
/// (kernels/base/math.h), so the text is the same on every machine. NaN counts as -infinity; where no logit is finite
/// the choice is greedy. `position` is the position that the chosen token will stand at.
[[nodiscard]] TokenId choose_token(Isa isa, const float* logits, int64_t vocab_size, const SamplingOptions& options,
                                   int64_t position);

/// The noise of one id; -2.9 to 28.5.
[[nodiscard]] float gumbel_noise(uint64_t seed, int64_t position, TokenId id);

}  // namespace foretoken
