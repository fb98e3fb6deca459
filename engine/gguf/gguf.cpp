#include "engine/gguf/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <iterator>
#include <limits>

#include "engine/gguf/gguf_part.h"
#include "engine/gguf/mapped_file.h"
#include "engine/gguf/sha256.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

struct Part {
  std::string path;
  MappedFile file;
  GgufPart content;
};

Part open_part(const std::string& path) {
  MappedFile file = MappedFile::open(path);
  GgufPart content = parse_gguf_part(file.bytes(), path);
  return {path, std::move(file), std::move(content)};
}

[[noreturn]] void fail(const std::string& path, std::string_view what) {
  throw InputError(fmt::format("{}: {}", printable_path(path), what));
}

const GgufValue* find_key(const Part& part, std::string_view key) {
  for (const auto& [name, value] : part.content.metadata) {
    if (name == key) return &value;
  }
  return nullptr;
}

// An integer of either signedness that int64 can hold.
std::optional<int64_t> as_int(const GgufValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(&value)) {
    if (*number <= static_cast<uint64_t>(INT64_MAX)) return static_cast<int64_t>(*number);
  }
  return std::nullopt;
}

std::string kind_of(const GgufValue& value) {
  if (const auto* array = std::get_if<std::shared_ptr<const GgufArray>>(&value)) {
    constexpr std::string_view kKinds[] = {"unsigned integers", "integers", "floats", "bools", "strings", "arrays"};
    return fmt::format("an array of {} {}", (*array)->size(), kKinds[(*array)->elements.index()]);
  }
  if (const auto* number = std::get_if<uint64_t>(&value)) return fmt::format("the integer {}", *number);
  if (const auto* number = std::get_if<int64_t>(&value)) return fmt::format("the integer {}", *number);
  if (const auto* number = std::get_if<double>(&value)) return fmt::format("the float {}", *number);
  if (const auto* flag = std::get_if<bool>(&value)) return fmt::format("the bool {}", *flag);
  return fmt::format("the string \"{}\"", printable(std::get<std::string_view>(value)));
}

// Names of split models: NAME-00002-of-00005.gguf is part 2 of 5.
struct SplitName {
  std::string prefix;  // "NAME"
  int part = 0;        // from 1
  int num_parts = 0;

  static std::optional<SplitName> parse(const std::string& path) {
    constexpr std::string_view kPattern = "-#####-of-#####.gguf";
    if (path.size() < kPattern.size()) return std::nullopt;
    const size_t begin = path.size() - kPattern.size();
    for (size_t i = 0; i < kPattern.size(); ++i) {
      const char c = path[begin + i];
      if (kPattern[i] == '#' ? (c < '0' || c > '9') : c != kPattern[i]) return std::nullopt;
    }
    return SplitName{path.substr(0, begin), std::stoi(path.substr(begin + 1, 5)),
                     std::stoi(path.substr(begin + 10, 5))};
  }
  std::string path_of(int part_number) const {
    return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, part_number, num_parts);
  }
};

int64_t split_number(const Part& part, std::string_view key) {
  const GgufValue* value = find_key(part, key);
  if (value == nullptr)
    fail(part.path, fmt::format("metadata key {}: missing in a part of a split model; the file is damaged", key));
  const auto number = as_int(*value);
  if (!number || *number < 0) {
    fail(part.path,
         fmt::format("metadata key {}: {}; a number not below 0 is needed; the file is damaged", key, kind_of(*value)));
  }
  return *number;
}

// The split's keys must say what the file's name says.
void check_split_part(const Part& part, const SplitName& name, int part_number) {
  const int64_t count = split_number(part, "split.count");
  if (count != name.num_parts) {
    fail(part.path,
         fmt::format("metadata key split.count: {}, but its name says {} parts; give the files their own names back",
                     count, name.num_parts));
  }
  const int64_t no = split_number(part, "split.no");
  if (no != part_number - 1) {
    fail(part.path, fmt::format("metadata key split.no: {} (counted from 0), but its name says part {}; give the files "
                                "their own names back",
                                no, part_number));
  }
}

std::vector<Part> open_parts(const std::string& path) {
  Part opened = open_part(path);
  const auto name = SplitName::parse(path);
  const int64_t count = find_key(opened, "split.count") == nullptr ? 0 : split_number(opened, "split.count");
  std::vector<Part> parts;
  if (count <= 1 && (!name || name->num_parts == 1)) {
    parts.push_back(std::move(opened));
    return parts;
  }
  if (!name) {
    fail(path, fmt::format("is one of {} parts of a split model, but its name does not end in -00001-of-{:05}.gguf, so "
                           "the others cannot be "
                           "found; give the files their own names back",
                           count, count));
  }
  if (name->part < 1 || name->part > name->num_parts) {
    fail(path,
         fmt::format("its name says part {} of {}; give the files their own names back", name->part, name->num_parts));
  }
  check_split_part(opened, *name, name->part);
  for (int part_number = 1; part_number <= name->num_parts; ++part_number) {
    if (part_number == name->part) {
      parts.push_back(std::move(opened));
      continue;
    }
    try {
      parts.push_back(open_part(name->path_of(part_number)));
    } catch (const InputError& error) {
      throw InputError(fmt::format("{} (part {} of {} of a split model)", error.what(), part_number, name->num_parts));
    }
    check_split_part(parts.back(), *name, part_number);
  }
  return parts;
}

}  // namespace

size_t GgufArray::size() const {
  return std::visit([](const auto& list) { return list.size(); }, elements);
}

int64_t GgufTensor::num_values() const {
  int64_t product = 1;
  for (int64_t dim : shape) product *= dim;
  return product;
}

struct GgufFile::Impl {
  std::vector<Part> parts;
  std::vector<GgufTensor> tensors;
  std::vector<uint32_t> tensor_order;  // positions in `tensors`, by name
  std::vector<uint32_t> key_order;     // positions in the first part's metadata, by key
  std::deque<std::string> set_keys;    // names of keys that no file has

  const std::vector<std::pair<std::string_view, GgufValue>>& metadata() const { return parts[0].content.metadata; }

  void index_tensors() {
    for (size_t file_idx = 0; file_idx < parts.size(); ++file_idx) {
      for (GgufTensor& tensor : parts[file_idx].content.tensors) {
        tensor.file_idx = static_cast<int>(file_idx);
        tensors.push_back(std::move(tensor));
      }
      parts[file_idx].content.tensors = {};
    }
    sort_tensors("the parts do not belong together");
  }

  void sort_tensors(std::string_view why_twice) {
    std::vector<std::string_view> names;
    names.reserve(tensors.size());
    for (const GgufTensor& tensor : tensors) names.push_back(tensor.name);
    tensor_order = sort_by_name(names);
    for (size_t i = 1; i < tensor_order.size(); ++i) {
      const GgufTensor& tensor = tensors[tensor_order[i]];
      if (tensors[tensor_order[i - 1]].name == tensor.name) {
        fail(parts[tensor.file_idx].path,
             fmt::format("tensor {} is also in {}; {}", tensor.name,
                         printable_path(parts[tensors[tensor_order[i - 1]].file_idx].path), why_twice));
      }
    }
  }

  void index_metadata() {
    std::vector<std::string_view> names;
    names.reserve(metadata().size());
    for (const auto& [key, value] : metadata()) names.push_back(key);
    key_order = sort_by_name(names);
  }

  void check_split_tensor_count() const {
    if (parts.size() < 2) return;
    const int64_t expected = split_number(parts[0], "split.tensors.count");
    if (expected != static_cast<int64_t>(tensors.size())) {
      fail(parts[0].path, fmt::format("metadata key split.tensors.count: {}, but the {} parts have {} tensors; the "
                                      "parts do not belong together",
                                      expected, parts.size(), tensors.size()));
    }
  }

  // What several parts say must be the same; most parts say nothing but their own number.
  void check_split_keys() const {
    for (size_t i = 1; i < parts.size(); ++i) {
      for (const auto& [key, value] : parts[i].content.metadata) {
        const GgufValue* first = find_key(parts[0], key);
        if (key == "split.no" || first == nullptr || describe(*first) == describe(value)) continue;
        fail(parts[i].path,
             fmt::format("metadata key {}: {}, but {} in {}; the parts are of different models", printable(key),
                         kind_of(value), kind_of(*first), printable_path(parts[0].path)));
      }
    }
  }

  // Tells two values apart.
  static std::string describe(const GgufValue& value) {
    if (const auto* text = std::get_if<std::string_view>(&value)) return std::string(*text);
    return kind_of(value);
  }

  [[noreturn]] void fail_key(std::string_view key, std::string_view what) const {
    fail(parts[0].path, fmt::format("metadata key {}: {}", printable(key), what));
  }
  [[noreturn]] void fail_missing(std::string_view key) const {
    fail_key(key, "missing; the file is incomplete or of another kind of model, convert it again");
  }
};

std::string tensor_type_name(uint32_t id) {
  if (id >> 16 != kInterleavedTypeIds >> 16) return std::string(gguf_type_name(id));
  return fmt::format("{} x{}", gguf_type_name(id - kInterleavedTypeIds), kInterleave);
}

GgufFile::GgufFile() : impl_(std::make_unique<Impl>()) {}
GgufFile::~GgufFile() = default;
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;

GgufFile GgufFile::open(const std::string& path) {
  GgufFile file;
  file.impl_->parts = open_parts(path);
  file.impl_->check_split_keys();
  file.impl_->index_tensors();
  file.impl_->index_metadata();
  file.impl_->check_split_tensor_count();
  file.check_repack();
  return file;
}

void GgufFile::adopt(GgufFile other, const std::function<bool(std::string_view name)>& keep) {
  const auto first_idx = static_cast<int>(impl_->parts.size());
  for (GgufTensor& tensor : other.impl_->tensors) {
    if (!keep(tensor.name)) continue;
    tensor.file_idx += first_idx;
    impl_->tensors.push_back(std::move(tensor));
  }
  std::move(other.impl_->parts.begin(), other.impl_->parts.end(), std::back_inserter(impl_->parts));
  impl_->sort_tensors("a tensor may be in one of them only");
}

void GgufFile::set_key(std::string_view key, uint64_t value) {
  auto& metadata = impl_->parts[0].content.metadata;
  const auto found =
      std::find_if(metadata.begin(), metadata.end(), [&](const auto& entry) { return entry.first == key; });
  if (found != metadata.end()) {
    found->second = value;
    impl_->parts[0].content.raw_values[found - metadata.begin()] = {};
    return;
  }
  metadata.emplace_back(impl_->set_keys.emplace_back(key), value);
  impl_->parts[0].content.raw_values.emplace_back();
  impl_->index_metadata();
}

const std::string& GgufFile::path() const {
  return impl_->parts[0].path;
}

const std::string& GgufFile::path_of(const GgufTensor& tensor) const {
  return impl_->parts[tensor.file_idx].path;
}

void GgufFile::check_unchanged(std::string_view doing) const {
  for (const Part& part : impl_->parts) {
    if (!part.file.has_changed()) continue;
    fail(part.path,
         fmt::format("was written to while it was {}; wait until it is whole (a download?), then start again", doing));
  }
}

size_t GgufFile::size_bytes() const {
  size_t sum = 0;
  for (const Part& part : impl_->parts) sum += part.file.bytes().size();
  return sum;
}

std::span<const GgufTensor> GgufFile::tensors() const {
  return impl_->tensors;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto& order = impl_->tensor_order;
  const auto found = std::lower_bound(order.begin(), order.end(), name, [&](uint32_t idx, std::string_view wanted) {
    return impl_->tensors[idx].name < wanted;
  });
  return found != order.end() && impl_->tensors[*found].name == name ? &impl_->tensors[*found] : nullptr;
}

std::span<const std::pair<std::string_view, GgufValue>> GgufFile::metadata() const {
  return impl_->metadata();
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto& order = impl_->key_order;
  const auto& entries = impl_->metadata();
  const auto found = std::lower_bound(order.begin(), order.end(), key, [&](uint32_t idx, std::string_view wanted) {
    return entries[idx].first < wanted;
  });
  return found != order.end() && entries[*found].first == key ? &entries[*found].second : nullptr;
}

std::span<const std::byte> GgufFile::raw_value(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  const auto found = std::find_if(impl_->metadata().begin(), impl_->metadata().end(),
                                  [&](const auto& entry) { return &entry.second == value; });
  return impl_->parts[0].content.raw_values[found - impl_->metadata().begin()];
}

int64_t GgufFile::get_int(std::string_view key, int64_t min, int64_t max) const {
  const GgufValue* value = find(key);
  if (value == nullptr) impl_->fail_missing(key);
  const auto number = as_int(*value);
  if (!number || *number < min || *number > max) {
    impl_->fail_key(key, fmt::format("{}; an integer from {} to {} is needed", kind_of(*value), min, max));
  }
  return *number;
}

int64_t GgufFile::get_int(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  return find(key) == nullptr ? fallback : get_int(key, min, max);
}

double GgufFile::get_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) impl_->fail_missing(key);
  if (const auto* number = std::get_if<double>(value); number != nullptr && std::isfinite(*number)) return *number;
  if (const auto number = as_int(*value)) return static_cast<double>(*number);
  impl_->fail_key(key, fmt::format("{}; a finite number is needed", kind_of(*value)));
}

double GgufFile::get_float(std::string_view key, double fallback) const {
  return find(key) == nullptr ? fallback : get_float(key);
}

bool GgufFile::get_bool(std::string_view key, bool fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return fallback;
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  impl_->fail_key(key, fmt::format("{}; a bool is needed", kind_of(*value)));
}

std::string_view GgufFile::get_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) impl_->fail_missing(key);
  if (const auto* text = std::get_if<std::string_view>(value)) return *text;
  impl_->fail_key(key, fmt::format("{}; a string is needed", kind_of(*value)));
}

std::string_view GgufFile::get_string(std::string_view key, std::string_view fallback) const {
  return find(key) == nullptr ? fallback : get_string(key);
}

std::optional<std::vector<int64_t>> GgufFile::find_int_array(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto number = as_int(*value)) return std::vector{*number};
  if (const auto* flag = std::get_if<bool>(value)) return std::vector{int64_t{*flag}};
  if (const auto* array = std::get_if<std::shared_ptr<const GgufArray>>(value)) {
    const auto& elements = (*array)->elements;
    if (const auto* list = std::get_if<std::vector<int64_t>>(&elements)) return *list;
    if (const auto* list = std::get_if<std::vector<bool>>(&elements))
      return std::vector<int64_t>(list->begin(), list->end());
    if (const auto* list = std::get_if<std::vector<uint64_t>>(&elements)) {
      const auto too_big =
          std::find_if(list->begin(), list->end(), [](uint64_t v) { return v > static_cast<uint64_t>(INT64_MAX); });
      if (too_big != list->end())
        impl_->fail_key(key, fmt::format("{} in the array; the limit is {}", *too_big, INT64_MAX));
      return std::vector<int64_t>(list->begin(), list->end());
    }
  }
  impl_->fail_key(key, fmt::format("{}; an array of integers is needed", kind_of(*value)));
}

const std::vector<std::string_view>& GgufFile::get_string_array(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) impl_->fail_missing(key);
  if (const auto* array = std::get_if<std::shared_ptr<const GgufArray>>(value)) {
    if (const auto* list = std::get_if<std::vector<std::string_view>>(&(*array)->elements)) return *list;
  }
  impl_->fail_key(key, fmt::format("{}; an array of strings is needed", kind_of(*value)));
}

bool GgufFile::is_repacked() const {
  return find(kRepackVersionKey) != nullptr;
}

void GgufFile::check_repack() const {
  constexpr std::string_view kRemedy = "repack the original file with this program";
  if (is_repacked()) {
    const auto version = as_int(*find(kRepackVersionKey));
    if (version != kRepackVersion) {
      impl_->fail_key(kRepackVersionKey,
                      fmt::format("{}; this program reads version {}; {}",
                                  version ? std::to_string(*version) : "no integer", kRepackVersion, kRemedy));
    }
    const std::string_view source = get_string(kRepackSourceKey);
    if (source.size() != 64 || source.find_first_not_of("0123456789abcdef") != std::string_view::npos)
      impl_->fail_key(kRepackSourceKey, fmt::format("is no SHA-256; {}", kRemedy));
    return;
  }
  for (const GgufTensor& tensor : tensors()) {
    if (tensor.layout() != Layout::kInterleaved) continue;
    fail(path(), fmt::format("tensor {}: its type {} belongs to repacked files, and there is no metadata key {}; {}",
                             printable(tensor.name), tensor_type_name(tensor.type_id), kRepackVersionKey, kRemedy));
  }
}

void GgufFile::prefer_huge_pages() const {
  for (const Part& part : impl_->parts) foretoken::prefer_huge_pages(part.file.bytes());
}

void GgufFile::populate(const std::byte* begin, size_t size_bytes) const {
  populate_pages(begin, size_bytes);
}

void GgufFile::release(const GgufTensor& tensor) const {
  if (tensor.data != nullptr) release(tensor.data, tensor.size_bytes);
}

void GgufFile::release(const std::byte* begin, size_t size_bytes) const {
  release_pages(begin, size_bytes);
}

std::string GgufFile::fingerprint() const {
  if (is_repacked()) return std::string(get_string(kRepackSourceKey));
  constexpr size_t kNumSamples = 64;
  constexpr size_t kSampleBytes = 4096;
  Sha256 hash;
  for (const Part& part : impl_->parts) {
    const std::span<const std::byte> bytes = part.file.bytes();
    const uint64_t size_bytes = bytes.size();
    hash.update(std::as_bytes(std::span(&size_bytes, 1)));
    hash.update(bytes.first(part.content.directory_bytes));
    const std::span<const std::byte> data = bytes.subspan(part.content.data_begin);
    if (data.size() <= kNumSamples * kSampleBytes) {
      hash.update(data);
      continue;
    }
    // First and last sample touch the ends of the data.
    for (size_t i = 0; i < kNumSamples; ++i) {
      const size_t step = (data.size() - kSampleBytes) / (kNumSamples - 1);
      const size_t begin = i + 1 == kNumSamples ? data.size() - kSampleBytes : i * step;
      hash.update(data.subspan(begin, kSampleBytes));
    }
  }
  return hash.hex();
}

}  // namespace foretoken
