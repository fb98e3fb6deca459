#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/gguf/gguf.h"

namespace foretoken {

/// What one GGUF file holds, checked; views point into the bytes it was read from.
struct GgufPart {
  std::vector<std::pair<std::string_view, GgufValue>> metadata;  // in file order
  std::vector<std::span<const std::byte>> raw_values;  // of metadata: type and value as they stand in the file
  std::vector<GgufTensor> tensors;                     // in file order, file_idx 0
  size_t directory_bytes = 0;                          // header, metadata and tensor directory
  size_t data_begin = 0;                               // where the tensors' data begins; at most the file's size
};

/// Limits that no real file reaches.
inline constexpr size_t kMaxGgufKeyBytes = 65535;   // the format's own
inline constexpr size_t kMaxTensorNameBytes = 127;  // the format says 64; writers have gone beyond
inline constexpr int kMaxGgufArrayDepth = 4;
inline constexpr size_t kMaxGgufMemory = size_t{1} << 29;  // of everything that parsing one file allocates

/// Reads and checks a whole file. Throws InputError; `path` names the file in its message. Allocates at most a small
/// multiple of the bytes that the file really has, and never more than kMaxGgufMemory.
[[nodiscard]] GgufPart parse_gguf_part(std::span<const std::byte> bytes, const std::string& path);

/// Positions of `names` sorted by name, for look-ups; a duplicate's positions stand side by side.
[[nodiscard]] std::vector<uint32_t> sort_by_name(std::span<const std::string_view> names);

/// `path` escaped for a message.
[[nodiscard]] std::string printable_path(const std::string& path);

}  // namespace foretoken
