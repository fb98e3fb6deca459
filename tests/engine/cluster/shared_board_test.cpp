#include "engine/cluster/shared_board.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <thread>
#include <vector>

#include "engine/cluster/patience.h"

namespace foretoken {
namespace {

std::byte value_of(uint64_t call, int rank, size_t at) {
  return static_cast<std::byte>((call * 131 + static_cast<uint64_t>(rank) * 17 + at) & 255);
}

// What rank `rank` sees of `num_calls` calls, all of which each rank makes; true if all is as it was written.
bool run_calls(SharedBoard& board, int rank, int num_ranks, uint64_t num_calls, bool is_slow) {
  constexpr size_t kSizes[] = {0,
                               1,
                               48,
                               49,
                               100,
                               4096,
                               SharedBoard::kPieceBytes,
                               SharedBoard::kPieceBytes + 1,
                               3 * SharedBoard::kPieceBytes + 17};
  bool is_right = true;
  for (uint64_t call = 0; call < num_calls; ++call) {
    if (is_slow && call % 7 == static_cast<uint64_t>(rank)) std::this_thread::sleep_for(std::chrono::microseconds(300));
    const bool is_broadcast = call % 3 != 0;  // rank 0 may run ahead of the others
    std::vector<int64_t> ends;
    for (int r = 0; r < (is_broadcast ? 1 : num_ranks); ++r) {
      const auto size = static_cast<int64_t>(kSizes[(call + static_cast<uint64_t>(r) * 2) % std::size(kSizes)]);
      ends.push_back(size + (ends.empty() ? 0 : ends.back()));
    }
    std::vector<std::byte> all(static_cast<size_t>(ends.back()));
    const auto for_part = [&](int of_rank, auto&& visit) {
      const auto begin = static_cast<size_t>(of_rank == 0 ? 0 : ends[static_cast<size_t>(of_rank) - 1]);
      for (size_t at = begin; at < static_cast<size_t>(ends[of_rank]); ++at)
        visit(all[at], value_of(call, of_rank, at));
    };
    if (!is_broadcast || rank == 0) for_part(rank, [](std::byte& to, std::byte value) { to = value; });
    if (is_broadcast && call % 2 == 0) {
      if (rank != 0) all.resize(call % 5);  // the others do not know the size
      board.broadcast_message(all);
      is_right = is_right && all.size() == static_cast<size_t>(ends.back());
      all.resize(ends.back());
    } else if (is_broadcast) {
      board.broadcast(all);
    } else {
      board.all_gather(all.data(), ends);
    }
    for (int r = 0; r < static_cast<int>(ends.size()); ++r)
      for_part(r, [&](std::byte got, std::byte value) { is_right = is_right && got == value; });
  }
  return is_right;
}

TEST_CASE("ranks that share memory get what each of them wrote, however far ahead some are") {
  const int num_ranks = GENERATE(1, 2, 3, 5);
  const bool is_slow = GENERATE(false, true);
  std::vector<std::unique_ptr<SharedBoard::Board>> owned;
  std::vector<SharedBoard::Board*> boards;
  for (int rank = 0; rank < num_ranks; ++rank) {
    owned.push_back(std::make_unique<SharedBoard::Board>());
    boards.push_back(owned.back().get());
  }
  std::atomic<int> num_right{0};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank] {
      SharedBoard board(boards, rank);
      num_right += run_calls(board, rank, num_ranks, 200, is_slow) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(num_right == num_ranks);
}

TEST_CASE("who waits long sleeps in between") {
  Patience patience;
  const auto begin = std::chrono::steady_clock::now();
  for (; std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(40);) patience.wait();
  const auto waits_begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 10; ++i) patience.wait();
  CHECK(std::chrono::steady_clock::now() - waits_begin >= std::chrono::milliseconds(2));  // ten of 200 us
}

}  // namespace
}  // namespace foretoken
