#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// The bytes of a vocabulary's tokens as a tree, in preorder: what begins alike is looked at once. Control tokens are
/// not in it. Immutable.
class TokenTrie {
 public:
  [[nodiscard]] static std::shared_ptr<const TokenTrie> build(const Tokenizer& tokenizer);
  /// pieces[id] are the bytes of token id; empty: it is not in the tree. end_ids: tokens that end a text.
  TokenTrie(const std::vector<std::string_view>& pieces, std::vector<TokenId> end_ids);

  struct Node {
    uint8_t byte = 0;
    uint16_t depth = 0;        // bytes before this one
    int32_t end = 0;           // the node behind the subtree
    int32_t tokens_begin = 0;  // tokens that end here: tokens()[tokens_begin, next node's tokens_begin)
  };
  /// One more than there are, so that the last node's tokens have an end.
  [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }
  [[nodiscard]] int32_t num_nodes() const { return static_cast<int32_t>(nodes_.size()) - 1; }
  [[nodiscard]] const std::vector<TokenId>& tokens() const { return tokens_; }
  [[nodiscard]] int64_t vocab_size() const { return static_cast<int64_t>(bytes_begin_.size()) - 1; }
  [[nodiscard]] std::string_view bytes(TokenId id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(bytes_begin_[i], bytes_begin_[i + 1] - bytes_begin_[i]);
  }
  [[nodiscard]] const std::vector<TokenId>& end_ids() const { return end_ids_; }
  [[nodiscard]] int most_depth() const { return most_depth_; }

 private:
  std::vector<Node> nodes_;
  std::vector<TokenId> tokens_;
  std::string bytes_;
  std::vector<size_t> bytes_begin_;
  std::vector<TokenId> end_ids_;
  int most_depth_ = 0;
};

}  // namespace foretoken
