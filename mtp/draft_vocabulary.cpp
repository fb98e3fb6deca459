#include "mtp/draft_vocabulary.h"

#include <algorithm>

#include "kernels/formats/matrix.h"

namespace foretoken {

int64_t auto_draft_vocab(int64_t vocab_size) {
  constexpr int64_t kMost = 16384;
  return std::clamp<int64_t>(vocab_size / 4, 1, kMost);
}

DraftVocabulary::DraftVocabulary(Session& session, int64_t num_low_ids) : session_(session) {
  const int64_t vocab_size = session.model().config().vocab_size;
  if (num_low_ids == kAutoDraftVocab) num_low_ids = auto_draft_vocab(vocab_size);
  groups_.assign(static_cast<size_t>((vocab_size + kInterleave - 1) / kInterleave), num_low_ids == 0);
  const int64_t low = std::min(num_low_ids, vocab_size);
  for (int64_t id = 0; id < low; ++id) groups_[static_cast<size_t>(id / kInterleave)] = true;
  for (TokenId id : session.model().tokenizer().special_ids()) groups_[static_cast<size_t>(id / kInterleave)] = true;
  std::vector<int32_t> chosen;
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (groups_[g]) chosen.push_back(static_cast<int32_t>(g));
  }
  num_rows_ = std::min<int64_t>(static_cast<int64_t>(chosen.size()) * kInterleave, vocab_size);
  session_.set_draft_groups(chosen);
}

void DraftVocabulary::see(std::span<const TokenId> ids) {
  for (TokenId id : ids) {
    const auto group = static_cast<size_t>(id / kInterleave);
    if (groups_[group]) continue;
    groups_[group] = true;
    num_rows_ += kInterleave;
    session_.add_draft_group(static_cast<int32_t>(group));
  }
}

}  // namespace foretoken
