#include "tools/serve/fields.h"

#include <fmt/format.h>

#include <cmath>

#include "tools/serve/api_error.h"

namespace foretoken {

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object()) throw invalid_request(fmt::format("\"{}\": expected an object", path_));
}

std::string Fields::named(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

void Fields::fail(std::string_view name, std::string_view what) const {
  throw invalid_request(fmt::format("\"{}\": {}", named(name), what));
}

void Fields::fail_type(std::string_view name, const Json& value, std::string_view expected) const {
  fail(name, fmt::format("expected {}, not {}", expected, value.type_name()));
}

const Json* Fields::find(std::string_view name) const {
  const auto member = object_.find(name);
  return member == object_.end() || member->is_null() ? nullptr : &*member;
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t min, int64_t max) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) fail_type(name, *value, "a whole number");
  const auto refuse_range = [&] { fail(name, fmt::format("{} is outside {} to {}", to_text(*value), min, max)); };
  if (value->is_number_float()) {
    const double number = value->get<double>();
    if (!(std::abs(number) < 9e18)) refuse_range();
    if (number != std::floor(number)) fail(name, fmt::format("{} is no whole number", to_text(*value)));
    const auto whole = static_cast<int64_t>(number);
    if (whole < min || whole > max) refuse_range();
    return whole;
  }
  if (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) refuse_range();
  const auto whole = value->get<int64_t>();
  if (whole < min || whole > max) refuse_range();
  return whole;
}

std::optional<double> Fields::number(std::string_view name, double min, double max) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) fail_type(name, *value, "a number");
  const double number = value->get<double>();
  if (!(number >= min && number <= max)) fail(name, fmt::format("{} is outside {} to {}", to_text(*value), min, max));
  return number;
}

std::optional<bool> Fields::boolean(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail_type(name, *value, "true or false");
  return value->get<bool>();
}

std::optional<std::string> Fields::text(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail_type(name, *value, "a string");
  return value->get<std::string>();
}

const Json* Fields::array(std::string_view name) const {
  const Json* value = find(name);
  if (value != nullptr && !value->is_array()) fail_type(name, *value, "an array");
  return value;
}

const Json* Fields::object(std::string_view name) const {
  const Json* value = find(name);
  if (value != nullptr && !value->is_object()) fail_type(name, *value, "an object");
  return value;
}

std::vector<std::string> Fields::texts(std::string_view name) const {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) fail_type(name, *value, "a string or an array of strings");
  std::vector<std::string> texts;
  for (const Json& item : *value) {
    if (!item.is_string()) fail_type(name, item, "an array of strings");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

std::string_view Fields::first_of(std::initializer_list<std::string_view> names) const {
  for (const std::string_view name : names) {
    if (has(name)) return name;
  }
  return *(names.end() - 1);
}

}  // namespace foretoken
