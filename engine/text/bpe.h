#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// Byte-pair merging: a word begins as one token a byte; then the pair with the lowest rank, of equals the leftmost,
/// becomes one token, until no pair is in the list. A byte without a token is left out. Filled while loading, immutable
/// afterwards.
class Bpe {
 public:
  /// byte_tokens[b] is the token of byte b, or -1 if the vocabulary has none.
  Bpe(const std::array<TokenId, 256>& byte_tokens, size_t vocab_size, size_t num_merges);

  /// Names a piece that merges make or take and that is no token: where it is left over, its bytes' tokens stand for
  /// it. The id is for add_merge() alone.
  [[nodiscard]] TokenId add_piece(std::string bytes);

  /// Ranks are given out in the order of calls. Returns false, changing nothing, if the pair is there already.
  [[nodiscard]] bool add_merge(TokenId left, TokenId right, TokenId merged);

  /// Buffers of one caller, kept between words.
  struct Workspace {
    struct Symbol {
      TokenId token;  // -1: merged into the one before
      int32_t before;
      int32_t after;  // -1 at the end
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;  // rank above position, smallest first
  };

  /// Appends the tokens of `word`. Time is n log n in its length.
  /// REQUIRES: fewer than 2^31 bytes.
  void encode_word(std::string_view word, Workspace& workspace, std::vector<TokenId>& out) const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    TokenId merged = 0;
  };
  static constexpr uint64_t kNoPair = UINT64_MAX;  // tokens are not negative, so no pair is this

  [[nodiscard]] size_t slot_of(uint64_t pair) const;
  [[nodiscard]] const Merge* find(TokenId left, TokenId right) const;
  void append(TokenId id, std::vector<TokenId>& out) const;

  std::array<TokenId, 256> byte_tokens_;
  TokenId vocab_size_;
  std::vector<std::string> pieces_;  // their ids follow the vocabulary's
  std::vector<Merge> slots_;         // open addressing, a power of two, at most half full
  int shift_;                        // 64 - log2 of the number of slots
  uint32_t num_merges_ = 0;
};

}  // namespace foretoken
