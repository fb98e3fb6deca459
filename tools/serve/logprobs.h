#pragma once

#include <span>
#include <vector>

#include "tools/serve/channel.h"

namespace foretoken {

/// log softmax(logits) of `id`, then of the `num_likeliest` largest in falling order; of equals the lower id first.
[[nodiscard]] std::vector<TokenLogprob> find_logprobs(std::span<const float> logits, TokenId id, int num_likeliest);

}  // namespace foretoken
