#include "mtp/prefix_cache.h"

#include <algorithm>
#include <set>

#include "kernels/base/error.h"

namespace foretoken {

struct PrefixCache::Node {
  Node* parent = nullptr;
  std::vector<TokenId> edge;  // from the parent to here
  std::map<TokenId, std::unique_ptr<Node>> children;
  std::unique_ptr<TextCheckpoint> checkpoint;
  std::list<Node*>::iterator use;  // with a checkpoint: its place in by_use_

  /// Of a node without its checkpoint, with its place in its parent's map.
  [[nodiscard]] size_t bytes() const { return sizeof(Node) + edge.size() * sizeof(TokenId) + 64; }
};

namespace {

size_t common_length(std::span<const TokenId> a, std::span<const TokenId> b) {
  const size_t most = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(most), b.begin()).first -
                             a.begin());
}

bool serves(const TextCheckpoint* checkpoint, bool with_drafts) {
  return checkpoint != nullptr && (checkpoint->drafts || !with_drafts);
}

}  // namespace

PrefixCache::PrefixCache(size_t max_bytes, int max_checkpoints)
    : max_bytes_(max_bytes), max_checkpoints_(max_checkpoints), root_(std::make_unique<Node>()) {}
PrefixCache::~PrefixCache() = default;

const TextCheckpoint* PrefixCache::find(std::span<const TokenId> text, bool with_drafts) {
  Node* node = root_.get();
  Node* best = nullptr;
  for (size_t at = 0; at < text.size();) {
    const auto child = node->children.find(text[at]);
    if (child == node->children.end()) break;
    node = child->second.get();
    at += node->edge.size();
    // One token has to be left to go on from.
    if (at >= text.size() || common_length(text.subspan(at - node->edge.size()), node->edge) < node->edge.size()) break;
    if (serves(node->checkpoint.get(), with_drafts)) best = node;
  }
  if (best == nullptr) return nullptr;
  by_use_.splice(by_use_.begin(), by_use_, best->use);
  return best->checkpoint.get();
}

PrefixCache::Node* PrefixCache::find_node(std::span<const TokenId> text) const {
  Node* node = root_.get();
  while (!text.empty()) {
    const auto child = node->children.find(text.front());
    if (child == node->children.end()) return nullptr;
    node = child->second.get();
    if (common_length(text, node->edge) < node->edge.size()) return nullptr;
    text = text.subspan(node->edge.size());
  }
  return node;
}

bool PrefixCache::has(std::span<const TokenId> text, bool with_drafts) const {
  const Node* node = find_node(text);
  return node != nullptr && serves(node->checkpoint.get(), with_drafts);
}

int PrefixCache::num_pages() const {
  std::set<int32_t> pages;
  for (const Node* node : by_use_) {
    const std::span<const int32_t> held = node->checkpoint->sequence->pages();
    pages.insert(held.begin(), held.end());
  }
  return static_cast<int>(pages.size());
}

void PrefixCache::drop(std::span<const TokenId> text) {
  Node* node = find_node(text);
  if (node == nullptr || node->checkpoint == nullptr) return;
  remove_checkpoint(node);
  tidy(node);
}

PrefixCache::Node* PrefixCache::add_child(Node* parent, std::vector<TokenId> edge) {
  auto node = std::make_unique<Node>();
  node->parent = parent;
  node->edge = std::move(edge);
  node->edge.shrink_to_fit();
  bytes_ += node->bytes();
  ++num_nodes_;
  Node* added = node.get();
  parent->children[added->edge.front()] = std::move(node);
  return added;
}

// A new node takes the first `at` ids of the node's edge, and its place; it is returned.
PrefixCache::Node* PrefixCache::split(Node* node, size_t at) {
  const auto cut = node->edge.begin() + static_cast<std::ptrdiff_t>(at);
  std::vector<TokenId> upper(node->edge.begin(), cut), lower(cut, node->edge.end());
  Node* parent = node->parent;
  std::unique_ptr<Node> owned = std::move(parent->children.at(upper.front()));
  Node* between = add_child(parent, std::move(upper));
  bytes_ -= owned->bytes();
  owned->edge = std::move(lower);
  bytes_ += owned->bytes();
  owned->parent = between;
  between->children[owned->edge.front()] = std::move(owned);
  return between;
}

PrefixCache::Node* PrefixCache::node_for(std::span<const TokenId> text) {
  Node* node = root_.get();
  while (!text.empty()) {
    const auto child = node->children.find(text.front());
    if (child == node->children.end()) return add_child(node, {text.begin(), text.end()});
    node = child->second.get();
    const size_t common = common_length(text, node->edge);
    if (common < node->edge.size()) node = split(node, common);
    text = text.subspan(common);
  }
  return node;
}

void PrefixCache::insert(std::span<const TokenId> text, std::unique_ptr<TextCheckpoint> checkpoint) {
  FT_CHECK(!text.empty() && checkpoint->length() == static_cast<int64_t>(text.size()));
  const size_t needed = checkpoint->bytes() + 2 * sizeof(Node) + text.size_bytes() + 128;
  if (needed > max_bytes_) return;
  if (has(text, checkpoint->drafts)) {
    (void)find(text, checkpoint->drafts);
    return;
  }
  if (max_checkpoints_ <= 0) return;
  while (bytes_ + needed > max_bytes_ || num_checkpoints() >= max_checkpoints_) {
    if (!drop_oldest()) return;
  }
  Node* node = node_for(text);
  if (node->checkpoint != nullptr) remove_checkpoint(node);
  bytes_ += checkpoint->bytes();
  node->checkpoint = std::move(checkpoint);
  node->use = by_use_.insert(by_use_.begin(), node);
}

void PrefixCache::remove_checkpoint(Node* node) {
  bytes_ -= node->checkpoint->bytes();
  node->checkpoint.reset();
  by_use_.erase(node->use);
}

// Brings the first invariant back around a node that has lost its checkpoint.
void PrefixCache::tidy(Node* node) {
  while (node != root_.get() && node->checkpoint == nullptr && node->children.empty()) {
    Node* parent = node->parent;
    bytes_ -= node->bytes();
    --num_nodes_;
    const TokenId first = node->edge.front();
    parent->children.erase(first);
    node = parent;
  }
  if (node == root_.get() || node->checkpoint != nullptr || node->children.size() != 1) return;
  // Its only child takes its place.
  Node* parent = node->parent;
  std::unique_ptr<Node> child = std::move(node->children.begin()->second);
  bytes_ -= node->bytes() + child->bytes();
  --num_nodes_;
  child->edge.insert(child->edge.begin(), node->edge.begin(), node->edge.end());
  child->edge.shrink_to_fit();
  child->parent = parent;
  bytes_ += child->bytes();
  parent->children[child->edge.front()] = std::move(child);
}

bool PrefixCache::drop_oldest(const TextCheckpoint* keep) {
  for (auto oldest = by_use_.rbegin(); oldest != by_use_.rend(); ++oldest) {
    Node* node = *oldest;
    if (node->checkpoint.get() == keep) continue;
    remove_checkpoint(node);
    tidy(node);
    return true;
  }
  return false;
}

void PrefixCache::clear() {
  while (drop_oldest()) {
  }
}

}  // namespace foretoken
