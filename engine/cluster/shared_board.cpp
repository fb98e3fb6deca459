#include "engine/cluster/shared_board.h"

#include <algorithm>
#include <cstring>

#include "engine/cluster/patience.h"
#include "kernels/base/error.h"

namespace foretoken {

SharedBoard::SharedBoard(std::vector<Board*> boards, int rank)
    : boards_(std::move(boards)), rank_(rank), is_done_(boards_.size(), 0) {
  FT_CHECK(rank >= 0 && rank < static_cast<int>(boards_.size()));
}

// Until `rank` is done with the call that used this one's place before.
void SharedBoard::wait_for_place(int rank) {
  uint64_t& is_done = is_done_[rank];
  if (is_done + 1 >= call_) return;
  const std::atomic<uint64_t>& done = boards_[rank]->done;
  Patience patience;
  while ((is_done = std::max(is_done, done.load(std::memory_order_acquire))) + 1 < call_) patience.wait();
  seconds_waited_ += patience.seconds();
}

void SharedBoard::write(std::span<const std::byte> piece) {
  for (int rank = 0; rank < static_cast<int>(boards_.size()); ++rank) {
    if (rank != rank_) wait_for_place(rank);
  }
  Board& own = *boards_[rank_];
  Board::Head& head = own.heads[call_ % 2];
  const size_t in_head = std::min(piece.size(), Board::kHeadBytes);
  if (!piece.empty()) std::memcpy(head.begin, piece.data(), in_head);
  if (piece.size() > in_head) std::memcpy(own.rests[call_ % 2], piece.data() + in_head, piece.size() - in_head);
  head.size = piece.size();
  head.written.store(call_ + 1, std::memory_order_release);
}

const SharedBoard::Board::Head& SharedBoard::wait_for_piece(int rank) {
  const Board::Head& head = boards_[rank]->heads[call_ % 2];
  if (head.written.load(std::memory_order_acquire) != call_ + 1) {
    Patience patience;
    while (head.written.load(std::memory_order_acquire) != call_ + 1) patience.wait();
    seconds_waited_ += patience.seconds();
  }
  // Who writes for this call has returned from all before it.
  is_done_[rank] = std::max(is_done_[rank], call_);
  return head;
}

void SharedBoard::read(int rank, std::span<std::byte> piece) {
  const Board::Head& head = wait_for_piece(rank);
  FT_CHECK_EQ(head.size, piece.size());
  const size_t in_head = std::min(piece.size(), Board::kHeadBytes);
  if (!piece.empty()) std::memcpy(piece.data(), head.begin, in_head);
  if (piece.size() > in_head) {
    std::memcpy(piece.data() + in_head, boards_[rank]->rests[call_ % 2], piece.size() - in_head);
  }
}

void SharedBoard::finish() {
  boards_[rank_]->done.store(++call_, std::memory_order_release);
}

void SharedBoard::broadcast(std::span<std::byte> bytes) {
  for (size_t at = 0; at < bytes.size(); at += kPieceBytes) {
    const std::span<std::byte> piece = bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at));
    if (rank_ == 0) {
      write(piece);
    } else {
      read(0, piece);
    }
    finish();
  }
}

// Pieces that are full, and one that is not: the last.
void SharedBoard::broadcast_message(std::vector<std::byte>& bytes) {
  size_t at = 0;
  for (size_t size = kPieceBytes; size == kPieceBytes; at += size) {
    if (rank_ == 0) {
      size = std::min(kPieceBytes, bytes.size() - at);
      write(std::span(bytes).subspan(at, size));
    } else {
      size = wait_for_piece(0).size;
      bytes.resize(at + size);
      read(0, std::span(bytes).subspan(at, size));
    }
    finish();
  }
}

void SharedBoard::all_gather(std::byte* all, std::span<const int64_t> ends) {
  int64_t longest = 0, begin = 0;
  for (const int64_t end : ends) {
    longest = std::max(longest, end - begin);
    begin = end;
  }
  constexpr auto kPiece = static_cast<int64_t>(kPieceBytes);
  for (int64_t at = 0; at < longest; at += kPiece) {
    const auto piece_of = [&](int rank) {
      const int64_t first = (rank == 0 ? 0 : ends[static_cast<size_t>(rank) - 1]) + at;
      const int64_t end = std::min(first + kPiece, ends[rank]);
      return std::span(all + std::min(first, end), static_cast<size_t>(std::max<int64_t>(0, end - first)));
    };
    write(piece_of(rank_));
    for (int i = 1; i < static_cast<int>(boards_.size()); ++i) {
      const int rank = (rank_ + i) % static_cast<int>(boards_.size());
      read(rank, piece_of(rank));
    }
    finish();
  }
}

}  // namespace foretoken
