#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "kernels/formats/weight_type.h"

namespace foretoken {

/// Writes GGUF v3 files. Declare metadata and tensors, then write(): tensors' bytes are asked for one part at a time,
/// so memory stays constant whatever the file's size.
class GgufWriter {
 public:
  void add_uint32(std::string_view key, uint32_t value);
  void add_int32(std::string_view key, int32_t value);
  void add_float32(std::string_view key, float value);
  void add_bool(std::string_view key, bool value);
  void add_string(std::string_view key, std::string_view value);
  void add_strings(std::string_view key, std::span<const std::string> values);
  void add_int32s(std::string_view key, std::span<const int32_t> values);
  void add_float32s(std::string_view key, std::span<const float> values);

  /// A key of another file: type and value as GgufFile::raw_value() gives them. REQUIRES: they are not empty.
  void add_raw(std::string_view key, std::span<const std::byte> type_and_value);

  /// Where tensors begin: at multiples of this power of two, which also becomes general.alignment. REQUIRES: once.
  void set_alignment(uint32_t alignment);

  /// Rows of a tensor as file bytes: fill(row_begin, row_end, out) with rows counted over all dimensions but the first,
  /// both multiples of kInterleave for an interleaved tensor. Rows may be asked for more than once.
  using Fill = std::function<void(int64_t row_begin, int64_t row_end, std::byte* out)>;
  /// shape in ggml order (shape[0] contiguous).
  void add_tensor(std::string_view name, WeightType type, std::vector<int64_t> shape, Fill fill,
                  Layout layout = Layout::kRows);

  [[nodiscard]] size_t data_bytes() const;  // of all tensors declared, padding included
  /// Writes to `path` as PartFile does, and returns the file's size. progress(bytes_done, bytes_all) may be
  /// empty; it is called after each part. `fill` is called from several threads, each for its own rows. Throws
  /// InputError if the disk refuses.
  size_t write(const std::string& path, const std::function<void(size_t, size_t)>& progress = {}) const;

 private:
  struct Tensor {
    std::string name;
    WeightType type;
    std::vector<int64_t> shape;
    Fill fill;
    Layout layout;
  };
  [[nodiscard]] size_t align_up(size_t n) const { return (n + alignment_ - 1) / alignment_ * alignment_; }
  void add_key(std::string_view key, uint32_t type);
  std::string metadata_;
  uint64_t num_keys_ = 0;
  size_t alignment_ = 32;  // the format's default
  std::vector<Tensor> tensors_;
};

}  // namespace foretoken
