#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tools/cli/output.h"

namespace foretoken {

/// A float32 matrix as a NumPy file, written row by row.
/// Format 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
class NpyWriter {
 public:
  /// `path` empty: nothing is written. Throws InputError if the file cannot be created.
  NpyWriter(std::string path, std::string_view flag);

  [[nodiscard]] bool wanted() const { return file_.wanted(); }
  [[nodiscard]] bool is_stdout() const { return file_.is_stdout(); }
  /// Writes the header. REQUIRES: once, before the rows.
  void begin(int64_t num_rows, int64_t num_cols);
  /// REQUIRES: row.size() == num_cols.
  void write_row(std::span<const float> row);
  /// REQUIRES: num_rows rows were written.
  void commit();

 private:
  OutputFile file_;
  int64_t rows_left_ = 0;
  int64_t num_cols_ = 0;
};

}  // namespace foretoken
