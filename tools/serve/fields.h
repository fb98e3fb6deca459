#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/serve/json.h"

namespace foretoken {

/// Reads the members of a JSON object. A member that is missing or null is nothing; one of another type or outside its
/// range is an ApiError (400) that names it.
class Fields {
 public:
  /// `path` stands before names in messages, as "messages[0]". REQUIRES: the object stays.
  explicit Fields(const Json& object, std::string path = "");

  [[nodiscard]] bool has(std::string_view name) const { return find(name) != nullptr; }
  [[nodiscard]] const Json* find(std::string_view name) const;
  /// A whole number, also as 3.0.
  [[nodiscard]] std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max) const;
  [[nodiscard]] std::optional<double> number(std::string_view name, double min, double max) const;
  [[nodiscard]] std::optional<bool> boolean(std::string_view name) const;
  [[nodiscard]] std::optional<std::string> text(std::string_view name) const;
  [[nodiscard]] const Json* array(std::string_view name) const;
  [[nodiscard]] const Json* object(std::string_view name) const;
  /// A string, or an array of strings; empty if missing.
  [[nodiscard]] std::vector<std::string> texts(std::string_view name) const;
  /// The first of `names` that is there; the last one otherwise.
  [[nodiscard]] std::string_view first_of(std::initializer_list<std::string_view> names) const;

  /// The name as messages have it.
  [[nodiscard]] std::string named(std::string_view name) const;
  [[noreturn]] void fail(std::string_view name, std::string_view what) const;

 private:
  [[noreturn]] void fail_type(std::string_view name, const Json& value, std::string_view expected) const;

  const Json& object_;
  const std::string path_;
};

}  // namespace foretoken
