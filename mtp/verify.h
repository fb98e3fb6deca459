#pragma once

#include <span>
#include <vector>

#include "engine/sampler.h"
#include "engine/session.h"

namespace foretoken {

/// One pass of the trunk over the window [last, drafts...] at positions [session.length(), ...), and the target's own
/// choice after each of its rows: choices [drafts.size() + 1]. Nothing is committed; the logits stay in the session.
void verify(Session& session, TokenId last, std::span<const TokenId> drafts, const SamplingOptions& sampling,
            std::vector<TokenId>& choices);

}  // namespace foretoken
