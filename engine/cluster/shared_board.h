#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

/// Messages between ranks that share memory: each writes on a board of its own, which all others read. A message between
/// two cores then takes about a microsecond.
///
/// All ranks make the same calls in the same order. Call n uses place n % 2 of the boards, for pieces of at most
/// kPieceBytes; a rank writes there when all others are done with call n - 2.
class SharedBoard {
 public:
  static constexpr size_t kPieceBytes = size_t{64} << 10;

  /// What one rank writes and the others read.
  struct Board {
    alignas(64) std::atomic<uint64_t> written{0};  // calls for which its piece is there
    std::atomic<uint64_t> done{0};                 // calls that it has returned from
    alignas(64) std::byte places[2][kPieceBytes];
  };

  /// boards: [ranks], shared by them; each has been made before any rank calls, and stays.
  SharedBoard(std::vector<Board*> boards, int rank);

  /// As Transport.
  void broadcast(std::span<std::byte> bytes);
  void all_gather(std::byte* all, std::span<const int64_t> ends);

 private:
  void wait_for_place(int rank);
  void write(std::span<const std::byte> piece);
  void read(int rank, std::span<std::byte> piece);
  void finish();

  const std::vector<Board*> boards_;
  const int rank_;
  uint64_t call_ = 0;              // number of the running one
  std::vector<uint64_t> is_done_;  // [ranks] calls that it is known to have returned from
};

}  // namespace foretoken
