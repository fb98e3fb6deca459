#include "tools/serve/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace foretoken {

std::vector<TokenLogprob> find_logprobs(std::span<const float> logits, TokenId id, int num_likeliest) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - largest));
  const double log_sum = static_cast<double>(largest) + std::log(sum);
  const auto logprob = [&](TokenId token) {
    return TokenLogprob{token, static_cast<float>(static_cast<double>(logits[token]) - log_sum)};
  };
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min(order.size(), static_cast<size_t>(num_likeliest));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](TokenId a, TokenId b) {
                      const float x = logits[a], y = logits[b];
                      return x > y || (x == y && a < b);
                    });
  std::vector<TokenLogprob> found = {logprob(id)};
  for (size_t i = 0; i < count; ++i) found.push_back(logprob(order[i]));
  return found;
}

}  // namespace foretoken
