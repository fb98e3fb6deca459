#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "engine/transport.h"
#include "kernels/base/error.h"

namespace foretoken {

/// What rank 0 tells the others, put together value by value and taken apart in the same order. Both ends are the same
/// program (checked when they meet), so a message that does not fit is our own bug.
class Message {
 public:
  void clear() {
    bytes_.clear();
    at_ = 0;
  }
  template <class T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    put_bytes(std::as_bytes(std::span(&value, 1)));
  }
  template <class T>
  void put_all(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    put(values.size());
    put_bytes(std::as_bytes(values));
  }
  void put_text(const std::string& text) { put_all(std::span<const char>(text)); }
  void put_bytes(std::span<const std::byte> bytes) {
    const size_t end = bytes_.size();
    bytes_.resize(end + bytes.size());
    if (!bytes.empty()) std::memcpy(bytes_.data() + end, bytes.data(), bytes.size());
  }

  template <class T>
  [[nodiscard]] T take() {
    T value;
    const std::span<const std::byte> from = take_bytes(sizeof value);
    std::memcpy(static_cast<void*>(&value), from.data(), sizeof value);
    return value;
  }
  template <class T>
  void take_all(std::vector<T>& values) {
    values.resize(take<size_t>());
    const std::span<const std::byte> from = take_bytes(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), from.data(), from.size());
  }
  [[nodiscard]] std::string take_text() {
    std::vector<char> text;
    take_all(text);
    return {text.begin(), text.end()};
  }
  [[nodiscard]] std::span<const std::byte> take_bytes(size_t count) {
    FT_CHECK(count <= bytes_.size() - at_);
    at_ += count;
    return std::span(bytes_).subspan(at_ - count, count);
  }

  /// From rank 0 to all.
  void broadcast(Transport& transport) {
    transport.broadcast_message(bytes_);
    if (transport.rank() != 0) at_ = 0;
  }

 private:
  std::vector<std::byte> bytes_;
  size_t at_ = 0;
};

/// One trivially copyable record of each rank for all: records[rank()] is this one's.
template <class Record>
void gather_records(Transport& transport, std::vector<Record>& records) {
  static_assert(std::is_trivially_copyable_v<Record>);
  FT_CHECK_EQ(records.size(), static_cast<size_t>(transport.num_ranks()));
  std::vector<int64_t> ends;
  for (size_t i = 1; i <= records.size(); ++i) ends.push_back(static_cast<int64_t>(i * sizeof(Record)));
  transport.all_gather(reinterpret_cast<std::byte*>(records.data()), ends);
}

}  // namespace foretoken
