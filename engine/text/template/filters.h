#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/template/interpreter.h"
#include "engine/text/template/value.h"

namespace foretoken::jinja {

[[nodiscard]] bool has_filter(std::string_view name);
[[nodiscard]] bool has_test(std::string_view name);

/// value | name(arguments). Throws TemplateError for a filter that is not known.
[[nodiscard]] Value call_filter(Interpreter& interpreter, std::string_view name, const Value& value,
                                Arguments& arguments);
/// value is name(arguments).
[[nodiscard]] bool call_test(Interpreter& interpreter, std::string_view name, const Value& value, Arguments& arguments);

/// a op b for <, <=, > and >=.
[[nodiscard]] bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget);

/// range, dict, namespace, raise_exception, strftime_now.
[[nodiscard]] const std::vector<std::pair<std::string, Value>>& global_functions();

}  // namespace foretoken::jinja
