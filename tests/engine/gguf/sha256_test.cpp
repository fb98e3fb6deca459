#include "engine/gguf/sha256.h"

#include <catch2/catch.hpp>
#include <string>
#include <string_view>

namespace foretoken {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// The examples that NIST publishes for FIPS 180-4.
TEST_CASE("SHA-256 gives the digests that the standard's examples have", "[sha256]") {
  CHECK(sha256_hex({}) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex(bytes_of("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex(bytes_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")) ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256_hex(
            bytes_of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrs"
                     "mnopqrstnopqrstu")) == "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK(sha256_hex(bytes_of(std::string(1000000, 'a'))) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("SHA-256 does not depend on the pieces in which bytes arrive", "[sha256]") {
  std::string text;
  for (int i = 0; i < 200; ++i) text += static_cast<char>(i * 7);
  for (size_t length : {0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 200}) {
    const std::string whole = sha256_hex(bytes_of(text.substr(0, length)));
    for (size_t step = 1; step <= 130; ++step) {
      Sha256 hash;
      for (size_t pos = 0; pos < length; pos += step) {
        hash.update(bytes_of(text).subspan(pos, std::min(step, length - pos)));
        (void)hash.hex();  // must not disturb what follows
      }
      REQUIRE(hash.hex() == whole);
    }
  }
}

}  // namespace
}  // namespace foretoken
