#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/formats/matrix.h"
#include "kernels/threads/numa.h"

namespace foretoken {

// A download that breaks off leaves zeros where nothing was written yet: from some byte on to the end of the file, or
// in holes if it fetched several parts at a time. Such a file is well formed and all its numbers are finite.

/// Adds the rows of [row_begin, row_end) whose bytes are all zero to `to`, as ranges in rising order.
void find_zero_rows(const MatrixView& matrix, int64_t row_begin, int64_t row_end, std::vector<RowRange>& to);

/// Where a part of the matrix that was never written begins, in bytes from the matrix's start; nothing if the zeros may
/// be rightful. `zero_rows`: all of them, in any order.
///
/// Rightful are single rows and whole ranges of rows between others: tokens that were never seen, widths padded to a
/// multiple, experts that were pruned. Not rightful are
///   - a matrix of several rows that has nothing else,
///   - zero rows that go on into a part of a neighbouring row: breaks do not fall on the ends of rows, pruning does,
///   - a sixteenth of the rows or more at the very end of a file.
///
/// `in_groups`: what counts as a row here is a group of interleaved rows. Their bytes alternate, so a group of which
/// some rows are zero begins or ends with zeros, and nothing is concluded from neighbours.
[[nodiscard]] std::optional<size_t> find_unwritten(const MatrixView& matrix, std::vector<RowRange> zero_rows,
                                                   bool is_last_in_file, bool in_groups);

}  // namespace foretoken
