#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// Bytes that begin a character of UTF-8: all but 0x80 to 0xBF.
[[nodiscard]] int count_characters(std::string_view bytes);

/// The bytes of a vocabulary's tokens as a tree, in preorder: what begins alike is looked at once. Control tokens are
/// not in it. Immutable.
class TokenTrie {
 public:
  /// `marks`: control tokens that stand in the tree by their names nevertheless.
  [[nodiscard]] static std::shared_ptr<const TokenTrie> build(const Tokenizer& tokenizer,
                                                              std::span<const TokenId> marks = {});
  /// pieces[id] are the bytes of token id; empty: it is not in the tree. end_ids: tokens that end a text.
  TokenTrie(const std::vector<std::string_view>& pieces, std::vector<TokenId> end_ids);

  struct Node {
    uint8_t byte = 0;
    uint16_t depth = 0;        // bytes before this one
    int32_t end = 0;           // the node behind the subtree
    int32_t tokens_begin = 0;  // tokens that end here: tokens()[tokens_begin, next node's tokens_begin)
    int32_t texts = -1;        // index of its subtree's Texts; -1: the subtree is a leaf, or no text
  };
  /// A subtree's bytes, from its first node's on, read as UTF-8: where a grammar goes on with any text of such
  /// characters, all of its tokens are allowed and none has to be looked at.
  struct Texts {
    std::array<uint64_t, 2> ascii{};  // bit c % 64 of word c / 64: the character c is there
    uint16_t most_chars = 0;          // of one token; a character that a token's end cuts off counts
    bool has_multibyte = false;       // characters of several bytes are there
  };
  [[nodiscard]] const Texts& texts(int32_t index) const { return texts_[index]; }
  /// One more than there are, so that the last node's tokens have an end.
  [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }
  [[nodiscard]] int32_t num_nodes() const { return static_cast<int32_t>(nodes_.size()) - 1; }
  [[nodiscard]] const std::vector<TokenId>& tokens() const { return tokens_; }
  /// Characters of tokens()[t]: bytes that begin one, also where the token's end cuts it off.
  [[nodiscard]] int num_chars(int32_t t) const { return num_chars_[t]; }
  [[nodiscard]] int64_t vocab_size() const { return static_cast<int64_t>(bytes_begin_.size()) - 1; }
  [[nodiscard]] std::string_view bytes(TokenId id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(bytes_begin_[i], bytes_begin_[i + 1] - bytes_begin_[i]);
  }
  [[nodiscard]] const std::vector<TokenId>& end_ids() const { return end_ids_; }
  [[nodiscard]] int most_depth() const { return most_depth_; }

 private:
  void summarise();

  std::vector<Node> nodes_;
  std::vector<Texts> texts_;
  std::vector<TokenId> tokens_;
  std::vector<uint16_t> num_chars_;
  std::string bytes_;
  std::vector<size_t> bytes_begin_;
  std::vector<TokenId> end_ids_;
  int most_depth_ = 0;
};

}  // namespace foretoken
