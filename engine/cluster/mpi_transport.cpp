#include "engine/cluster/mpi_transport.h"

// The C++ classes of MPI 2 would need a library of their own.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "engine/cluster/patience.h"
#include "engine/cluster/shared_board.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr int kCommandTag = 1, kDataTag = 2, kGatherTag = 3;

// MPI's own handler ends the process; what comes back from it is our own bug.
void check(int result) {
  FT_CHECK_EQ(result, MPI_SUCCESS);
}

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(Activity& activity) : activity_(activity) {
    activity_.worker = ::gettid();
    int provided = MPI_THREAD_SINGLE;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided));
    if (provided < MPI_THREAD_SERIALIZED)
      throw InputError("this MPI cannot be called from several threads; use Open MPI 4 or another with threads");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
    check(MPI_Comm_size(MPI_COMM_WORLD, &num_ranks_));
    requests_.reserve(2 * static_cast<size_t>(num_ranks_));
    // Short sleeps are to be short: 50 us more are usual.
    (void)::prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    share_memory();
  }
  ~MpiTransport() override {
    if (window_ != MPI_WIN_NULL) MPI_Win_free(&window_);
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int num_ranks() const override { return num_ranks_; }
  bool shares_memory() const override { return board_.has_value(); }
  void set_busy(bool is_busy) override {
    thread_local const int self = ::gettid();
    if (is_busy) activity_.worker.store(self, std::memory_order_relaxed);
    activity_.is_busy.store(is_busy, std::memory_order_relaxed);
  }

  void broadcast(std::span<std::byte> bytes) override {
    const Call call(*this, rank_ == 0 ? 0 : bytes.size(), board_.has_value());
    if (board_) return board_->broadcast(bytes);
    if (rank_ == 0) {
      for (int to = 1; to < num_ranks_; ++to) begin_send(to, bytes, kCommandTag);
    } else {
      begin_receive(0, bytes, kCommandTag);
    }
    finish();
  }

  // A short message is one packet, a longer one two.
  void broadcast_message(std::vector<std::byte>& bytes) override {
    if (board_) {
      const Call call(*this, 0, /*is_on_board=*/true);
      board_->broadcast_message(bytes);
      if (rank_ != 0) totals_.bytes_received += static_cast<int64_t>(bytes.size());
      return;
    }
    size_t size = bytes.size();
    if (rank_ == 0) {
      std::memcpy(first_.data(), &size, sizeof size);
      std::copy_n(bytes.begin(), std::min(size, kFirstBytes), first_.begin() + sizeof size);
    }
    broadcast(first_);
    std::memcpy(&size, first_.data(), sizeof size);
    if (rank_ != 0) {
      bytes.resize(size);
      std::copy_n(first_.begin() + sizeof size, std::min(size, kFirstBytes), bytes.begin());
    }
    if (size > kFirstBytes) broadcast(std::span(bytes).subspan(kFirstBytes));
  }

  // Each to each at once, which takes the time of one message: an MPI_Allgatherv of so little takes turns.
  void all_gather(std::byte* all, std::span<const int64_t> ends) override {
    const auto part = [&](int rank) {
      const int64_t begin = rank == 0 ? 0 : ends[static_cast<size_t>(rank) - 1];
      return std::span(all + begin, static_cast<size_t>(ends[rank] - begin));
    };
    const Call call(*this, static_cast<size_t>(ends.back()) - part(rank_).size(), board_.has_value());
    if (board_) return board_->all_gather(all, ends);
    // Beginning with the next rank, so that not all send to the same one first.
    for (int i = 1; i < num_ranks_; ++i)
      begin_receive((rank_ + i) % num_ranks_, part((rank_ + i) % num_ranks_), kGatherTag);
    for (int i = 1; i < num_ranks_; ++i) begin_send((rank_ + i) % num_ranks_, part(rank_), kGatherTag);
    finish();
  }

  void send(int to, std::span<const std::byte> bytes) override {
    const Call call(*this, 0);
    begin_send(to, bytes, kDataTag);
    finish();
  }

  void receive(int from, std::span<std::byte> bytes) override {
    const Call call(*this, bytes.size());
    begin_receive(from, bytes, kDataTag);
    finish();
  }

 private:
  /// A call: the main thread waits for another process while one of these is there.
  class Call {
   public:
    Call(MpiTransport& transport, size_t bytes_received, bool is_on_board = false)
        : transport_(transport), is_on_board_(is_on_board) {
      // A look at the clock takes a good part of a message on the board, which looks only while it waits.
      begin_ = is_on_board ? transport.board_->seconds_waited() : seconds_of_clock();
      transport_.activity_.waits.store(true, std::memory_order_relaxed);
      ++transport_.totals_.num_messages;
      transport_.totals_.bytes_received += static_cast<int64_t>(bytes_received);
    }
    ~Call() {
      transport_.totals_.seconds += (is_on_board_ ? transport_.board_->seconds_waited() : seconds_of_clock()) - begin_;
      transport_.activity_.waits.store(false, std::memory_order_relaxed);
      transport_.activity_.steps.fetch_add(1, std::memory_order_relaxed);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    static double seconds_of_clock() {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    MpiTransport& transport_;
    const bool is_on_board_;
    double begin_ = 0;
  };

  // MPI counts in int: what is longer goes in pieces, which arrive in order.
  template <class Begin>
  static void in_pieces(size_t size, Begin&& begin) {
    constexpr size_t kPiece = size_t{1} << 30;
    for (size_t at = 0; at < size; at += kPiece) begin(at, static_cast<int>(std::min(kPiece, size - at)));
  }

  void begin_send(int to, std::span<const std::byte> bytes, int tag) {
    in_pieces(bytes.size(), [&](size_t at, int count) {
      check(MPI_Isend(bytes.data() + at, count, MPI_BYTE, to, tag, MPI_COMM_WORLD, &requests_.emplace_back()));
    });
  }

  void begin_receive(int from, std::span<std::byte> bytes, int tag) {
    in_pieces(bytes.size(), [&](size_t at, int count) {
      check(MPI_Irecv(bytes.data() + at, count, MPI_BYTE, from, tag, MPI_COMM_WORLD, &requests_.emplace_back()));
    });
  }

  // Waits for all that was begun.
  void finish() {
    Patience patience(Patience::For::kNetwork);
    for (int done = 0;; patience.wait()) {
      check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE));
      if (done != 0) break;
    }
    requests_.clear();
  }

  static constexpr size_t kBoardBytes = sizeof(SharedBoard::Board) + alignof(SharedBoard::Board);

  // Where in kBoardBytes of an MPI window the board is: at the same place in every process, since pages are mapped whole.
  static void* aligned(void* memory) {
    size_t space = kBoardBytes;
    return std::align(alignof(SharedBoard::Board), sizeof(SharedBoard::Board), memory, space);
  }

  // Makes the boards where all ranks are on one host and it gives them memory to share.
  void share_memory() {
    MPI_Comm host = MPI_COMM_NULL;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host));
    int size = 0, all_are_here = 0;
    check(MPI_Comm_size(host, &size));
    int is_here = size == num_ranks_ ? 1 : 0;
    check(MPI_Allreduce(&is_here, &all_are_here, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD));
    if (all_are_here == 0) return check(MPI_Comm_free(&host));
    check(MPI_Comm_set_errhandler(host, MPI_ERRORS_RETURN));
    void* memory = nullptr;
    int is_shared =
        MPI_Win_allocate_shared(kBoardBytes, 1, MPI_INFO_NULL, host, &memory, &window_) == MPI_SUCCESS ? 1 : 0;
    int all_share = 0;
    check(MPI_Allreduce(&is_shared, &all_share, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD));
    check(MPI_Comm_free(&host));
    if (all_share == 0) return;
    new (aligned(memory)) SharedBoard::Board;
    std::vector<SharedBoard::Board*> boards;
    for (int rank = 0; rank < num_ranks_; ++rank) {
      MPI_Aint bytes = 0;
      int unit = 0;
      void* board = nullptr;
      check(MPI_Win_shared_query(window_, rank, &bytes, &unit, static_cast<void*>(&board)));
      boards.push_back(static_cast<SharedBoard::Board*>(aligned(board)));
    }
    check(MPI_Barrier(MPI_COMM_WORLD));
    board_.emplace(std::move(boards), rank_);
  }

  static constexpr size_t kFirstBytes = 1024 - sizeof(size_t);  // of a message, beside its size

  Activity& activity_;
  std::vector<std::byte> first_ = std::vector<std::byte>(sizeof(size_t) + kFirstBytes);
  int rank_ = 0, num_ranks_ = 1;
  std::vector<MPI_Request> requests_;  // of the running call
  MPI_Win window_ = MPI_WIN_NULL;
  std::optional<SharedBoard> board_;  // where all ranks are on one host
};

}  // namespace

std::unique_ptr<Transport> start_mpi(Activity& activity) {
  return std::make_unique<MpiTransport>(activity);
}

}  // namespace foretoken
