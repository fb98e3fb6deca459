#include "mtp/verify.h"

namespace foretoken {

void verify(Session& session, TokenId last, std::span<const TokenId> drafts, const SamplingOptions& sampling,
            std::vector<TokenId>& choices) {
  std::vector<TokenId> window{last};
  window.insert(window.end(), drafts.begin(), drafts.end());
  const int num_rows = static_cast<int>(window.size());
  session.forward(window);
  session.compute_logits(0, num_rows);
  choices.clear();
  for (int r = 0; r < num_rows; ++r) {
    choices.push_back(choose_token(session.options().isa, session.logits(r), session.model().config().vocab_size,
                                   sampling, session.length() + r + 1));
  }
}

}  // namespace foretoken
