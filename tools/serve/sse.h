#pragma once

#include <string>
#include <string_view>

#include "tools/serve/json.h"

namespace foretoken {

// Server-sent events, as the WHATWG's HTML standard has them (section 9.2).

/// "data: {...}" and the blank line. to_text() leaves no line ends in the data.
[[nodiscard]] inline std::string sse_data(const Json& data) {
  return "data: " + to_text(data) + "\n\n";
}
[[nodiscard]] inline std::string sse_event(std::string_view name, const Json& data) {
  return "event: " + std::string(name) + "\n" + sse_data(data);
}
/// A line that clients drop: it keeps the connection, and whoever watches it, from taking silence for the end.
inline constexpr std::string_view kSseKeepAlive = ": keep-alive\n\n";
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

}  // namespace foretoken
