#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace foretoken {

/// A node of memory and the processors beside it that this process may run on, rising.
struct NumaNode {
  int id = 0;
  std::vector<int> cpus;
};

/// Rows [begin, end) of a matrix.
struct RowRange {
  int64_t begin = 0, end = 0;
  [[nodiscard]] int64_t count() const { return end - begin; }
};
[[nodiscard]] int64_t count_rows(std::span<const RowRange> ranges);
/// Puts `range` behind those before it; where it begins at their end, it lengthens the last one. An empty one is left out.
void append_rows(std::vector<RowRange>& ranges, const RowRange& range);

/// Over what a team of threads and the weights are laid, in proportion to the nodes' processors: the members of a team
/// and the rows of every matrix, in the same order, so that a member reads what lies beside it.
///
/// One node (all that most machines have) means that no thread is pinned and no order changes.
class NumaNodes {
 public:
  NumaNodes() = default;  // one node
  /// REQUIRES: every node has processors. Rising order of ids.
  explicit NumaNodes(std::vector<NumaNode> nodes);

  /// The nodes that `cpus` (rising, without duplicates) lie on. One node where the system does not tell, or tells what
  /// cannot be: a list that does not parse, one of `cpus` on two nodes or on none. `root` stands before every
  /// path that is read ("" outside tests). https://docs.kernel.org/admin-guide/mm/numaperf.html,
  /// Documentation/ABI/stable/sysfs-devices-node
  [[nodiscard]] static NumaNodes of(const std::vector<int>& cpus, const std::string& root = "");
  /// Of this machine, and the processors that this process may run on.
  [[nodiscard]] static NumaNodes of_machine();

  [[nodiscard]] int count() const { return static_cast<int>(ends_.size()); }
  /// Empty for one node.
  [[nodiscard]] const std::vector<NumaNode>& nodes() const { return nodes_; }

  /// The node of member `idx` of a team: the one with the processor at its place among all.
  [[nodiscard]] int node_of_member(int idx, int num_members) const;
  /// Members of a team on each node; some may have none.
  [[nodiscard]] std::vector<int> members_by_node(int num_members) const;

  /// First row of the share of a matrix's rows that lies on `node`, in whole groups of kInterleave; num_rows for node
  /// == count(). A share may be empty.
  [[nodiscard]] int64_t share_begin(int64_t num_rows, int node) const;
  /// The rows on `node` of a matrix that is shared out unit by unit, unit_rows each (the last may be shorter): rising,
  /// neighbours joined. An expert's rows are a unit, so that every expert lies on all nodes.
  [[nodiscard]] std::vector<RowRange> rows_of(int node, int64_t num_rows, int64_t unit_rows) const;

 private:
  std::vector<NumaNode> nodes_;
  std::vector<int> ends_{1};  // processors of the nodes up to this one, itself included
};

/// Processors that this thread may run on, rising; where it is pinned (see ThreadPin), those it may use without. Empty
/// if the system does not tell.
[[nodiscard]] std::vector<int> allowed_cpus();

/// Keeps the calling thread on a node's processors; any of them, so that the system can still make room for others on a
/// busy machine. A refusal is no error: it costs speed.
///
/// Pins of one thread may nest and may overlap; the thread gets its own processors back with the last of them.
/// REQUIRES: destroyed by the thread that made it.
class ThreadPin {
 public:
  explicit ThreadPin(const NumaNode& node);
  ~ThreadPin();
  ThreadPin(const ThreadPin&) = delete;
  ThreadPin& operator=(const ThreadPin&) = delete;

 private:
  std::vector<int> before_;
};

}  // namespace foretoken
