#include "tools/serve/json.h"

#include <fmt/format.h>

#include "tools/serve/api_error.h"

namespace foretoken {

Json parse_body(std::string_view body) {
  const auto refuse_deep = [](int depth, Json::parse_event_t event, const Json&) {
    const bool opens = event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
    if (opens && depth >= kMaxJsonDepth)
      throw invalid_request(fmt::format("the body is nested deeper than {} levels", kMaxJsonDepth));
    return true;
  };
  Json parsed;
  try {
    parsed = Json::parse(body.begin(), body.end(), refuse_deep);
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...", or "[json.exception.out_of_range.406]
    // number overflow ..."
    const std::string what = error.what();
    const size_t end = what.find("] ");
    throw invalid_request("the body is no JSON: " + (end == std::string::npos ? what : what.substr(end + 2)));
  }
  if (!parsed.is_object())
    throw invalid_request(fmt::format("the body is {}; an object is needed", parsed.type_name()));
  return parsed;
}

std::string to_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace foretoken
