#pragma once

#include <span>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// What a verified window yields: the first num_accepted drafts, then `next`, which is the target's correction of the
/// first wrong draft or, where all were right, the bonus token behind the last one.
struct Acceptance {
  int num_accepted = 0;
  TokenId next = 0;
};

/// drafts [k]; choices [k + 1], the target's own choice after each row of the window (the last known token, then the
/// drafts). The longest prefix with drafts[i] == choices[i] is accepted. REQUIRES: choices.size() == drafts.size() + 1.
[[nodiscard]] Acceptance accept(std::span<const TokenId> drafts, std::span<const TokenId> choices);

}  // namespace foretoken
