#pragma once

#include <httplib.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "tools/serve/api_error.h"
#include "tools/serve/connection.h"

namespace foretoken {

struct HttpOptions {
  ConnectionLimits limits;
  int max_connections = 512;
  std::vector<std::string> api_keys;  // empty: nobody is asked for one
  std::string cors_origin;            // Access-Control-Allow-Origin; empty: CORS is off
};

/// cpp-httplib's server with what an open port needs beside: limits on time and bytes, keys, errors as JSON.
class HttpServer : public httplib::Server {
 public:
  explicit HttpServer(const HttpOptions& options);

  /// `handle` is called for POST requests to this path with the body as JSON; it may throw ApiError. So is that of
  /// route_get() without a body.
  using JsonHandler = std::function<void(const httplib::Request&, const Json& body, httplib::Response&)>;
  void route_post(const std::string& path, JsonHandler handle);
  void route_get(const std::string& path, Handler handle);
  /// Reached without a key: health, and pages that hold nothing.
  void open_to_all(const std::string& path) { open_paths_.push_back(path); }

  /// Why nothing is served now, as {"error": ...}; an empty message: all is. Paths of open_to_all() are always served.
  void set_gate(std::function<void()> gate) { gate_ = std::move(gate); }

  /// Listens on an address and a port, 0: any that is free; the port, or -1 if that is not possible.
  [[nodiscard]] int listen_on(const std::string& host, int port);

  /// Idle connections end soon.
  void close_idle() { closes_idle_ = true; }

 private:
  bool process_and_close_socket(socket_t socket) override;
  HandlerResponse before_routing(const httplib::Request& request, httplib::Response& response);
  [[nodiscard]] bool key_is_right(const httplib::Request& request) const;

  const HttpOptions options_;
  std::vector<std::string> open_paths_;
  std::function<void()> gate_;
  std::atomic<bool> closes_idle_ = false;
};

void answer_json(httplib::Response& response, const Json& body, int status = 200);
void answer_error(httplib::Response& response, const ApiError& error);

/// Takes as long for a wrong key as for the right one of the same length.
[[nodiscard]] bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace foretoken
