#pragma once

#include <httplib.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>

namespace foretoken {

struct ConnectionLimits {
  std::chrono::milliseconds idle{5000};    // between two requests
  std::chrono::milliseconds head{10000};   // from a request's first byte to the end of its head
  std::chrono::milliseconds body{60000};   // from there to the end of its body
  std::chrono::milliseconds write{60000};  // a reader that takes nothing for so long has gone
  size_t head_bytes = size_t{64} << 10;
  size_t body_bytes = size_t{16} << 20;
};

/// A client's connection under limits of time and bytes: who sends slowly, without end or not at all holds one thread
/// for a while and nobody else. Bytes of a further request that came with this one (pipelining) stay for it.
class Connection final : public httplib::Stream {
 public:
  /// Takes the socket over.
  Connection(int socket, const ConnectionLimits& limits);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// The one that this thread serves, or nullptr.
  [[nodiscard]] static Connection* current();

  /// Waits for the first byte of a request. False: there will be none, or `stops` was set.
  [[nodiscard]] bool wait_for_request(const std::atomic<bool>& stops);
  /// The head is read; what follows is the body.
  void begin_body();
  /// What was sent must not be read as a further request: the connection ends with this answer.
  void close_after_answer() { closes_ = true; }
  [[nodiscard]] bool closes() const { return closes_; }
  /// The client has closed its side, or the connection broke.
  [[nodiscard]] bool client_has_left() const;

  // httplib::Stream
  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* to, size_t size) override;
  ssize_t write(const char* from, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  using Clock = std::chrono::steady_clock;
  // Fills the buffer; false at the end, after an error, or at the deadline.
  bool fill();
  [[nodiscard]] bool wait_for(short events, Clock::time_point deadline) const;

  const int socket_;
  const ConnectionLimits limits_;
  bool closes_ = false;
  Clock::time_point deadline_;  // of reading
  size_t bytes_left_ = 0;       // that may still be read of this head or body
  std::array<char, 16384> buffer_{};
  size_t begin_ = 0, end_ = 0;  // what is read and not taken
};

}  // namespace foretoken
