#include "engine/model/zero_rows.h"

#include <algorithm>
#include <cstring>

namespace foretoken {

namespace {

// Fewer zero bytes at a row's end than these are its values: 8 bytes are two floats, or 16 weights of four bits.
constexpr size_t kFewestBytes = 8;
constexpr int64_t kTailShare = 16;

const std::byte* row(const MatrixView& matrix, int64_t r) {
  return matrix.data + static_cast<size_t>(r) * matrix.row_bytes();
}

bool is_zero(const std::byte* bytes, size_t size_bytes) {
  return bytes[0] == std::byte{0} && std::memcmp(bytes, bytes + 1, size_bytes - 1) == 0;
}

// Zero bytes at the end, and at the beginning, of a row; 0 where there is no such row.
size_t zeros_behind(const MatrixView& matrix, int64_t r) {
  if (r < 0) return 0;
  const std::byte *begin = row(matrix, r), *end = begin + matrix.row_bytes();
  const std::byte* at = end;
  while (at > begin && at[-1] == std::byte{0}) --at;
  return static_cast<size_t>(end - at);
}

size_t zeros_before(const MatrixView& matrix, int64_t r) {
  if (r >= matrix.num_rows) return 0;
  const std::byte *begin = row(matrix, r), *end = begin + matrix.row_bytes();
  return static_cast<size_t>(std::find_if(begin, end, [](std::byte b) { return b != std::byte{0}; }) - begin);
}

std::vector<RowRange> merged(std::vector<RowRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const RowRange& a, const RowRange& b) { return a.begin < b.begin; });
  std::vector<RowRange> runs;
  for (const RowRange& range : ranges) {
    if (!runs.empty() && runs.back().end >= range.begin) {
      runs.back().end = std::max(runs.back().end, range.end);
    } else {
      runs.push_back(range);
    }
  }
  return runs;
}

}  // namespace

void find_zero_rows(const MatrixView& matrix, int64_t row_begin, int64_t row_end, std::vector<RowRange>& to) {
  bool in_run = false;
  for (int64_t r = row_begin; r < row_end; ++r) {
    const bool zero = is_zero(row(matrix, r), matrix.row_bytes());
    if (zero && in_run) ++to.back().end;
    if (zero && !in_run) to.push_back({r, r + 1});
    in_run = zero;
  }
}

std::optional<size_t> find_unwritten(const MatrixView& matrix, std::vector<RowRange> zero_rows, bool is_last_in_file,
                                     bool in_groups) {
  if (matrix.num_rows < 2) return std::nullopt;
  for (const RowRange& run : merged(std::move(zero_rows))) {
    const size_t begin = static_cast<size_t>(run.begin) * matrix.row_bytes();
    if (run.begin == 0 && run.end == matrix.num_rows) return 0;
    // Columns that are zero in every row end the row before as well.
    const size_t behind = in_groups ? 0 : zeros_behind(matrix, run.begin - 1);
    const size_t before = in_groups ? 0 : zeros_before(matrix, run.end);
    if (behind >= kFewestBytes && behind > zeros_behind(matrix, run.begin - 2)) return begin - behind;
    if (before >= kFewestBytes && before > zeros_before(matrix, run.end + 1)) return begin;
    const int64_t rows = run.end - run.begin;
    if (is_last_in_file && run.end == matrix.num_rows && rows >= 2 && rows * kTailShare >= matrix.num_rows)
      return begin;
  }
  return std::nullopt;
}

}  // namespace foretoken
