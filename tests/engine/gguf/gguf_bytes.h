#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

/// Builds the bytes of a GGUF file field by field, right or wrong, and independently of GgufWriter.
class GgufBytes {
 public:
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data that bytes() lays out; general.alignment is not written
  int64_t extra_keys = 0;   // added to the true counts
  int64_t extra_tensors = 0;

  template <typename T>
  static std::string number(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof value};
  }
  static std::string string(std::string_view text) { return number<uint64_t>(text.size()) + std::string(text); }

  template <typename T>
  static std::string array(uint32_t type, const std::vector<T>& values) {
    std::string out = number(type) + number<uint64_t>(values.size());
    for (const T& value : values) out += number(value);
    return out;
  }
  static std::string array(const std::vector<std::string>& values) {
    std::string out = number<uint32_t>(8) + number<uint64_t>(values.size());
    for (const std::string& value : values) out += string(value);
    return out;
  }

  GgufBytes& key(std::string_view name, uint32_t type, std::string_view value) {
    metadata_ += string(name) + number(type) + std::string(value);
    ++num_keys_;
    return *this;
  }
  GgufBytes& key(std::string_view name, std::string_view text) { return key(name, 8, string(text)); }
  GgufBytes& key(std::string_view name, uint32_t value) { return key(name, 4, number(value)); }

  /// Takes the next place in the data. `size_bytes` is what the file shall hold, whatever the shape says; 0: the file
  /// does not grow.
  GgufBytes& tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type, uint64_t size_bytes) {
    return tensor_at(name, shape, type, next_offset(), size_bytes);
  }
  GgufBytes& tensor_at(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset,
                       uint64_t size_bytes) {
    directory_ += string(name) + number(static_cast<uint32_t>(shape.size()));
    for (uint64_t dim : shape) directory_ += number(dim);
    directory_ += number(type) + number(offset);
    ++num_tensors_;
    if (size_bytes != 0) data_bytes_ = std::max(data_bytes_, static_cast<size_t>(offset + size_bytes));
    return *this;
  }
  [[nodiscard]] uint64_t next_offset() const { return (data_bytes_ + alignment - 1) / alignment * alignment; }

  /// Header, metadata and tensor directory.
  [[nodiscard]] std::string head() const {
    return magic + number(version) + number<uint64_t>(num_tensors_ + extra_tensors) +
           number<uint64_t>(num_keys_ + extra_keys) + metadata_ + directory_;
  }
  /// The whole file; byte i of the data is i * 31.
  [[nodiscard]] std::string bytes() const {
    std::string out = head();
    if (num_tensors_ == 0) return out;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    for (size_t i = 0; i < data_bytes_; ++i) out += static_cast<char>(i * 31);
    return out;
  }

 private:
  std::string metadata_;
  std::string directory_;
  uint64_t num_keys_ = 0;
  uint64_t num_tensors_ = 0;
  size_t data_bytes_ = 0;
};

}  // namespace foretoken
