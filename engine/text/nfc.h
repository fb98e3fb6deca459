#pragma once

#include <string>
#include <string_view>

namespace foretoken {

/// `text` in Unicode's normal form C: a view of `text` itself where it is in that form already, else of `storage`.
/// REQUIRES: `text` is valid UTF-8. Takes time proportional to n log n for any text.
[[nodiscard]] std::string_view to_nfc(std::string_view text, std::string& storage);

/// Whether a text of such characters alone is in form C as it is: none of them combines with a character before it or
/// decomposes for good. False for many that are harmless; those only cost time.
[[nodiscard]] bool is_nfc_inert(char32_t code_point);

}  // namespace foretoken
