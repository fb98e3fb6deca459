#include "engine/text/grammar/token_trie.h"

#include <algorithm>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

int count_characters(std::string_view bytes) {
  return static_cast<int>(std::count_if(bytes.begin(), bytes.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::shared_ptr<const TokenTrie> TokenTrie::build(const Tokenizer& tokenizer, std::span<const TokenId> marks) {
  std::vector<std::string_view> pieces;
  std::vector<TokenId> end_ids;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool ends = tokenizer.is_end_of_generation(id);
    if (ends) end_ids.push_back(id);
    const bool is_mark = std::find(marks.begin(), marks.end(), id) != marks.end();
    pieces.push_back(ends ? std::string_view() : tokenizer.piece(id, is_mark));
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
    for (; path.size() > depth; path.pop_back()) nodes_[path.back()].end = static_cast<int32_t>(nodes_.size());
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
    num_chars_.push_back(static_cast<uint16_t>(count_characters(text)));
    last = text;
  }
  close(0);
  nodes_.emplace_back().tokens_begin = static_cast<int32_t>(tokens_.size());
  summarise();
}

void TokenTrie::summarise() {
  // Each node's subtree, read from a character's begin at the node itself.
  struct Subtree {
    Texts texts;
    bool is_text = true;  // false: something is no UTF-8
  };
  std::vector<Subtree> all(nodes_.size());
  const auto for_children = [&](size_t i, const auto& visit) {
    for (auto child = static_cast<int32_t>(i) + 1; child < nodes_[i].end; child = nodes_[child].end)
      visit(static_cast<size_t>(child));
  };
  // A character ends at node i: what is below it are texts of their own.
  const auto end_character = [&](Subtree& to, size_t i) {
    to.texts.most_chars = std::max(to.texts.most_chars, uint16_t{1});
    for_children(i, [&](size_t child) {
      const Subtree& below = all[child];
      to.texts.ascii[0] |= below.texts.ascii[0];
      to.texts.ascii[1] |= below.texts.ascii[1];
      to.texts.most_chars = std::max(to.texts.most_chars, static_cast<uint16_t>(below.texts.most_chars + 1));
      to.texts.has_multibyte = to.texts.has_multibyte || below.texts.has_multibyte;
      to.is_text = to.is_text && below.is_text;
    });
  };
  // The rest of a character that node i is in: `left` bytes, the first of them from `range`.
  const auto go_on = [&](const auto& self, Subtree& to, size_t i, Utf8Range range, int left) -> void {
    for_children(i, [&](size_t child) {
      const uint8_t byte = nodes_[child].byte;
      if (byte < range.first || byte > range.last) {
        to.is_text = false;
      } else if (left == 1) {
        end_character(to, child);
      } else {
        self(self, to, child, {}, left - 1);
      }
    });
  };
  // From the last node to the first: children come before their parents.
  for (size_t i = nodes_.size() - 1; i-- > 0;) {
    Subtree& to = all[i];
    const uint8_t byte = nodes_[i].byte;
    if (byte < 0x80) {
      to.texts.ascii[byte / 64] |= uint64_t{1} << (byte % 64);
      end_character(to, i);
    } else {
      int left = 0;
      const Utf8Range range = utf8_after(byte, left);
      to.is_text = left > 0;
      to.texts.has_multibyte = true;
      to.texts.most_chars = 1;  // also where the tokens end within it
      if (left > 0) go_on(go_on, to, i, range, left);
    }
    const bool is_leaf = nodes_[i].end == static_cast<int32_t>(i) + 1;
    if (is_leaf || !to.is_text) continue;
    nodes_[i].texts = static_cast<int32_t>(texts_.size());
    texts_.push_back(to.texts);
  }
}

}  // namespace foretoken
