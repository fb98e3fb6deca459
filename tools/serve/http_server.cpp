#include "tools/serve/http_server.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "tools/serve/anthropic.h"
#include "tools/serve/connection_threads.h"

namespace foretoken {

namespace {

constexpr int kRequestsOfConnection = 1000;
constexpr int kRetryAfterSeconds = 2;

// After an error before its end, the rest of a body must not be taken for a request.
void close_connection(httplib::Response& response) {
  if (Connection* connection = Connection::current()) connection->close_after_answer();
  response.set_header("Connection", "close");
}

ApiError error_of_status(int status, const httplib::Request& request) {
  switch (status) {
    case 404:
      return {404, "not_found_error", fmt::format("there is no {} {} here", request.method, request.path)};
    case 413:
      return {413, "invalid_request_error", "the body is too large"};
    case 414:
      return {414, "invalid_request_error", "the address is too long"};
    case 500:
      return server_failure("the server failed");
    default:
      return {status, "invalid_request_error", "this is no HTTP request that can be read"};
  }
}

ApiError error_of(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ApiError& error) {
    return error;
  } catch (const InputError& error) {
    return invalid_request(error.what());
  } catch (const UsageError& error) {
    return invalid_request(error.what());
  } catch (const std::exception& error) {
    return server_failure(error.what());
  }
}

// Before a request is looked at: no answer goes out in parts, and a body that `curl -d` calls a form is JSON.
void prepare(httplib::Request& request) {
  request.ranges.clear();
  if (request.get_header_value("Content-Type").starts_with("application/x-www-form-urlencoded"))
    request.headers.erase("Content-Type");
}

}  // namespace

void answer_json(httplib::Response& response, const Json& body, int status) {
  response.status = status;
  response.set_content(to_text(body), "application/json; charset=utf-8");
}

void answer_error(httplib::Response& response, const ApiError& error) {
  if (error.status() == 503) response.set_header("Retry-After", std::to_string(kRetryAfterSeconds));
  answer_json(response, error.body(), error.status());
}

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  size_t difference = a.size() ^ b.size();
  for (size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  return difference == 0;
}

HttpServer::HttpServer(const HttpOptions& options) : options_(options) {
  new_task_queue = [this] { return new ConnectionThreads(options_.max_connections); };
  set_payload_max_length(options_.limits.body_bytes);
  set_tcp_nodelay(true);
  set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    return before_routing(request, response);
  });
  set_exception_handler([](const httplib::Request& request, httplib::Response& response, std::exception_ptr thrown) {
    const ApiError error = error_of(thrown);
    answer_error(response, error);
    // Anthropic's clients look for one more member.
    if (request.path.starts_with("/v1/messages")) answer_json(response, anthropic_error(error), error.status());
  });
  set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (response.status == 400 || response.status == 413) close_connection(response);
    if (response.body.empty()) answer_error(response, error_of_status(response.status, request));
  });
}

int HttpServer::listen_on(const std::string& host, int port) {
  // Not SO_REUSEPORT, the library's default: a second server on the port would get half of its connections.
  set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  if (port == 0) {
    port = bind_to_any_port(host);
  } else if (!bind_to_port(host, port)) {
    return -1;
  }
  // The library lets 5 connections wait to be accepted; what many clients begin at once beyond that is reset.
  if (port > 0 && ::listen(svr_sock_, SOMAXCONN) != 0) return -1;
  return port;
}

void HttpServer::route_post(const std::string& path, JsonHandler handle) {
  Post(path, [handle = std::move(handle)](const httplib::Request& request, httplib::Response& response) {
    handle(request, parse_body(request.body), response);
  });
}

void HttpServer::route_get(const std::string& path, Handler handle) {
  Get(path, std::move(handle));
}

bool HttpServer::key_is_right(const httplib::Request& request) const {
  std::string key = request.get_header_value("x-api-key");
  const std::string authorization = request.get_header_value("Authorization");
  constexpr std::string_view kBearer = "Bearer ";
  if (authorization.starts_with(kBearer)) key = authorization.substr(kBearer.size());
  bool right = false;
  // All of them are looked at, whichever is right.
  for (const std::string& known : options_.api_keys) right = equal_in_constant_time(key, known) || right;
  return right;
}

httplib::Server::HandlerResponse HttpServer::before_routing(const httplib::Request& request,
                                                            httplib::Response& response) {
  if (Connection* connection = Connection::current()) connection->begin_body();
  const auto refuse = [&](const ApiError& error) {
    answer_error(response, error);
    if (request.method != "GET") close_connection(response);
    return HandlerResponse::Handled;
  };
  if (!options_.cors_origin.empty()) {
    response.set_header("Access-Control-Allow-Origin", options_.cors_origin);
    if (request.method == "OPTIONS") {
      response.set_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
      response.set_header("Access-Control-Allow-Headers", "*, Authorization, Content-Type, X-Api-Key");
      response.status = 204;
      return HandlerResponse::Handled;
    }
  }
  const bool is_open = std::find(open_paths_.begin(), open_paths_.end(), request.path) != open_paths_.end();
  if (!is_open && !options_.api_keys.empty() && !key_is_right(request))
    return refuse({401, "authentication_error", "the API key is missing or wrong"});
  const std::string encoding = request.get_header_value("Content-Encoding");
  if (!encoding.empty() && encoding != "identity")
    return refuse({415, "invalid_request_error", "compressed bodies are not read here"});
  if (request.get_header_value("Content-Type").starts_with("multipart/"))
    return refuse({415, "invalid_request_error", "the body has to be JSON: Content-Type: application/json"});
  if (!is_open && gate_) {
    try {
      gate_();
    } catch (const ApiError& error) {
      return refuse(error);
    }
  }
  return HandlerResponse::Unhandled;
}

bool HttpServer::process_and_close_socket(socket_t socket) {
  Connection connection(socket, options_.limits);
  for (int left = kRequestsOfConnection; left > 0 && connection.wait_for_request(closes_idle_); --left) {
    bool is_closed = false;
    const bool went_well =
        process_request(connection, /*close_connection=*/left == 1 || closes_idle_, is_closed, prepare);
    if (!went_well || is_closed || connection.closes()) break;
  }
  return true;
}

}  // namespace foretoken
