#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// Where the end of a text has stood before in the same text: its continuation there is a draft of what comes next.
/// Summaries, edited code and quotations repeat long passages of their prompt.
///
/// For every position and each of a few lengths n the index keeps the last position before it where the same n tokens
/// ended: a hash table of chain heads, and a link back for each position. A look-up starts from the longest n that has
/// a match and takes, among the latest kMaxCandidates of them, the one that agrees with the end of the text for the
/// most tokens; of equal ones the latest. Hashes only find candidates: what is proposed was compared token by token.
///
/// All memory is taken in the constructor. append() is O(1) a token; rewind() is O(1) a token taken back; propose() is
/// bounded by a constant whatever the length. The same tokens give the same drafts, in whatever portions they were
/// appended. One thread at a time may use it.
///
/// INVARIANTS
///  1. tokens [0, size()) are the text; after rewind(n) the index is what it was when size() was n.
///  2. head[bucket] is the last position whose n-gram (of this length, ending there) falls into the bucket, links lead
///     to ever earlier ones.
class NgramIndex {
 public:
  /// n-grams that are looked up, longest first.
  static constexpr int kNumLengths = 3;
  static constexpr int kLengths[kNumLengths] = {8, 4, 2};
  /// Agreement beyond this many tokens is not counted.
  static constexpr int kMaxMatch = 64;
  static constexpr int kMaxCandidates = 16;

  /// max_tokens: the longest text, as the context's size.
  explicit NgramIndex(int64_t max_tokens);

  /// REQUIRES: size() + ids.size() <= max_tokens.
  void append(std::span<const TokenId> ids);
  /// Takes back all tokens from `size` on. REQUIRES: 0 <= size <= this->size().
  void rewind(int64_t size);
  [[nodiscard]] int64_t size() const { return size_; }
  [[nodiscard]] std::span<const TokenId> tokens() const { return std::span(tokens_).first(size_); }

  /// The longest recent match of the text's end.
  struct Match {
    int64_t end = 0;  // the continuation begins here; 0: no match
    int length = 0;   // tokens before it that agree with the end of the text, at most kMaxMatch
  };
  [[nodiscard]] Match find() const;

  /// Up to drafts.size() tokens that may come next; returns how many. A continuation that reaches the end of the text
  /// goes on with what was drafted (a text that repeats itself). Each draft's confidence is that of all drafts before
  /// it being right: confidence_of() of the agreeing tokens, those drafted included. REQUIRES: confidences.size() ==
  /// drafts.size().
  [[nodiscard]] int propose(std::span<TokenId> drafts, std::span<float> confidences) const;

  /// How sure a draft is behind `length` agreeing tokens: rises from a half at two towards one. A starting point for
  /// who counts: the controller corrects it by what was accepted.
  [[nodiscard]] static float confidence_of(int length);

  /// Bytes of an index for texts of max_tokens.
  [[nodiscard]] static size_t size_bytes(int64_t max_tokens);

 private:
  [[nodiscard]] size_t bucket(int which, int64_t end) const;
  [[nodiscard]] int agreement(int64_t end) const;

  int64_t size_ = 0;
  uint32_t bucket_mask_;
  std::vector<TokenId> tokens_;              // [max_tokens]
  std::vector<int32_t> heads_[kNumLengths];  // [buckets] position + 1 behind the last n-gram; 0: none
  std::vector<int32_t> links_[kNumLengths];  // [max_tokens] of the n-gram ending with this token: the one before it
};

}  // namespace foretoken
