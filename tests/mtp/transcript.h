#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "mtp/decoder.h"

namespace foretoken::test {

/// One generation: ids, and the logits at every position from the prompt's first on.
struct Transcript {
  DecodeResult result;
  std::vector<float> logits;  // [positions, vocab_size]
  int64_t vocab_size = 0;
  bool in_order = true;  // positions came as 0, 1, 2 ...

  /// Position of the first row of logits that differs in any bit, or is not finite: such a row is equal to none. The
  /// shorter one's end if it is the beginning of the other; -1 if equal.
  [[nodiscard]] int64_t first_difference(const Transcript& other) const {
    const auto row_bytes = static_cast<size_t>(vocab_size) * sizeof(float);
    const size_t rows = logits.size() / static_cast<size_t>(vocab_size),
                 other_rows = other.logits.size() / static_cast<size_t>(vocab_size);
    for (size_t r = 0; r < std::min(rows, other_rows); ++r) {
      const size_t begin = r * static_cast<size_t>(vocab_size);
      const auto finite = [](float logit) { return std::isfinite(logit); };
      const auto* const row = &logits[begin];
      if (std::memcmp(row, &other.logits[begin], row_bytes) != 0 || !std::all_of(row, row + vocab_size, finite))
        return static_cast<int64_t>(r);
    }
    return rows == other_rows ? -1 : static_cast<int64_t>(std::min(rows, other_rows));
  }
};

/// new_tokens tokens, greedy or a seeded sample, in windows of always k drafts: seven of ten from the `known` text
/// (greedy, sampled), so that windows end everywhere.
inline DecodeOptions drafting_options(int new_tokens, int k, bool sampled, const std::vector<Transcript>& known) {
  DecodeOptions options;
  options.max_new_tokens = new_tokens;
  options.mtp = k;
  options.controller = false;
  options.ignore_eos = true;
  if (sampled) {
    options.sampling.temperature = 0.8f;
    options.sampling.seed = 7;
  }
  if (k > 0) {
    options.forced_continuation = known[sampled ? 1 : 0].result.ids;
    options.forced_acceptance = 0.7;
    options.forced_seed = static_cast<uint64_t>(k);
  }
  return options;
}

/// Decodes in a session of its own and keeps everything. `decode.on_logits` and all_prompt_logits are set here; the
/// session gets the window and the MTP layer that `options.mtp` needs.
inline Transcript transcribe(const Model& model, SessionOptions session_options, std::span<const TokenId> prompt,
                             DecodeOptions options) {
  session_options.with_mtp = options.mtp > 0;
  session_options.max_window = options.mtp + 1;
  Transcript t;
  t.vocab_size = model.config().vocab_size;
  int64_t next = 0;
  options.all_prompt_logits = true;
  options.on_logits = [&](int64_t position, const float* logits) {
    t.in_order = t.in_order && position == next++;
    t.logits.insert(t.logits.end(), logits, logits + t.vocab_size);
  };
  Session session(model, session_options);
  t.result = decode(session, prompt, options);
  return t;
}

}  // namespace foretoken::test
