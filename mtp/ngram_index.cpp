#include "mtp/ngram_index.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Links followed in one look-up of a length, other n-grams of the same bucket included.
constexpr int kMaxHops = 4 * NgramIndex::kMaxCandidates;

// Buckets of a hash table over n-grams that end at max_tokens positions: full to a half at most.
uint32_t num_buckets(int64_t max_tokens) {
  return std::bit_ceil(static_cast<uint32_t>(std::max<int64_t>(2 * max_tokens, 16)));
}

}  // namespace

NgramIndex::NgramIndex(int64_t max_tokens) : bucket_mask_(num_buckets(max_tokens) - 1) {
  FT_CHECK(max_tokens >= 0 && max_tokens < (int64_t{1} << 30));
  tokens_.resize(max_tokens);
  for (int which = 0; which < kNumLengths; ++which) {
    heads_[which].resize(size_t{bucket_mask_} + 1);
    links_[which].resize(max_tokens);
  }
}

size_t NgramIndex::size_bytes(int64_t max_tokens) {
  const size_t tokens = static_cast<size_t>(max_tokens);
  return tokens * sizeof(TokenId) + kNumLengths * sizeof(int32_t) * (num_buckets(max_tokens) + tokens);
}

// Of the kLengths[which] tokens before `end`.
size_t NgramIndex::bucket(int which, int64_t end) const {
  uint64_t hash = 0;
  for (int64_t i = end - kLengths[which]; i < end; ++i) {
    hash = (hash ^ static_cast<uint32_t>(tokens_[i])) * 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 32;
  }
  return static_cast<size_t>(hash & bucket_mask_);
}

void NgramIndex::append(std::span<const TokenId> ids) {
  FT_CHECK(size_ + static_cast<int64_t>(ids.size()) <= static_cast<int64_t>(tokens_.size()));
  for (TokenId id : ids) {
    const auto at = static_cast<size_t>(size_++);
    tokens_[at] = id;
    for (int which = 0; which < kNumLengths; ++which) {
      if (size_ < kLengths[which]) continue;
      int32_t& head = heads_[which][bucket(which, size_)];
      links_[which][at] = head;
      head = static_cast<int32_t>(size_);
    }
  }
}

void NgramIndex::rewind(int64_t size) {
  FT_CHECK(size >= 0 && size <= size_);
  for (; size_ > size; --size_) {
    for (int which = 0; which < kNumLengths; ++which) {
      if (size_ < kLengths[which]) continue;
      heads_[which][bucket(which, size_)] = links_[which][size_ - 1];
    }
  }
}

// Tokens before `end` that equal those before the end of the text.
int NgramIndex::agreement(int64_t end) const {
  const int most = static_cast<int>(std::min<int64_t>(end, kMaxMatch));
  int length = 0;
  while (length < most && tokens_[end - 1 - length] == tokens_[size_ - 1 - length]) {
    ++length;
  }
  return length;
}

NgramIndex::Match NgramIndex::find() const {
  for (int which = 0; which < kNumLengths; ++which) {
    if (size_ < kLengths[which]) continue;
    Match best;
    // The text's own end heads its chain.
    int64_t end = links_[which][size_ - 1];
    for (int seen = 0, hops = 0; end > 0 && seen < kMaxCandidates && hops < kMaxHops; ++hops) {
      const int length = agreement(end);
      if (length >= kLengths[which]) ++seen;  // else another n-gram of the same bucket
      if (length >= kLengths[which] && length > best.length) best = {end, length};
      if (best.length == kMaxMatch) break;
      end = links_[which][end - 1];
    }
    if (best.length > 0) return best;
  }
  return {};
}

float NgramIndex::confidence_of(int length) {
  return 1.0f - 1.0f / static_cast<float>(std::max(length, 1));
}

int NgramIndex::propose(std::span<TokenId> drafts, std::span<float> confidences) const {
  FT_CHECK_EQ(drafts.size(), confidences.size());
  const Match match = find();
  if (match.length == 0) return 0;
  for (size_t i = 0; i < drafts.size(); ++i) {
    const int64_t from = match.end + static_cast<int64_t>(i);
    drafts[i] = from < size_ ? tokens_[from] : drafts[from - size_];
    confidences[i] = confidence_of(std::min(match.length + static_cast<int>(i), kMaxMatch));
  }
  return static_cast<int>(drafts.size());
}

}  // namespace foretoken
