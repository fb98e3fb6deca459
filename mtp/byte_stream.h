#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"

namespace foretoken {

// Values in saved sequences, one after the other, in the machine's own (little-endian) form.

template <class T>
void put(std::vector<std::byte>& to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

template <class T>
void put_all(std::vector<std::byte>& to, std::span<const T> values) {
  put(to, static_cast<uint64_t>(values.size()));
  const auto bytes = std::as_bytes(values);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

template <class T>
void take(std::span<const std::byte>& from, T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (from.size() < sizeof value) throw InputError("the saved sequence is cut off");
  std::memcpy(&value, from.data(), sizeof value);
  from = from.subspan(sizeof value);
}

template <class T>
void take_all(std::span<const std::byte>& from, std::vector<T>& values) {
  uint64_t count = 0;
  take(from, count);
  if (count > from.size() / sizeof(T)) throw InputError("the saved sequence is cut off");
  values.resize(count);
  if (count > 0) std::memcpy(values.data(), from.data(), count * sizeof(T));
  from = from.subspan(count * sizeof(T));
}

}  // namespace foretoken
