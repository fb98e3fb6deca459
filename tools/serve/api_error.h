#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "tools/serve/json.h"

namespace foretoken {

/// What a request gets that cannot be served: {"error": {"code", "message", "type", ...}}.
class ApiError : public std::runtime_error {
 public:
  /// `details` are further members of "error".
  ApiError(int status, std::string type, const std::string& message, Json details = Json::object())
      : std::runtime_error(message), status_(status), type_(std::move(type)), details_(std::move(details)) {}

  [[nodiscard]] int status() const { return status_; }
  [[nodiscard]] const std::string& type() const { return type_; }
  [[nodiscard]] Json body() const {
    Json error = {{"code", status_}, {"message", what()}, {"type", type_}};
    error.update(details_);
    return {{"error", std::move(error)}};
  }

 private:
  int status_;
  std::string type_;
  Json details_;
};

/// 400: the request itself is wrong; the message names the field.
[[nodiscard]] inline ApiError invalid_request(const std::string& message) {
  return {400, "invalid_request_error", message};
}
/// 501: nothing here serves that.
[[nodiscard]] inline ApiError not_supported(const std::string& message) {
  return {501, "not_supported_error", message};
}
/// 503: not now.
[[nodiscard]] inline ApiError unavailable(const std::string& message) {
  return {503, "unavailable_error", message};
}
[[nodiscard]] inline ApiError server_failure(const std::string& message) {
  return {500, "server_error", message};
}

}  // namespace foretoken
