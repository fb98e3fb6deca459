#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace foretoken {

using Json = nlohmann::ordered_json;

/// Deepest nesting of arrays and objects that a request may have.
inline constexpr int kMaxJsonDepth = 64;

/// A request's body as JSON. Throws ApiError (400): no JSON, not UTF-8, nested deeper than kMaxJsonDepth, not an object.
[[nodiscard]] Json parse_body(std::string_view body);

/// One line; bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] std::string to_text(const Json& value);

}  // namespace foretoken
