#include "engine/cluster/mpi_transport.h"

// The C++ classes of MPI 2 would need a library of their own.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <thread>
#include <vector>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr int kCommandTag = 1, kDataTag = 2;
// Between two commands of a text that is decoded there is less than that.
constexpr auto kEagerTime = std::chrono::milliseconds(20);
constexpr auto kIdleSleep = std::chrono::microseconds(200);

// MPI's own handler ends the process; what comes back from it is our own bug.
void check(int result) {
  FT_CHECK_EQ(result, MPI_SUCCESS);
}

class MpiTransport final : public Transport {
 public:
  explicit MpiTransport(Activity& activity) : activity_(activity) {
    int provided = MPI_THREAD_SINGLE;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided));
    if (provided < MPI_THREAD_SERIALIZED)
      throw InputError("this MPI cannot be called from several threads; use Open MPI 4 or another with threads");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
    check(MPI_Comm_size(MPI_COMM_WORLD, &num_ranks_));
    counts_.resize(static_cast<size_t>(num_ranks_));
    offsets_.resize(counts_.size());
  }
  ~MpiTransport() override { MPI_Finalize(); }

  int rank() const override { return rank_; }
  int num_ranks() const override { return num_ranks_; }

  void broadcast(std::span<std::byte> bytes) override {
    const Waiting waiting(*this, rank_ == 0 ? 0 : bytes.size());
    if (rank_ == 0) {
      for (int to = 1; to < num_ranks_; ++to)
        check(MPI_Send(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, kCommandTag, MPI_COMM_WORLD));
      return;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Irecv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, 0, kCommandTag, MPI_COMM_WORLD, &request));
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0;;) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      if (done != 0) return;
      if (std::chrono::steady_clock::now() - begin > kEagerTime) {
        std::this_thread::sleep_for(kIdleSleep);
      } else {
        std::this_thread::yield();
      }
    }
  }

  void all_gather(std::byte* all, std::span<const int64_t> ends) override {
    const int64_t own = ends[static_cast<size_t>(rank_)] - (rank_ == 0 ? 0 : ends[static_cast<size_t>(rank_) - 1]);
    const Waiting waiting(*this, static_cast<size_t>(ends.back() - own));
    int64_t begin = 0;
    for (size_t rank = 0; rank < counts_.size(); ++rank) {
      offsets_[rank] = static_cast<int>(begin);
      counts_[rank] = static_cast<int>(ends[rank] - begin);
      begin = ends[rank];
    }
    check(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, counts_.data(), offsets_.data(), MPI_BYTE,
                         MPI_COMM_WORLD));
  }

  void send(int to, std::span<const std::byte> bytes) override {
    const Waiting waiting(*this, 0);
    check(MPI_Send(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, to, kDataTag, MPI_COMM_WORLD));
  }

  void receive(int from, std::span<std::byte> bytes) override {
    const Waiting waiting(*this, bytes.size());
    check(MPI_Recv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, from, kDataTag, MPI_COMM_WORLD,
                   MPI_STATUS_IGNORE));
  }

 private:
  /// A call: the main thread waits for another process while one of these is there.
  class Waiting {
   public:
    Waiting(MpiTransport& transport, size_t bytes_received) : transport_(transport) {
      transport_.activity_.waits.store(true, std::memory_order_relaxed);
      ++transport_.totals_.num_messages;
      transport_.totals_.bytes_received += static_cast<int64_t>(bytes_received);
    }
    ~Waiting() {
      transport_.totals_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
      transport_.activity_.waits.store(false, std::memory_order_relaxed);
      transport_.activity_.steps.fetch_add(1, std::memory_order_relaxed);
    }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    MpiTransport& transport_;
    const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  };

  Activity& activity_;
  int rank_ = 0, num_ranks_ = 1;
  std::vector<int> counts_, offsets_;
};

}  // namespace

std::unique_ptr<Transport> start_mpi(Activity& activity) {
  return std::make_unique<MpiTransport>(activity);
}

}  // namespace foretoken
