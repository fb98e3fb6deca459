#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace foretoken {

inline constexpr int64_t kAutoDraftVocab = -1;

/// Rows that drafts read where nobody asked for a number: 16,384, at most a quarter of the vocabulary. A draft step of
/// a 35B-A3B is then 55 MB of the 2,200 of a token (82 with 32,768 rows, 469 with all). The demonstration model accepts
/// as much with a quarter of its 4,096 ids as with all (1.76 and 1.75 tokens a window of one draft, 1.72 with a
/// sixteenth), since the ids that a text repeats are added as it goes.
[[nodiscard]] int64_t auto_draft_vocab(int64_t vocab_size);

/// The head rows that drafts read: over the whole vocabulary of 248,320 the head is 89% of a draft's bytes. Kept are
/// the low ids (in BPE the frequent ones), the special tokens, and whatever the texts that are drafted for have seen;
/// in groups of kInterleave ids, as the weights lie. All sequences read the same rows. Verification reads all rows of
/// the head, so the text is the same and only a little acceptance is lost.
class DraftVocabulary {
 public:
  /// num_low_ids 0: all rows; kAutoDraftVocab: auto_draft_vocab().
  DraftVocabulary(Engine& engine, int64_t num_low_ids);

  /// Adds the groups of these ids of a sequence.
  void see(const Sequence& sequence, std::span<const TokenId> ids);
  /// What only this sequence has seen is read no more.
  void leave(const Sequence& sequence);

  /// Head rows that one draft reads.
  [[nodiscard]] int64_t num_rows() const { return num_rows_; }

 private:
  void send();

  Engine& engine_;
  const int64_t vocab_size_;
  std::vector<int32_t> users_;  // [groups] sequences that have seen it, and one for the groups that always count
  std::vector<std::vector<bool>> seen_;  // [parallel][groups]
  int64_t num_rows_ = 0;
};

}  // namespace foretoken
