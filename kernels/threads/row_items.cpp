#include "kernels/threads/row_items.h"

#include <algorithm>

namespace foretoken {

void RowItems::reserve(size_t num_matrices) {
  const auto most_nodes = static_cast<size_t>(NumaNodes::of_machine().count());
  matrices_.reserve(num_matrices);
  shares_.reserve(num_matrices * most_nodes);
  node_ends_.reserve(most_nodes);
}

void RowItems::plan(const NumaNodes& nodes, std::span<const Matrix> matrices) {
  matrices_.assign(matrices.begin(), matrices.end());
  shares_.clear();
  node_ends_.clear();
  int64_t end = 0;
  for (int node = 0; node < nodes.count(); ++node) {
    for (const Matrix& m : matrices) {
      const int64_t row_begin = nodes.share_begin(m.num_rows, node), row_end = nodes.share_begin(m.num_rows, node + 1);
      end += (row_end - row_begin + m.rows_per_item - 1) / m.rows_per_item;
      shares_.push_back({end, row_begin, row_end});
    }
    node_ends_.push_back(end);
  }
}

int64_t RowItems::num_items_of(size_t matrix) const {
  int64_t items = 0;
  for (size_t at = matrix; at < shares_.size(); at += matrices_.size()) {
    items += shares_[at].items_end - (at == 0 ? 0 : shares_[at - 1].items_end);
  }
  return items;
}

RowItem RowItems::find(int64_t item) const {
  const auto share =
      std::upper_bound(shares_.begin(), shares_.end(), item, [](int64_t i, const Share& s) { return i < s.items_end; });
  const auto at = static_cast<size_t>(share - shares_.begin()), matrix = at % matrices_.size();
  const int64_t rows = matrices_[matrix].rows_per_item;
  const int64_t begin = share->row_begin + (item - (at == 0 ? 0 : share[-1].items_end)) * rows;
  return {matrix, begin, std::min(begin + rows, share->row_end)};
}

}  // namespace foretoken
