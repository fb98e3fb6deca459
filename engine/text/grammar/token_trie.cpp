#include "engine/text/grammar/token_trie.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken {

std::shared_ptr<const TokenTrie> TokenTrie::build(const Tokenizer& tokenizer) {
  std::vector<std::string_view> pieces;
  std::vector<TokenId> end_ids;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool ends = tokenizer.is_end_of_generation(id);
    if (ends) end_ids.push_back(id);
    pieces.push_back(ends ? std::string_view() : tokenizer.piece(id));
  }
  return std::make_shared<const TokenTrie>(pieces, std::move(end_ids));
}

TokenTrie::TokenTrie(const std::vector<std::string_view>& pieces, std::vector<TokenId> end_ids)
    : end_ids_(std::move(end_ids)) {
  std::vector<TokenId> order;
  for (size_t i = 0; i < pieces.size(); ++i) {
    bytes_begin_.push_back(bytes_.size());
    bytes_ += pieces[i];
    if (!pieces[i].empty()) order.push_back(static_cast<TokenId>(i));
    FT_CHECK(pieces[i].size() < UINT16_MAX);
    most_depth_ = std::max(most_depth_, static_cast<int>(pieces[i].size()));
  }
  bytes_begin_.push_back(bytes_.size());
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    const int by_bytes = bytes(a).compare(bytes(b));
    return by_bytes != 0 ? by_bytes < 0 : a < b;
  });
  std::vector<int32_t> path;  // nodes of the last token's bytes
  std::string_view last;
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back())
      nodes_[static_cast<size_t>(path.back())].end = static_cast<int32_t>(nodes_.size());
  };
  for (const TokenId id : order) {
    const std::string_view text = bytes(id);
    size_t common = 0;
    while (common < text.size() && common < last.size() && text[common] == last[common]) ++common;
    close(common);
    for (size_t depth = common; depth < text.size(); ++depth) {
      path.push_back(static_cast<int32_t>(nodes_.size()));
      Node& node = nodes_.emplace_back();
      node.byte = static_cast<uint8_t>(text[depth]);
      node.depth = static_cast<uint16_t>(depth);
      node.tokens_begin = static_cast<int32_t>(tokens_.size());
    }
    tokens_.push_back(id);
    last = text;
  }
  close(0);
  nodes_.emplace_back().tokens_begin = static_cast<int32_t>(tokens_.size());
}

}  // namespace foretoken
