#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/threads/numa.h"

namespace foretoken {

/// Rows [row_begin, row_end) of one of a loop's matrices.
struct RowItem {
  size_t matrix;
  int64_t row_begin, row_end;
};

/// Cuts the output rows of several matrices into the work items of one loop: node after node, on each node matrix after
/// matrix, so that an item reads from one node only. With one node that is matrix after matrix.
///
///   items.plan(team.nodes(), matrices);
///   team.parallel_for(items.node_ends(), [&](int64_t i, int) { const RowItem at = items.find(i); ... });
class RowItems {
 public:
  struct Matrix {
    int64_t num_rows;
    int64_t rows_per_item;  // a multiple of kInterleave
  };

  /// Room for so many matrices on any number of nodes that this machine may have.
  void reserve(size_t num_matrices);
  void plan(const NumaNodes& nodes, std::span<const Matrix> matrices);

  /// One number a node: where its items end; see ThreadTeam::parallel_for.
  [[nodiscard]] std::span<const int64_t> node_ends() const { return node_ends_; }
  [[nodiscard]] int64_t num_items() const { return node_ends_.back(); }
  [[nodiscard]] int64_t num_items_of(size_t matrix) const;
  [[nodiscard]] RowItem find(int64_t item) const;

 private:
  struct Share {
    int64_t items_end;
    int64_t row_begin, row_end;
  };
  std::vector<Matrix> matrices_;
  std::vector<Share> shares_;  // [nodes][matrices]
  std::vector<int64_t> node_ends_;
};

}  // namespace foretoken
