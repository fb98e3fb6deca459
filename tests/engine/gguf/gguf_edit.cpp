#include "tests/engine/gguf/gguf_edit.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"

namespace foretoken::test {

namespace {

constexpr size_t kAlignment = 32;

// Value types of the format.
constexpr uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9;

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

std::string raw_string(std::string_view text) {
  return raw<uint64_t>(text.size()) + std::string(text);
}

struct ToRaw {
  std::string operator()(uint64_t value) const { return raw(kUint32) + raw(static_cast<uint32_t>(value)); }
  std::string operator()(int64_t value) const { return raw(kInt32) + raw(static_cast<int32_t>(value)); }
  std::string operator()(double value) const { return raw(kFloat32) + raw(static_cast<float>(value)); }
  std::string operator()(bool value) const { return raw(kBool) + raw(static_cast<uint8_t>(value)); }
  std::string operator()(std::string_view value) const { return raw(kString) + raw_string(value); }
  std::string operator()(const std::shared_ptr<const GgufArray>& array) const {
    return raw(kArray) + std::visit([](const auto& elements) { return array_body(elements); }, array->elements);
  }

  // Element type, count, elements: each as a value of its own without its four bytes of type.
  template <class Elements>
  static std::string array_body(const Elements& elements) {
    std::string type = raw(kUint32), body;
    for (const auto& element : elements) {
      const std::string value = ToRaw{}(static_cast<typename Elements::value_type>(element));
      type = value.substr(0, 4);
      body += value.substr(4);
    }
    return type + raw<uint64_t>(elements.size()) + body;
  }
};

}  // namespace

GgufEdit::GgufEdit(const std::string& path) {
  const GgufFile file = GgufFile::open(path);
  for (const auto& [key, value] : file.metadata()) keys_.emplace_back(key, std::visit(ToRaw{}, value));
  for (const GgufTensor& t : file.tensors()) {
    tensors.push_back({std::string(t.name), t.type_id, t.shape, std::vector<std::byte>(t.data, t.data + t.size_bytes)});
  }
}

GgufEdit::Tensor& GgufEdit::tensor(std::string_view name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
  FT_CHECK(found != tensors.end());
  return *found;
}

void GgufEdit::remove_tensor(std::string_view name) {
  const size_t removed = std::erase_if(tensors, [&](const Tensor& t) { return t.name == name; });
  FT_CHECK(removed == 1);
}

void GgufEdit::reshape(std::string_view name, uint32_t type_id, std::vector<int64_t> shape, size_t size_bytes) {
  Tensor& t = tensor(name);
  t.type_id = type_id;
  t.shape = std::move(shape);
  t.bytes.assign(size_bytes, std::byte{0});
}

void GgufEdit::set_raw(std::string_view key, std::string value) {
  const auto found = std::find_if(keys_.begin(), keys_.end(), [&](const auto& entry) { return entry.first == key; });
  if (found != keys_.end()) {
    found->second = std::move(value);
  } else {
    keys_.emplace_back(key, std::move(value));
  }
}

void GgufEdit::remove_key(std::string_view key) {
  const size_t removed = std::erase_if(keys_, [&](const auto& entry) { return entry.first == key; });
  FT_CHECK(removed == 1);
}

void GgufEdit::set_uint32(std::string_view key, uint32_t value) {
  set_raw(key, raw(kUint32) + raw(value));
}
void GgufEdit::set_float32(std::string_view key, float value) {
  set_raw(key, raw(kFloat32) + raw(value));
}
void GgufEdit::set_bool(std::string_view key, bool value) {
  set_raw(key, ToRaw{}(value));
}
void GgufEdit::set_string(std::string_view key, std::string_view value) {
  set_raw(key, ToRaw{}(value));
}

void GgufEdit::set_int32s(std::string_view key, const std::vector<int64_t>& values) {
  set_raw(key, raw(kArray) + ToRaw::array_body(values));
}

void GgufEdit::set_strings(std::string_view key, const std::vector<std::string>& values) {
  set_raw(key, raw(kArray) + ToRaw::array_body(std::vector<std::string_view>(values.begin(), values.end())));
}

void GgufEdit::write(const std::string& path) const {
  const auto padding = [](size_t size) { return (kAlignment - size % kAlignment) % kAlignment; };
  std::string out = "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(tensors.size()) + raw<uint64_t>(keys_.size());
  for (const auto& [key, value] : keys_) out += raw_string(key) + value;
  uint64_t offset = 0;
  for (const Tensor& t : tensors) {
    out += raw_string(t.name) + raw(static_cast<uint32_t>(t.shape.size()));
    for (int64_t size : t.shape) out += raw(size);
    out += raw(t.type_id) + raw(offset);
    offset += t.bytes.size() + padding(t.bytes.size());
  }
  out.append(padding(out.size()), '\0');
  for (const Tensor& t : tensors) {
    out.append(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size());
    out.append(padding(t.bytes.size()), '\0');
  }
  std::ofstream file(path, std::ios::binary);
  file.write(out.data(), static_cast<std::streamsize>(out.size()));
  FT_CHECK(file.good());
}

TempFolder::TempFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "foretoken-test-XXXXXX").string();
  FT_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace foretoken::test
