#include "mtp/accept.h"

#include "kernels/base/error.h"

namespace foretoken {

Acceptance accept(std::span<const TokenId> drafts, std::span<const TokenId> choices) {
  FT_CHECK_EQ(choices.size(), drafts.size() + 1);
  size_t accepted = 0;
  while (accepted < drafts.size() && drafts[accepted] == choices[accepted]) ++accepted;
  return {static_cast<int>(accepted), choices[accepted]};
}

}  // namespace foretoken
