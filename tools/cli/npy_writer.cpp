#include "tools/cli/npy_writer.h"

#include <fmt/format.h>

#include <bit>

#include "kernels/base/error.h"

namespace foretoken {

static_assert(std::endian::native == std::endian::little, "rows are written as they lie in memory");

NpyWriter::NpyWriter(std::string path, std::string_view flag) : file_(std::move(path), flag) {}

void NpyWriter::begin(int64_t num_rows, int64_t num_cols) {
  rows_left_ = num_rows;
  num_cols_ = num_cols;
  std::string dictionary =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", num_rows, num_cols);
  // Magic, version and length take 10 bytes; the data starts at a multiple of 64, after spaces and a newline.
  const size_t padded = (10 + dictionary.size() + 1 + 63) / 64 * 64 - 10;
  dictionary.resize(padded - 1, ' ');
  dictionary += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(padded & 0xff);
  header += static_cast<char>(padded >> 8);
  file_.write(header + dictionary);
}

void NpyWriter::write_row(std::span<const float> row) {
  if (!wanted()) return;
  FT_CHECK_EQ(static_cast<int64_t>(row.size()), num_cols_);
  FT_CHECK(rows_left_ > 0);
  --rows_left_;
  file_.write({reinterpret_cast<const char*>(row.data()), row.size_bytes()});
}

void NpyWriter::commit() {
  if (!wanted()) return;
  FT_CHECK_EQ(rows_left_, 0);
  file_.commit();
}

}  // namespace foretoken
