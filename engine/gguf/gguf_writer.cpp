#include "engine/gguf/gguf_writer.h"

#include <algorithm>
#include <atomic>
#include <bit>
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

constexpr size_t kAlignment = 32;               // the format's default, so general.alignment need not be written
constexpr size_t kPartBytes = size_t{4} << 20;  // asked of a fill at a time: memory is this times the threads

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

size_t align_up(size_t n) {
  return (n + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t num_rows(const std::vector<int64_t>& shape) {
  int64_t rows = 1;
  for (size_t i = 1; i < shape.size(); ++i) rows *= shape[i];
  return rows;
}

size_t row_bytes(WeightType type, const std::vector<int64_t>& shape) {
  const WeightTypeInfo& info = weight_type_info(type);
  return static_cast<size_t>(shape[0] / info.block_size) * info.block_bytes;
}

// Some whole rows of one tensor.
struct Piece {
  size_t tensor_idx;
  int64_t row_begin;
  int64_t row_end;
};

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

void GgufWriter::add_tensor(std::string_view name, WeightType type, std::vector<int64_t> shape, Fill fill) {
  FT_CHECK(!name.empty() && name.size() <= kMaxTensorNameBytes);
  FT_CHECK(shape.size() >= 1 && shape.size() <= 4);
  for (int64_t dim : shape) FT_CHECK(dim > 0);
  FT_CHECK_EQ(shape[0] % weight_type_info(type).block_size, 0);
  tensors_.push_back({std::string(name), type, std::move(shape), std::move(fill)});
}

size_t GgufWriter::data_bytes() const {
  size_t sum = 0;
  for (const Tensor& tensor : tensors_) sum += align_up(row_bytes(tensor.type, tensor.shape) * num_rows(tensor.shape));
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
    append(head, static_cast<uint32_t>(tensor.type));
    append<uint64_t>(head, data_size);
    offsets.push_back(data_size);
    data_size += align_up(row_bytes(tensor.type, tensor.shape) * num_rows(tensor.shape));
  }
  head.resize(align_up(head.size()));  // with zeros

  PartFile file(path);
  file.resize(head.size() + data_size);  // what lies between the tensors reads as zeros
  file.write_at(0, head);

  std::vector<Piece> pieces;
  for (size_t tensor_idx = 0; tensor_idx < tensors_.size(); ++tensor_idx) {
    const Tensor& tensor = tensors_[tensor_idx];
    const int64_t rows = num_rows(tensor.shape);
    const int64_t step = std::max<int64_t>(1, static_cast<int64_t>(kPartBytes / row_bytes(tensor.type, tensor.shape)));
    for (int64_t row = 0; row < rows; row += step) pieces.push_back({tensor_idx, row, std::min(rows, row + step)});
  }

  std::atomic<size_t> next_piece = 0;
  std::mutex mutex;  // guards the next two and the calls of progress
  size_t bytes_done = 0;
  std::exception_ptr error;
  const auto work = [&] {
    std::vector<std::byte> buffer;
    for (size_t i; (i = next_piece.fetch_add(1)) < pieces.size();) {
      try {
        const auto [tensor_idx, row_begin, row_end] = pieces[i];
        const Tensor& tensor = tensors_[tensor_idx];
        const size_t bytes_per_row = row_bytes(tensor.type, tensor.shape);
        buffer.resize(bytes_per_row * static_cast<size_t>(row_end - row_begin));
        tensor.fill(row_begin, row_end, buffer.data());
        file.write_at(head.size() + offsets[tensor_idx] + bytes_per_row * static_cast<size_t>(row_begin),
                      {reinterpret_cast<const char*>(buffer.data()), buffer.size()});
        const std::lock_guard lock(mutex);
        bytes_done += buffer.size();
        if (progress) progress(bytes_done, data_size);
      } catch (...) {
        next_piece = pieces.size();
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        return;
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    // What is written in place takes the pieces in their order.
    const size_t most_threads = file.is_in_place() ? 1 : std::max(1u, std::thread::hardware_concurrency());
    const size_t num_threads = std::min<size_t>(most_threads, pieces.size());
    for (size_t i = 1; i < num_threads; ++i) helpers.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
  if (file.is_in_place()) file.write_at(head.size() + data_size, {});  // the padding behind the last tensor
  file.commit();
  return head.size() + data_size;
}

}  // namespace foretoken
