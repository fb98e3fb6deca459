#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace foretoken {

/// How the processes of a cluster ("ranks") reach each other. All calls block, and all ranks make the same ones in the
/// same order; one thread of a rank at a time. What cannot be delivered ends all ranks: no call comes back from a peer
/// that is gone.
class Transport {
 public:
  virtual ~Transport() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int num_ranks() const = 0;

  /// `bytes` of rank 0 to all.
  virtual void broadcast(std::span<std::byte> bytes) = 0;
  /// Rank r gives bytes [ends[r - 1], ends[r]) of `all`, which lie there when it calls, and gets the others'.
  virtual void all_gather(std::byte* all, std::span<const int64_t> ends) = 0;
  virtual void send(int to, std::span<const std::byte> bytes) = 0;
  virtual void receive(int from, std::span<std::byte> bytes) = 0;
};

}  // namespace foretoken
