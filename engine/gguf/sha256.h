#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace foretoken {

/// SHA-256 (FIPS 180-4) of bytes that arrive in pieces. Not thread-safe; copyable, so a common beginning can be shared.
class Sha256 {
 public:
  void update(std::span<const std::byte> bytes);
  /// The digest of everything so far as 64 lower-case hexadecimal digits. The object may go on being updated.
  [[nodiscard]] std::string hex() const;

 private:
  void compress(const std::byte* blocks, size_t num_blocks);

  static constexpr size_t kBlockBytes = 64;
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, kBlockBytes> pending_{};  // the first size_ % 64 bytes wait for their block to fill
  uint64_t size_ = 0;                             // bytes seen
};

[[nodiscard]] std::string sha256_hex(std::span<const std::byte> bytes);

}  // namespace foretoken
