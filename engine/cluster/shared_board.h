#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

/// Messages between ranks that share memory: each writes on a board of its own, which all others read. A message between
/// two cores then takes the time in which a few lines of memory come from one to the other, a fraction of a microsecond.
///
/// All ranks make the same calls in the same order. Call n uses place n % 2 of the boards, for pieces of at most
/// kPieceBytes; a rank writes there when all others are done with call n - 2. A piece's beginning lies in the line that
/// says that the piece is there.
class SharedBoard {
 public:
  static constexpr size_t kPieceBytes = size_t{64} << 10;

  /// What one rank writes and the others read.
  struct Board {
    static constexpr size_t kHeadBytes = 48;
    struct alignas(64) Head {
      std::atomic<uint64_t> written{0};  // the last call, counted from 1, whose piece is here
      uint64_t size = 0;                 // of the piece
      std::byte begin[kHeadBytes];
    };
    Head heads[2];
    alignas(64) std::atomic<uint64_t> done{0};  // calls that the rank has returned from
    alignas(64) std::byte rests[2][kPieceBytes - kHeadBytes];
  };

  /// boards: [ranks], shared by them; each has been made before any rank calls, and stays.
  SharedBoard(std::vector<Board*> boards, int rank);

  // As Transport.
  void broadcast(std::span<std::byte> bytes);
  void broadcast_message(std::vector<std::byte>& bytes);
  void all_gather(std::byte* all, std::span<const int64_t> ends);

  /// Spent in waiting for others, but for moments of less than a microsecond.
  [[nodiscard]] double seconds_waited() const { return seconds_waited_; }

 private:
  void wait_for_place(int rank);
  void write(std::span<const std::byte> piece);
  void read(int rank, std::span<std::byte> piece);
  /// The piece of rank 0 for this call, whose size the others do not know.
  const Board::Head& wait_for_piece(int rank);
  void finish();

  const std::vector<Board*> boards_;
  const int rank_;
  uint64_t call_ = 0;              // number of the running one
  std::vector<uint64_t> is_done_;  // [ranks] calls that it is known to have returned from
  double seconds_waited_ = 0;
};

}  // namespace foretoken
