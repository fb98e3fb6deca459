#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "mtp/text_checkpoint.h"

namespace foretoken {

/// Checkpoints of texts, found by the longest common beginning: a radix tree over token ids. A node stands for a
/// beginning; some have a checkpoint, whose full pages are shared with the checkpoints behind it and with running
/// texts. The least recently used checkpoint goes first, when the memory that checkpoints and tree take would pass the
/// limit, or when somebody needs its pages.
///
/// INVARIANTS: 1. a node but the root has a checkpoint or at least two children.
///             2. the first ids of a node's children differ.
/// One thread at a time may call it.
class PrefixCache {
 public:
  /// max_bytes: of the host's memory, beside the pages. 0: nothing is ever kept. max_checkpoints: as many at most.
  explicit PrefixCache(size_t max_bytes, int max_checkpoints = INT32_MAX);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  /// The checkpoint of the longest beginning of `text` that leaves at least one of its tokens, with a drafter's part if
  /// `with_drafts`; nullptr: none. Valid until the next call that is not const. It counts as used.
  [[nodiscard]] const TextCheckpoint* find(std::span<const TokenId> text, bool with_drafts);
  /// There is a checkpoint of the whole of `text` that serves the same.
  [[nodiscard]] bool has(std::span<const TokenId> text, bool with_drafts) const;

  /// Keeps the checkpoint of `text`, unless it alone is larger than the limit. One that is there already stays if it
  /// serves the same.
  void insert(std::span<const TokenId> text, std::unique_ptr<TextCheckpoint> checkpoint);

  /// Drops the checkpoint of this text, if there is one.
  void drop(std::span<const TokenId> text);
  /// Drops the least recently used checkpoint but `keep`. False: there is none.
  bool drop_oldest(const TextCheckpoint* keep = nullptr);
  void clear();

  [[nodiscard]] size_t bytes() const { return bytes_; }
  [[nodiscard]] size_t max_bytes() const { return max_bytes_; }
  [[nodiscard]] int num_checkpoints() const { return static_cast<int>(by_use_.size()); }
  /// Pages of the engine that checkpoints hold, each once. Looks at all of them.
  [[nodiscard]] int num_pages() const;
  /// Nodes but the root, for tests.
  [[nodiscard]] int num_nodes() const { return num_nodes_; }

 private:
  struct Node;

  Node* add_child(Node* parent, std::vector<TokenId> edge);
  Node* split(Node* node, size_t at);
  [[nodiscard]] Node* find_node(std::span<const TokenId> text) const;
  Node* node_for(std::span<const TokenId> text);
  void remove_checkpoint(Node* node);
  void tidy(Node* node);

  const size_t max_bytes_;
  const int max_checkpoints_;
  size_t bytes_ = 0;
  int num_nodes_ = 0;
  std::unique_ptr<Node> root_;
  std::list<Node*> by_use_;  // that have a checkpoint; the most recently used first
};

}  // namespace foretoken
