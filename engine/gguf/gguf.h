#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "kernels/formats/matrix.h"
#include "kernels/formats/weight_type.h"

namespace foretoken {

/// One metadata value. Integers of every width arrive as int64/uint64 by signedness, floats as double. Array elements
/// alike; a string array keeps views into the mapped file.
struct GgufArray;
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, std::shared_ptr<const GgufArray>>;
struct GgufArray {
  std::variant<std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>, std::vector<bool>,
               std::vector<std::string_view>, std::vector<std::shared_ptr<const GgufArray>>>
      elements;
  [[nodiscard]] size_t size() const;
};

/// A file that `foretoken repack` has written holds matrices in the layout that the kernels read (see interleave.h),
/// under type ids of their own, at which every other reader stops: this plus the id of the weights' type.
inline constexpr uint32_t kInterleavedTypeIds = 0x46540000;  // "FT"
/// It says in which version of that layout, and which file it was made from.
inline constexpr std::string_view kRepackVersionKey = "foretoken.repack.version";
inline constexpr std::string_view kRepackSourceKey = "foretoken.repack.source_sha256";
inline constexpr int64_t kRepackVersion = 1;

/// Name of any type id of a file: that of gguf_type_name, with "x16" behind it for interleaved matrices ("Q4_K x16").
[[nodiscard]] std::string tensor_type_name(uint32_t id);

/// One tensor: its description and its bytes in the mapped file.
struct GgufTensor {
  std::string_view name;
  uint32_t type_id = 0;        // GGUF id, supported or not
  std::vector<int64_t> shape;  // ggml order: shape[0] is contiguous; 1 to 4 entries, all > 0
  const std::byte* data =
      nullptr;  // inside the mapping; [data, data + size_bytes) is checked. nullptr if the type is unsupported
  size_t size_bytes = 0;   // 0 if the type is unsupported
  size_t file_offset = 0;  // of data, from the start of its file
  int file_idx = 0;        // of a split model

  /// The rows of an interleaved tensor, shape[1], are a multiple of 16.
  [[nodiscard]] Layout layout() const {
    return type_id >> 16 == kInterleavedTypeIds >> 16 ? Layout::kInterleaved : Layout::kRows;
  }
  [[nodiscard]] std::optional<WeightType> type() const {
    return weight_type_from_id(layout() == Layout::kRows ? type_id : type_id - kInterleavedTypeIds);
  }
  [[nodiscard]] int64_t num_values() const;
};

/// A GGUF file (v2 or v3, little-endian; all parts of a split model), mapped read-only and checked: nothing in it can
/// make a reader of this object step outside the mapping. A file is hostile until checked: counts, offsets, alignments,
/// lengths, overflow of products, truncation, duplicate names, overlapping tensors. Throws InputError with one line
/// that names file, place, value, limit and remedy. Unsupported tensor types are kept with data == nullptr (inspect
/// lists them; the model loader refuses them by name). Format:
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
class GgufFile {
 public:
  /// Opens `path`; if it is part of a split model (`-00001-of-0000N.gguf`), any part: all parts are opened.
  [[nodiscard]] static GgufFile open(const std::string& path);
  /// Adds those tensors of `other` whose names `keep` takes; its metadata is left out. Throws InputError for a name that
  /// is here already.
  void adopt(GgufFile other, const std::function<bool(std::string_view name)>& keep);
  /// Replaces a key or adds it.
  void set_key(std::string_view key, uint64_t value);

  ~GgufFile();
  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;

  [[nodiscard]] const std::string& path() const;  // of the first part
  [[nodiscard]] const std::string& path_of(const GgufTensor& tensor) const;
  [[nodiscard]] size_t size_bytes() const;                    // all parts
  [[nodiscard]] std::span<const GgufTensor> tensors() const;  // in file order
  [[nodiscard]] const GgufTensor* find_tensor(std::string_view name) const;
  [[nodiscard]] const GgufValue* find(std::string_view key) const;
  [[nodiscard]] std::span<const std::pair<std::string_view, GgufValue>> metadata()
      const;  // in file order; of a split model: the first part's

  /// Type and value of a key as they stand in the file, for a writer; empty if there is no such key or set_key() made it.
  [[nodiscard]] std::span<const std::byte> raw_value(std::string_view key) const;

  // Typed access. Each throws InputError naming file and key if the value is missing (no fallback given) or of another
  // kind, or outside [min, max].
  [[nodiscard]] int64_t get_int(std::string_view key, int64_t min, int64_t max) const;
  [[nodiscard]] int64_t get_int(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  [[nodiscard]] double get_float(std::string_view key) const;
  [[nodiscard]] double get_float(std::string_view key, double fallback) const;
  [[nodiscard]] bool get_bool(std::string_view key, bool fallback) const;
  [[nodiscard]] std::string_view get_string(std::string_view key) const;
  [[nodiscard]] std::string_view get_string(std::string_view key, std::string_view fallback) const;
  /// Integer or bool array as int64; a scalar counts as an array of one.
  [[nodiscard]] std::optional<std::vector<int64_t>> find_int_array(std::string_view key) const;
  [[nodiscard]] const std::vector<std::string_view>& get_string_array(std::string_view key) const;

  /// Tells the system that these bytes of the mapping will not be needed soon (after repacking): resident memory stays
  /// low.
  void release(const GgufTensor& tensor) const;
  void release(const std::byte* begin, size_t size_bytes) const;

  /// Throws InputError if a part was written to, or made longer or shorter, since it was opened. `doing`: "loaded".
  void check_unchanged(std::string_view doing) const;

  /// True for a file that `foretoken repack` has written.
  [[nodiscard]] bool is_repacked() const;
  /// See prefer_huge_pages and populate_pages.
  void prefer_huge_pages() const;
  void populate(const std::byte* begin, size_t size_bytes) const;

  /// SHA-256 over header, metadata and tensor directory of every part plus the part sizes and 4 KiB at 64 places of the
  /// data: names the model in reports without reading 20 GB. Of a repacked file: that of the file it was made from.
  [[nodiscard]] std::string fingerprint() const;

 private:
  GgufFile();
  void check_repack() const;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
