#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

/// What one rank has exchanged.
struct TransportTotals {
  int64_t num_messages = 0;    // calls, however many packets each becomes
  int64_t bytes_received = 0;  // by this rank
  double seconds = 0;          // in these calls, waiting for the others included
};

/// How the processes of a cluster ("ranks") reach each other. All calls block, and all ranks make the same ones in the
/// same order; one thread of a rank at a time. What cannot be delivered ends all ranks: no call comes back from a peer
/// that is gone.
class Transport {
 public:
  virtual ~Transport() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int num_ranks() const = 0;

  /// True where a message takes about as long as a meeting of two threads.
  [[nodiscard]] virtual bool shares_memory() const { return false; }

  /// `bytes` of rank 0 to all.
  virtual void broadcast(std::span<std::byte> bytes) = 0;
  /// The same where only rank 0 knows how many there are: the others' become as many.
  virtual void broadcast_message(std::vector<std::byte>& bytes) = 0;
  /// Rank r gives bytes [ends[r - 1], ends[r]) of `all`, which lie there when it calls, and gets the others'.
  virtual void all_gather(std::byte* all, std::span<const int64_t> ends) = 0;
  virtual void send(int to, std::span<const std::byte> bytes) = 0;
  virtual void receive(int from, std::span<std::byte> bytes) = 0;

  /// Whether rank 0 is at work that the others wait for. Else it may do nothing for as long as it likes, and nobody takes
  /// it for stalled.
  virtual void set_busy(bool /*is_busy*/) {}

  [[nodiscard]] const TransportTotals& totals() const { return totals_; }

 protected:
  TransportTotals totals_;
};

}  // namespace foretoken
