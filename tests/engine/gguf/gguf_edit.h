#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/gguf/gguf.h"

namespace foretoken::test {

/// A GGUF file taken apart, to be changed and written again with no check made: good files become bad ones here. For
/// small files.
class GgufEdit {
 public:
  struct Tensor {
    std::string name;
    uint32_t type_id = 0;
    std::vector<int64_t> shape;
    std::vector<std::byte> bytes;
  };

  GgufEdit() = default;  // nothing in it yet
  explicit GgufEdit(const std::string& path);

  std::vector<Tensor> tensors;

  /// The tensor `name`. REQUIRES: it is there.
  [[nodiscard]] Tensor& tensor(std::string_view name);
  void remove_tensor(std::string_view name);
  /// Replaces the tensor's values by zeros of another shape and type.
  void reshape(std::string_view name, uint32_t type_id, std::vector<int64_t> shape, size_t size_bytes);

  void remove_key(std::string_view key);
  // Each replaces the key or adds it.
  void set_uint32(std::string_view key, uint32_t value);
  void set_float32(std::string_view key, float value);
  void set_bool(std::string_view key, bool value);
  void set_string(std::string_view key, std::string_view value);
  void set_int32s(std::string_view key, const std::vector<int64_t>& values);
  void set_strings(std::string_view key, const std::vector<std::string>& values);

  void write(const std::string& path) const;

 private:
  void set_raw(std::string_view key, std::string raw);
  std::vector<std::pair<std::string, std::string>> keys_;  // name; type and value as they stand in a file
};

/// A folder of its own under the system's temporary one, removed at the end with all it holds.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  [[nodiscard]] std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

}  // namespace foretoken::test
