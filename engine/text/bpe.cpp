#include "engine/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

uint64_t make_pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const std::array<TokenId, 256>& byte_tokens, size_t vocab_size, size_t num_merges)
    : byte_tokens_(byte_tokens), vocab_size_(static_cast<TokenId>(vocab_size)) {
  slots_.resize(std::bit_ceil(std::max<size_t>(2, num_merges * 2)));
  shift_ = 64 - std::countr_zero(slots_.size());
}

// Where the pair is, or the free slot where it belongs.
size_t Bpe::slot_of(uint64_t pair) const {
  // Multiplicative hashing by 2^64 / golden ratio; the high bits are the mixed ones.
  size_t slot = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> shift_;
  while (slots_[slot].pair != pair && slots_[slot].pair != kNoPair) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

const Bpe::Merge* Bpe::find(TokenId left, TokenId right) const {
  const Merge& merge = slots_[slot_of(make_pair_key(left, right))];
  return merge.pair == kNoPair ? nullptr : &merge;
}

bool Bpe::add_merge(TokenId left, TokenId right, TokenId merged) {
  FT_CHECK(num_merges_ < slots_.size() / 2);
  const uint64_t pair = make_pair_key(left, right);
  Merge& merge = slots_[slot_of(pair)];
  if (merge.pair != kNoPair) return false;
  merge = {pair, num_merges_++, merged};
  return true;
}

TokenId Bpe::add_piece(std::string bytes) {
  pieces_.push_back(std::move(bytes));
  return vocab_size_ + static_cast<TokenId>(pieces_.size() - 1);
}

void Bpe::append(TokenId id, std::vector<TokenId>& out) const {
  if (id < vocab_size_) {
    out.push_back(id);
    return;
  }
  for (const char byte : pieces_[id - vocab_size_]) {
    const TokenId token = byte_tokens_[static_cast<uint8_t>(byte)];
    if (token >= 0) out.push_back(token);
  }
}

void Bpe::encode_word(std::string_view word, Workspace& workspace, std::vector<TokenId>& out) const {
  std::vector<Workspace::Symbol>& symbols = workspace.symbols;
  std::vector<uint64_t>& heap = workspace.heap;
  symbols.clear();
  heap.clear();
  for (const char byte : word) {
    const TokenId token = byte_tokens_[static_cast<uint8_t>(byte)];
    const auto i = static_cast<int32_t>(symbols.size());
    if (token >= 0) symbols.push_back({token, i - 1, i + 1});
  }
  const auto length = static_cast<int32_t>(symbols.size());
  if (length == 0) return;
  symbols.back().after = -1;
  // Entries stay in the heap when a neighbour's merge makes them stale; they are recognised when they come up.
  const auto candidate = [&](int32_t position) -> const Merge* {
    const Workspace::Symbol& symbol = symbols[position];
    return symbol.token < 0 || symbol.after < 0 ? nullptr : find(symbol.token, symbols[symbol.after].token);
  };
  const auto entry = [](const Merge& merge, int32_t position) {
    return uint64_t{merge.rank} << 32 | static_cast<uint32_t>(position);
  };
  const auto push = [&](int32_t position) {
    if (const Merge* merge = candidate(position)) {
      heap.push_back(entry(*merge, position));
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  };
  for (int32_t i = 0; i + 1 < length; ++i) {
    if (const Merge* merge = candidate(i)) heap.push_back(entry(*merge, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto position = static_cast<int32_t>(top & 0xFFFFFFFF);
    const Merge* merge = candidate(position);
    if (merge == nullptr || entry(*merge, position) != top) continue;
    Workspace::Symbol& left = symbols[position];
    Workspace::Symbol& right = symbols[left.after];
    left.token = merge->merged;
    right.token = -1;
    left.after = right.after;
    if (left.after >= 0) symbols[left.after].before = position;
    if (left.before >= 0) push(left.before);
    push(position);
  }
  for (int32_t i = 0; i >= 0 && i < length; i = symbols[i].after) append(symbols[i].token, out);
}

}  // namespace foretoken
