#include "tools/serve/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace foretoken {

namespace {

thread_local Connection* current_connection = nullptr;

void describe_address(const sockaddr_storage& address, std::string& ip, int& port) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    port = ntohs(v4.sin_port);
  } else if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
    port = ntohs(v6.sin6_port);
  }
  ip = text.data();
}

}  // namespace

Connection::Connection(int socket, const ConnectionLimits& limits) : socket_(socket), limits_(limits) {
  current_connection = this;
}

// What the client still sends is read for a moment: closing over unread bytes would make the system throw away the
// answer that is on its way.
Connection::~Connection() {
  current_connection = nullptr;
  ::shutdown(socket_, SHUT_WR);
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(1);
  size_t drained = 0;
  while (drained < limits_.body_bytes && wait_for(POLLIN, deadline)) {
    const ssize_t n = ::recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (n <= 0) break;
    drained += static_cast<size_t>(n);
  }
  ::close(socket_);
}

Connection* Connection::current() {
  return current_connection;
}

bool Connection::wait_for(short events, Clock::time_point deadline) const {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry = {socket_, events, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::min<int64_t>(left, 60000)));
    if (ready > 0) return (entry.revents & (events | POLLHUP | POLLERR)) != 0;
    if (ready < 0 && errno != EINTR) return false;
  }
}

bool Connection::wait_for_request(const std::atomic<bool>& stops) {
  const Clock::time_point deadline = Clock::now() + limits_.idle;
  bytes_left_ = limits_.head_bytes;
  while (begin_ == end_) {
    if (stops || Clock::now() >= deadline) return false;
    if (!wait_for(POLLIN, std::min(deadline, Clock::now() + std::chrono::milliseconds(100)))) continue;
    deadline_ = deadline;
    if (!fill()) return false;
  }
  deadline_ = Clock::now() + limits_.head;
  return true;
}

void Connection::begin_body() {
  deadline_ = Clock::now() + limits_.body;
  bytes_left_ = limits_.body_bytes + limits_.head_bytes;  // marks of chunks count too
}

bool Connection::client_has_left() const {
  pollfd entry = {socket_, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) > 0;
}

bool Connection::fill() {
  if (!wait_for(POLLIN, deadline_)) return false;
  const ssize_t n = ::recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
  begin_ = 0;
  end_ = n > 0 ? static_cast<size_t>(n) : 0;
  return n > 0;
}

bool Connection::is_readable() const {
  return begin_ < end_ || wait_for(POLLIN, deadline_);
}

bool Connection::is_writable() const {
  return !client_has_left();
}

ssize_t Connection::read(char* to, size_t size) {
  if (bytes_left_ == 0) {
    closes_ = true;
    return -1;
  }
  if (begin_ == end_ && !fill()) {
    closes_ = true;
    return -1;
  }
  const size_t taken = std::min({size, end_ - begin_, bytes_left_});
  std::memcpy(to, buffer_.data() + begin_, taken);
  begin_ += taken;
  bytes_left_ -= taken;
  return static_cast<ssize_t>(taken);
}

ssize_t Connection::write(const char* from, size_t size) {
  size_t written = 0;
  while (written < size) {
    if (!wait_for(POLLOUT, Clock::now() + limits_.write)) return -1;
    const ssize_t n = ::send(socket_, from + written, size - written, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n <= 0) return -1;
    written += static_cast<size_t>(n);
  }
  return static_cast<ssize_t>(written);
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  if (::getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) describe_address(address, ip, port);
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address = {};
  socklen_t size = sizeof address;
  if (::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) describe_address(address, ip, port);
}

}  // namespace foretoken
