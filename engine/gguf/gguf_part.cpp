#include "engine/gguf/gguf_part.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "kernels/formats/interleave.h"

namespace foretoken {

static_assert(std::endian::native == std::endian::little, "GGUF files are read as they lie");

namespace {

constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;  // the format asks for a multiple of 8
constexpr uint64_t kMaxAlignment = uint64_t{1} << 30;
constexpr int kMaxDims = 4;

// Ids of metadata value types in the file.
enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
  kNumValueTypes = 13,
};

// Fewest bytes that a value of the type takes in the file, indexed by ValueType: what bounds a count before anything is
// allocated.
constexpr size_t kMinValueBytes[kNumValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

constexpr size_t kMinKeyBytes = 8 + 1 + 4 + 1;  // length, one character, type, one byte
constexpr size_t kMinTensorBytes =
    8 + 1 + 4 + 8 + 4 + 8;  // length, one character, dimensions, one of them, type, offset

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out;
  for (int64_t dim : shape) out += (out.empty() ? "" : " x ") + std::to_string(dim);
  return out;
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  GgufPart parse() {
    read_header();
    read_metadata();
    read_tensor_directory();
    part_.directory_bytes = pos_;
    locate_data();
    return std::move(part_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw InputError(fmt::format("{}: {}{}", printable_path(path_), place_.empty() ? "" : place_ + ": ", what));
  }

  size_t bytes_left() const { return bytes_.size() - pos_; }

  // REQUIRES: n is a constant or was compared with bytes_left() already; here it is checked again.
  const std::byte* take(size_t n, std::string_view what) {
    if (n > bytes_left()) {
      fail(fmt::format(
          "{} needs {} bytes at offset {}, but the file ends at {}; it is truncated or damaged, download it again",
          what, n, pos_, bytes_.size()));
    }
    pos_ += n;
    return bytes_.data() + pos_ - n;
  }

  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof value, what), sizeof value);
    return value;
  }

  std::string_view read_string(std::string_view what, size_t max_bytes) {
    const auto length = read<uint64_t>("the length of a string");
    if (length > bytes_left()) {
      fail(fmt::format(
          "{} has length {}, but {} bytes are left in the file; it is truncated or damaged, download it again", what,
          length, bytes_left()));
    }
    if (length > max_bytes) fail(fmt::format("{} has length {}; the limit is {} bytes", what, length, max_bytes));
    return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
  }

  // A key or a tensor's name: programs print it, so it must be printable UTF-8.
  std::string_view read_name(std::string_view what, size_t max_bytes) {
    const std::string_view name = read_string(what, max_bytes);
    if (name.empty()) fail(fmt::format("{} is empty; the file is damaged", what));
    if (printable(name, max_bytes) != name) {
      fail(fmt::format("{} is not printable UTF-8: \"{}\"; the file is damaged", what, printable(name)));
    }
    return name;
  }

  // Refuses a count that the rest of the file cannot hold.
  void check_count(std::string_view what, uint64_t count, size_t min_bytes) const {
    if (count > bytes_left() / min_bytes) {
      fail(fmt::format(
          "{} is {}, but the {} bytes left in the file hold at most {}; it is truncated or damaged, download it again",
          what, count, bytes_left(), bytes_left() / min_bytes));
    }
  }

  // REQUIRES: check_count(count), so the product cannot overflow.
  void spend_memory(std::string_view what, uint64_t count, size_t bytes_each) {
    const size_t needed = count * bytes_each;
    if (needed > memory_left_) {
      fail(fmt::format("{} needs {} MiB of memory, above the limit of {} MiB for the metadata of one file", what,
                       needed >> 20, kMaxGgufMemory >> 20));
    }
    memory_left_ -= needed;
  }

  void read_header() {
    place_ = "header";
    if (bytes_.size() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) fail_magic();
    pos_ = 4;
    const auto version = read<uint32_t>("the version");
    const uint32_t swapped = __builtin_bswap32(version);
    if (swapped >= 1 && swapped <= 3) {
      fail(fmt::format("is a big-endian GGUF v{} file; only little-endian files are supported, convert it", swapped));
    }
    if (version == 1)
      fail("is GGUF version 1; versions 2 and 3 are supported, convert it again with a current converter");
    if (version != 2 && version != 3) fail(fmt::format("GGUF version {}; versions 2 and 3 are supported", version));
    num_tensors_ = read<uint64_t>("the number of tensors");
    num_keys_ = read<uint64_t>("the number of metadata keys");
    check_count("the number of tensors", num_tensors_, kMinTensorBytes);
    check_count("the number of metadata keys", num_keys_, kMinKeyBytes);
  }

  [[noreturn]] void fail_magic() const {
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()), std::min<size_t>(bytes_.size(), 64));
    if (text.starts_with("version https://git-lfs")) {
      fail("is a Git LFS pointer, not the model itself; fetch it with `git lfs pull`");
    }
    fail(fmt::format("is not a GGUF file: it begins with \"{}\" instead of \"GGUF\"", printable(text.substr(0, 4))));
  }

  void read_metadata() {
    // What an entry costs in memory: itself, and its place in the index by name with the views that are sorted.
    spend_memory("the number of metadata keys", num_keys_,
                 sizeof(part_.metadata[0]) + sizeof(part_.raw_values[0]) + 32);
    part_.metadata.reserve(num_keys_);
    part_.raw_values.reserve(num_keys_);
    for (uint64_t i = 0; i < num_keys_; ++i) {
      place_ = fmt::format("metadata key {} of {}", i + 1, num_keys_);
      const std::string_view key = read_name("its name", kMaxGgufKeyBytes);
      place_ = fmt::format("metadata key {}", printable(key));
      const size_t begin = pos_;
      const auto type = read<uint32_t>("its type");
      part_.metadata.emplace_back(key, read_value(type, 0));
      part_.raw_values.push_back(bytes_.subspan(begin, pos_ - begin));
    }
    place_ = "metadata";
    std::vector<std::string_view> names;
    names.reserve(part_.metadata.size());
    for (const auto& [key, value] : part_.metadata) names.push_back(key);
    check_unique("key", names);
  }

  GgufValue read_value(uint32_t type, int depth) {
    switch (type) {
      case kUint8:
        return uint64_t{read<uint8_t>("its value")};
      case kInt8:
        return int64_t{read<int8_t>("its value")};
      case kUint16:
        return uint64_t{read<uint16_t>("its value")};
      case kInt16:
        return int64_t{read<int16_t>("its value")};
      case kUint32:
        return uint64_t{read<uint32_t>("its value")};
      case kInt32:
        return int64_t{read<int32_t>("its value")};
      case kUint64:
        return uint64_t{read<uint64_t>("its value")};
      case kInt64:
        return int64_t{read<int64_t>("its value")};
      case kFloat32:
        return double{read<float>("its value")};
      case kFloat64:
        return double{read<double>("its value")};
      case kBool:
        return read_bool();
      case kString:
        return read_string("its value", SIZE_MAX);
      case kArray:
        return read_array(depth + 1);
      default:
        fail_value_type(type);
    }
  }

  [[noreturn]] void fail_value_type(uint32_t type) const {
    fail(fmt::format("value type {} is unknown; types 0 to {} exist; the file is damaged", type, kNumValueTypes - 1));
  }

  bool read_bool() {
    const auto value = read<uint8_t>("its value");
    if (value > 1) fail(fmt::format("a bool has the value {}; 0 or 1 allowed; the file is damaged", value));
    return value == 1;
  }

  std::shared_ptr<const GgufArray> read_array(int depth) {
    if (depth > kMaxGgufArrayDepth) fail(fmt::format("arrays are nested deeper than {} levels", kMaxGgufArrayDepth));
    const auto type = read<uint32_t>("the type of its elements");
    if (type >= kNumValueTypes) fail_value_type(type);
    const auto count = read<uint64_t>("the number of its elements");
    check_count("the number of its elements", count, kMinValueBytes[type]);
    // 160: a shared_ptr, its control block, the GgufArray and the allocator's overhead.
    spend_memory("the array", 1, 160);
    auto array = std::make_shared<GgufArray>();
    switch (type) {
      case kUint8:
        array->elements = read_numbers<uint8_t, uint64_t>(count);
        break;
      case kInt8:
        array->elements = read_numbers<int8_t, int64_t>(count);
        break;
      case kUint16:
        array->elements = read_numbers<uint16_t, uint64_t>(count);
        break;
      case kInt16:
        array->elements = read_numbers<int16_t, int64_t>(count);
        break;
      case kUint32:
        array->elements = read_numbers<uint32_t, uint64_t>(count);
        break;
      case kInt32:
        array->elements = read_numbers<int32_t, int64_t>(count);
        break;
      case kUint64:
        array->elements = read_numbers<uint64_t, uint64_t>(count);
        break;
      case kInt64:
        array->elements = read_numbers<int64_t, int64_t>(count);
        break;
      case kFloat32:
        array->elements = read_numbers<float, double>(count);
        break;
      case kFloat64:
        array->elements = read_numbers<double, double>(count);
        break;
      case kBool:
        array->elements = read_elements<bool>(count, 1, [this] { return read_bool(); });
        break;
      case kString:
        array->elements = read_elements<std::string_view>(count, sizeof(std::string_view),
                                                          [this] { return read_string("an element", SIZE_MAX); });
        break;
      case kArray:
        array->elements = read_elements<std::shared_ptr<const GgufArray>>(
            count, sizeof(std::shared_ptr<const GgufArray>), [this, depth] { return read_array(depth + 1); });
        break;
    }
    return array;
  }

  template <typename FileType, typename Element>
  std::vector<Element> read_numbers(uint64_t count) {
    return read_elements<Element>(count, sizeof(Element), [this] { return Element{read<FileType>("an element")}; });
  }

  template <typename Element, typename ReadOne>
  std::vector<Element> read_elements(uint64_t count, size_t bytes_each, const ReadOne& read_one) {
    spend_memory("the array", count, bytes_each);
    std::vector<Element> elements;
    elements.reserve(count);
    for (uint64_t i = 0; i < count; ++i) elements.push_back(read_one());
    return elements;
  }

  void read_tensor_directory() {
    place_ = "tensor directory";
    check_count("the number of tensors", num_tensors_, kMinTensorBytes);
    // 48: a shape on the heap. 160: indices by name and by place, and the copy while parts are joined.
    spend_memory("the number of tensors", num_tensors_, sizeof(GgufTensor) + 48 + 160);
    part_.tensors.reserve(num_tensors_);
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      place_ = fmt::format("tensor {} of {}", i + 1, num_tensors_);
      GgufTensor tensor;
      tensor.name = read_name("its name", kMaxTensorNameBytes);
      place_ = fmt::format("tensor {}", tensor.name);
      read_shape(tensor);
      tensor.type_id = read<uint32_t>("its type");
      tensor.size_bytes = size_of(tensor);
      tensor.file_offset = read<uint64_t>("its offset");  // from the beginning of the data; locate_data() adds that
      part_.tensors.push_back(std::move(tensor));
    }
    place_ = "tensor directory";
    std::vector<std::string_view> names;
    names.reserve(part_.tensors.size());
    for (const GgufTensor& tensor : part_.tensors) names.push_back(tensor.name);
    check_unique("tensor", names);
  }

  void read_shape(GgufTensor& tensor) {
    const auto num_dims = read<uint32_t>("its number of dimensions");
    if (num_dims < 1 || num_dims > kMaxDims) {
      fail(fmt::format("has {} dimensions; 1 to {} allowed; the file is damaged", num_dims, kMaxDims));
    }
    int64_t num_values = 1;
    for (uint32_t i = 0; i < num_dims; ++i) {
      const auto dim = read<uint64_t>("a dimension");
      if (dim == 0 || dim > static_cast<uint64_t>(INT64_MAX))
        fail(fmt::format("dimension {} is {}; it must be above 0 and below 2^63", i, dim));
      tensor.shape.push_back(static_cast<int64_t>(dim));
      if (__builtin_mul_overflow(num_values, static_cast<int64_t>(dim), &num_values)) {
        fail(fmt::format("shape {}: the number of values overflows 64 bits; the file is damaged",
                         shape_text(tensor.shape)));
      }
    }
  }

  size_t size_of(const GgufTensor& tensor) const {
    const auto type = tensor.type();
    if (!type) return 0;
    const WeightTypeInfo& info = weight_type_info(*type);
    if (tensor.shape[0] % info.block_size != 0) {
      fail(fmt::format("a row has {} values, not a multiple of the {} values of one {} block; the file is damaged",
                       tensor.shape[0], info.block_size, info.name));
    }
    if (tensor.layout() == Layout::kInterleaved &&
        (tensor.shape.size() < 2 || !can_interleave(*type, tensor.shape[1], tensor.shape[0]))) {
      fail(fmt::format("shape {} of {} cannot lie in groups of {} rows; the file is damaged", shape_text(tensor.shape),
                       info.name, kInterleave));
    }
    size_t size_bytes = 0;
    if (__builtin_mul_overflow(tensor.num_values() / info.block_size, block_bytes_in(tensor.layout(), *type),
                               &size_bytes)) {
      fail(fmt::format("shape {} of {}: its size overflows 64 bits; the file is damaged", shape_text(tensor.shape),
                       info.name));
    }
    return size_bytes;
  }

  void check_unique(std::string_view kind, std::span<const std::string_view> names) const {
    const std::vector<uint32_t> order = sort_by_name(names);
    for (size_t i = 1; i < order.size(); ++i) {
      if (names[order[i - 1]] == names[order[i]]) {
        fail(fmt::format("{} {} is there twice; the file is damaged", kind, printable(names[order[i]])));
      }
    }
  }

  uint64_t alignment() {
    const auto is_alignment = [](const auto& entry) { return entry.first == "general.alignment"; };
    const auto found = std::find_if(part_.metadata.begin(), part_.metadata.end(), is_alignment);
    if (found == part_.metadata.end()) return kDefaultAlignment;
    place_ = "metadata key general.alignment";
    const auto* value = std::get_if<uint64_t>(&found->second);
    if (value == nullptr) fail("is not an unsigned integer; the file is damaged");
    if (!std::has_single_bit(*value) || *value < kMinAlignment || *value > kMaxAlignment) {
      fail(fmt::format("is {}; a power of two from {} to {} is needed; the file is damaged", *value, kMinAlignment,
                       kMaxAlignment));
    }
    return *value;
  }

  void locate_data() {
    const uint64_t align = alignment();
    const uint64_t data_begin = (pos_ + align - 1) / align * align;
    // Without tensors the padding before the data may be missing.
    part_.data_begin = std::min<uint64_t>(data_begin, bytes_.size());
    for (GgufTensor& tensor : part_.tensors) {
      place_ = fmt::format("tensor {}", tensor.name);
      const uint64_t offset = tensor.file_offset;
      if (offset % align != 0)
        fail(fmt::format("its offset {} is not a multiple of the alignment {}; the file is damaged", offset, align));
      const uint64_t data_bytes = bytes_.size() - part_.data_begin;
      if (data_begin > bytes_.size() || offset > data_bytes || tensor.size_bytes > data_bytes - offset) {
        fail(
            fmt::format("its {} bytes at offset {} of the data end beyond the file, which has {} bytes of data; it is "
                        "truncated or damaged, "
                        "download it again",
                        tensor.size_bytes, offset, data_bytes));
      }
      tensor.file_offset = data_begin + offset;
      if (tensor.type()) tensor.data = bytes_.data() + tensor.file_offset;
    }
    check_overlaps();
  }

  void check_overlaps() {
    std::vector<const GgufTensor*> order;
    order.reserve(part_.tensors.size());
    for (const GgufTensor& tensor : part_.tensors) {
      if (tensor.data != nullptr) order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->file_offset < b->file_offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = *order[i - 1];
      if (before.file_offset + before.size_bytes > order[i]->file_offset) {
        place_ = fmt::format("tensor {}", order[i]->name);
        fail(fmt::format("its data at byte {} overlaps tensor {}, which ends at byte {}; the file is damaged",
                         order[i]->file_offset, before.name, before.file_offset + before.size_bytes));
      }
    }
  }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  std::string place_;  // what is being read, for messages
  size_t pos_ = 0;
  size_t memory_left_ = kMaxGgufMemory;
  uint64_t num_tensors_ = 0;
  uint64_t num_keys_ = 0;
  GgufPart part_;
};

}  // namespace

GgufPart parse_gguf_part(std::span<const std::byte> bytes, const std::string& path) {
  return Parser(bytes, path).parse();
}

std::vector<uint32_t> sort_by_name(std::span<const std::string_view> names) {
  std::vector<uint32_t> order(names.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return names[a] != names[b] ? names[a] < names[b] : a < b; });
  return order;
}

std::string printable_path(const std::string& path) {
  return printable(path, 4096);
}

}  // namespace foretoken
