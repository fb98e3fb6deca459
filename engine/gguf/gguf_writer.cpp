#include "engine/gguf/gguf_writer.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_set>

#include "engine/gguf/gguf_part.h"
#include "engine/part_file.h"
#include "kernels/base/error.h"

namespace foretoken {

static_assert(std::endian::native == std::endian::little, "GGUF files are written as memory lies");

namespace {

// Written at a time, from multiples of itself on: a file system that can then holds the file in huge pages, which
// whoever maps it gets. Memory is twice this times the threads.
constexpr size_t kPartBytes = size_t{4} << 20;

// Ids of metadata value types in the file.
constexpr uint32_t kUint32 = 4;
constexpr uint32_t kInt32 = 5;
constexpr uint32_t kFloat32 = 6;
constexpr uint32_t kBool = 7;
constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_string(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

int64_t num_rows(const std::vector<int64_t>& shape) {
  int64_t rows = 1;
  for (size_t i = 1; i < shape.size(); ++i) rows *= shape[i];
  return rows;
}

size_t row_bytes(WeightType type, Layout layout, const std::vector<int64_t>& shape) {
  return static_cast<size_t>(shape[0] / weight_type_info(type).block_size) *
         static_cast<size_t>(block_bytes_in(layout, type));
}

}  // namespace

void GgufWriter::add_key(std::string_view key, uint32_t type) {
  FT_CHECK(!key.empty() && key.size() <= kMaxGgufKeyBytes);
  append_string(metadata_, key);
  append(metadata_, type);
  ++num_keys_;
}

void GgufWriter::add_uint32(std::string_view key, uint32_t value) {
  add_key(key, kUint32);
  append(metadata_, value);
}

void GgufWriter::add_int32(std::string_view key, int32_t value) {
  add_key(key, kInt32);
  append(metadata_, value);
}

void GgufWriter::add_float32(std::string_view key, float value) {
  add_key(key, kFloat32);
  append(metadata_, value);
}

void GgufWriter::add_bool(std::string_view key, bool value) {
  add_key(key, kBool);
  append<uint8_t>(metadata_, value ? 1 : 0);
}

void GgufWriter::add_string(std::string_view key, std::string_view value) {
  add_key(key, kString);
  append_string(metadata_, value);
}

void GgufWriter::add_strings(std::string_view key, std::span<const std::string> values) {
  add_key(key, kArray);
  append(metadata_, kString);
  append<uint64_t>(metadata_, values.size());
  for (const std::string& value : values) append_string(metadata_, value);
}

void GgufWriter::add_int32s(std::string_view key, std::span<const int32_t> values) {
  add_key(key, kArray);
  append(metadata_, kInt32);
  append<uint64_t>(metadata_, values.size());
  for (int32_t value : values) append(metadata_, value);
}

void GgufWriter::add_float32s(std::string_view key, std::span<const float> values) {
  add_key(key, kArray);
  append(metadata_, kFloat32);
  append<uint64_t>(metadata_, values.size());
  for (float value : values) append(metadata_, value);
}

void GgufWriter::add_raw(std::string_view key, std::span<const std::byte> type_and_value) {
  FT_CHECK(type_and_value.size() > sizeof(uint32_t));
  FT_CHECK(!key.empty() && key.size() <= kMaxGgufKeyBytes);
  append_string(metadata_, key);
  metadata_.append(reinterpret_cast<const char*>(type_and_value.data()), type_and_value.size());
  ++num_keys_;
}

void GgufWriter::set_alignment(uint32_t alignment) {
  FT_CHECK(std::has_single_bit(alignment) && alignment >= 8);
  alignment_ = alignment;
  add_uint32("general.alignment", alignment);
}

void GgufWriter::add_tensor(std::string_view name, WeightType type, std::vector<int64_t> shape, Fill fill,
                            Layout layout) {
  FT_CHECK(!name.empty() && name.size() <= kMaxTensorNameBytes);
  FT_CHECK(shape.size() >= 1 && shape.size() <= 4);
  for (int64_t dim : shape) FT_CHECK(dim > 0);
  FT_CHECK_EQ(shape[0] % weight_type_info(type).block_size, 0);
  FT_CHECK(layout == Layout::kRows || num_rows(shape) % kInterleave == 0);
  tensors_.push_back({std::string(name), type, std::move(shape), std::move(fill), layout});
}

size_t GgufWriter::data_bytes() const {
  size_t sum = 0;
  for (const Tensor& tensor : tensors_)
    sum += align_up(row_bytes(tensor.type, tensor.layout, tensor.shape) * num_rows(tensor.shape));
  return sum;
}

size_t GgufWriter::write(const std::string& path, const std::function<void(size_t, size_t)>& progress) const {
  std::string head = "GGUF";
  append<uint32_t>(head, 3);
  append<uint64_t>(head, tensors_.size());
  append<uint64_t>(head, num_keys_);
  head += metadata_;
  std::vector<size_t> offsets;  // of each tensor, from the beginning of the data
  std::unordered_set<std::string_view> names;
  size_t data_size = 0;
  for (const Tensor& tensor : tensors_) {
    FT_CHECK(names.insert(tensor.name).second);
    append_string(head, tensor.name);
    append(head, static_cast<uint32_t>(tensor.shape.size()));
    for (int64_t dim : tensor.shape) append(head, static_cast<uint64_t>(dim));
    append(head, static_cast<uint32_t>(tensor.type) + (tensor.layout == Layout::kRows ? 0 : kInterleavedTypeIds));
    append<uint64_t>(head, data_size);
    offsets.push_back(data_size);
    data_size += align_up(row_bytes(tensor.type, tensor.layout, tensor.shape) * num_rows(tensor.shape));
  }
  head.resize(align_up(head.size()));  // with zeros

  PartFile file(path);
  const size_t file_bytes = head.size() + data_size, num_parts = (file_bytes + kPartBytes - 1) / kPartBytes;
  file.resize(file_bytes);

  // Copies what of [from, from + size) lies in the part [begin, begin + part.size()) of the file.
  const auto copy_overlap = [](size_t from, const void* bytes, size_t size, size_t begin,
                               std::vector<std::byte>& part) {
    const size_t first = std::max(from, begin), last = std::min(from + size, begin + part.size());
    if (first < last)
      std::memcpy(part.data() + (first - begin), static_cast<const std::byte*>(bytes) + (first - from), last - first);
  };
  // What of a tensor lies in the part, made in whole units of rows.
  const auto fill_part = [&](size_t tensor_idx, size_t begin, std::vector<std::byte>& part,
                             std::vector<std::byte>& rows) {
    const Tensor& tensor = tensors_[tensor_idx];
    const int64_t unit = tensor.layout == Layout::kRows ? 1 : kInterleave;
    const size_t unit_bytes = row_bytes(tensor.type, tensor.layout, tensor.shape) * static_cast<size_t>(unit);
    const auto num_units = static_cast<size_t>(num_rows(tensor.shape) / unit);
    const size_t from = head.size() + offsets[tensor_idx];
    const size_t first = begin > from ? (begin - from) / unit_bytes : 0;
    const size_t last = std::min(num_units, (begin + part.size() - from + unit_bytes - 1) / unit_bytes);
    rows.resize((last - first) * unit_bytes);
    tensor.fill(static_cast<int64_t>(first) * unit, static_cast<int64_t>(last) * unit, rows.data());
    copy_overlap(from + first * unit_bytes, rows.data(), rows.size(), begin, part);
  };

  std::atomic<size_t> next_part = 0;
  std::mutex mutex;  // guards the next two and the calls of progress
  size_t bytes_done = 0;
  std::exception_ptr error;
  const auto work = [&] {
    std::vector<std::byte> part, rows;
    for (size_t i; (i = next_part.fetch_add(1)) < num_parts;) {
      try {
        const size_t begin = i * kPartBytes, end = std::min(file_bytes, begin + kPartBytes);
        part.assign(end - begin, std::byte{0});  // what lies between tensors
        copy_overlap(0, head.data(), head.size(), begin, part);
        // The last tensor that begins at or before the part, then those within it.
        const size_t in_data = begin > head.size() ? begin - head.size() : 0;
        auto t = static_cast<size_t>(std::upper_bound(offsets.begin(), offsets.end(), in_data) - offsets.begin());
        for (t = t == 0 ? 0 : t - 1; t < tensors_.size() && head.size() + offsets[t] < end; ++t) {
          const Tensor& tensor = tensors_[t];
          const size_t size =
              row_bytes(tensor.type, tensor.layout, tensor.shape) * static_cast<size_t>(num_rows(tensor.shape));
          if (head.size() + offsets[t] + size > begin) fill_part(t, begin, part, rows);
        }
        file.write_at(begin, {reinterpret_cast<const char*>(part.data()), part.size()});
        const std::lock_guard lock(mutex);
        bytes_done += end - std::min(end, std::max(begin, head.size()));
        if (progress && bytes_done > 0) progress(bytes_done, data_size);
      } catch (...) {
        next_part = num_parts;
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        return;
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    // What is written in place takes the parts in their order.
    const size_t most_threads = file.is_in_place() ? 1 : std::max(1u, std::thread::hardware_concurrency());
    const size_t num_threads = std::min<size_t>(most_threads, num_parts);
    for (size_t i = 1; i < num_threads; ++i) helpers.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
  file.commit();
  return file_bytes;
}

}  // namespace foretoken
