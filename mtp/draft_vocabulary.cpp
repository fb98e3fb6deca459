#include "mtp/draft_vocabulary.h"

#include <algorithm>

#include "kernels/formats/matrix.h"

namespace foretoken {

int64_t auto_draft_vocab(int64_t vocab_size) {
  constexpr int64_t kMost = 16384;
  return std::clamp<int64_t>(vocab_size / 4, 1, kMost);
}

DraftVocabulary::DraftVocabulary(Engine& engine, int64_t num_low_ids)
    : engine_(engine), vocab_size_(engine.model().config().vocab_size) {
  if (num_low_ids == kAutoDraftVocab) num_low_ids = auto_draft_vocab(vocab_size_);
  const auto num_groups = static_cast<size_t>((vocab_size_ + kInterleave - 1) / kInterleave);
  users_.assign(num_groups, num_low_ids == 0 ? 1 : 0);
  seen_.assign(engine.options().parallel, std::vector<bool>(num_groups, false));
  const int64_t low = std::min(num_low_ids, vocab_size_);
  for (int64_t id = 0; id < low; ++id) users_[id / kInterleave] = 1;
  for (TokenId id : engine.model().tokenizer().special_ids()) users_[id / kInterleave] = 1;
  send();
}

void DraftVocabulary::send() {
  std::vector<int32_t> chosen;
  for (size_t g = 0; g < users_.size(); ++g) {
    if (users_[g] > 0) chosen.push_back(static_cast<int32_t>(g));
  }
  num_rows_ = std::min<int64_t>(static_cast<int64_t>(chosen.size()) * kInterleave, vocab_size_);
  engine_.set_draft_groups(chosen);
}

void DraftVocabulary::see(const Sequence& sequence, std::span<const TokenId> ids) {
  std::vector<bool>& seen = seen_[sequence.state().slot];
  for (TokenId id : ids) {
    const auto group = static_cast<size_t>(id / kInterleave);
    if (seen[group]) continue;
    seen[group] = true;
    if (users_[group]++ > 0) continue;
    num_rows_ += kInterleave;
    engine_.add_draft_group(static_cast<int32_t>(group));
  }
}

void DraftVocabulary::leave(const Sequence& sequence) {
  std::vector<bool>& seen = seen_[sequence.state().slot];
  bool changed = false;
  for (size_t g = 0; g < seen.size(); ++g) {
    if (!seen[g]) continue;
    seen[g] = false;
    changed |= --users_[g] == 0;
  }
  if (changed) send();
}

}  // namespace foretoken
