#include "kernels/cuda/emulation/cuda_emulation.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#if defined(FORETOKEN_ACCESS_CHECKS)
#include "kernels/cuda/emulation/access_checker.h"
#include "kernels/cuda/emulation/emulated_memory.h"
#include "kernels/cuda/emulation/warp_traffic.h"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace foretoken::cuda::emulation {

thread_local const Indices* indices = nullptr;

namespace {

namespace context = boost::context::detail;

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
// Kernel bodies keep little on the stack, but a sanitizer puts red zones round each variable.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
// What every GPU from sm_80 on can give a block, less the 1 KiB that the system keeps of 100.
constexpr size_t kMaxSharedBytes = 99 << 10;
constexpr size_t kMaxStaticSharedBytes = 48 << 10;  // ptxas refuses more

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Thread {
  context::fcontext_t fiber = nullptr;
  std::byte* stack = nullptr;  // lowest address, above the guard page
  Indices indices{};
  State state = State::kDone;
  Site site;
  int number = 0;                  // in its block
  std::deque<AsyncCopy> copies;    // under way, oldest first
  std::deque<size_t> copy_groups;  // how many each closed group has, oldest first
  size_t copies_in_open_group = 0;
  bool has_waited = true;  // for the kernels ahead
  void* fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

struct Warp {
  uint32_t arrived = 0;
  uint32_t mask = 0;
  Site site;
  uint64_t generation = 0;
  int barriers = 0;  // __syncwarp of all lanes since the block's last barrier
  // Two sets take turns: a lane is at most one collective ahead of one that still reads.
  alignas(16) std::byte values[2][kWarp][64];
};

struct SharedArray {
  Site site;
  size_t size_bytes;
  std::byte* data;
};

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string name_of(const Site& site) {
  return std::string(site.file_name()) + ":" + std::to_string(site.line());
}

std::string name_of(const Thread& t) {
  const Indices& i = t.indices;
  return "thread (" + std::to_string(i.thread.x) + "," + std::to_string(i.thread.y) + "," + std::to_string(i.thread.z) +
         ") of block (" + std::to_string(i.block.x) + "," + std::to_string(i.block.y) + "," +
         std::to_string(i.block.z) + ")";
}

class Machine {
 public:
  Machine() {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t stride = kStackBytes + page;
    void* mapped =
        mmap(nullptr, kMaxThreads * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FT_CHECK(mapped != MAP_FAILED);
    threads_.resize(kMaxThreads);
    for (int i = 0; i < kMaxThreads; ++i) {
      std::byte* guard = static_cast<std::byte*>(mapped) + static_cast<size_t>(i) * stride;
      mprotect(guard, page, PROT_NONE);
      threads_[i].stack = guard + page;
      threads_[i].number = i;
    }
    warps_.resize(kMaxThreads / kWarp);
  }

  void run(uint3 grid, uint3 block, size_t dynamic_shared_bytes, const std::function<void()>& body,
           Parameters parameters, bool must_wait) {
    const std::lock_guard lock(mutex_);
    begin_grid(parameters, must_wait);
    num_threads_ = static_cast<int>(block.x * block.y * block.z);
    FT_CHECK(num_threads_ >= 1 && num_threads_ <= kMaxThreads);
    FT_CHECK(grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.y <= 65535 && grid.z <= 65535);
    body_ = &body;
    dynamic_shared_bytes_ = dynamic_shared_bytes;
    const std::vector<int> warp_order = order((num_threads_ + kWarp - 1) / kWarp, 1);
    const std::vector<int> lane_order = order(kWarp, 2);
    const int num_blocks = static_cast<int>(grid.x * grid.y * grid.z);
    for (const int b : order(num_blocks, 3)) {
      const auto n = static_cast<unsigned>(b);
      const uint3 block_idx{n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
      for (int i = 0; i < num_threads_; ++i) {
        Thread& t = threads_[i];
        const auto u = static_cast<unsigned>(i);
        t.indices = {{u % block.x, u / block.x % block.y, u / block.x / block.y}, block_idx, block, grid};
        t.state = State::kReady;
        t.has_waited = !must_wait;
        t.copies.clear();
        t.copy_groups.clear();
        t.copies_in_open_group = 0;
      }
      begin_block();
      run_block(warp_order, lane_order);
      threads_run_ += static_cast<uint64_t>(num_threads_);
    }
  }

  void set_order(Order kind, uint32_t seed) {
    order_ = kind;
    seed_ = seed;
  }
  [[nodiscard]] uint64_t threads_run() const { return threads_run_; }
  [[nodiscard]] int lane() const { return current_->number % kWarp; }
  [[nodiscard]] std::string running() const { return name_of(*current_); }

  // The message is a function, so that none of its strings are left on the stack of a thread that never ends.
  template <class Message>
  [[noreturn]] void fail(const Message& message) {
    failure_ = message();
    wait(State::kReady);
    std::abort();  // a failed block is never resumed
  }

  void sync_block(Site site) {
    if (at_barrier_ > 0 && !same_site(barrier_site_, site)) {
      fail([&] {
        return "__syncthreads: " + name_of(*current_) + " waits at " + name_of(site) + ", others at " +
               name_of(barrier_site_);
      });
    }
    barrier_site_ = site;
    current_->site = site;
    if (++at_barrier_ < num_threads_) {
      wait(State::kAtBarrier);
      return;
    }
    at_barrier_ = 0;
    for (int i = 0; i < num_threads_; ++i) threads_[i].state = State::kReady;
    ++barriers_;
    for (Warp& warp : warps_) warp.barriers = 0;
    tell_checker();
  }

  // A collective that also orders memory.
  void sync_warp(uint32_t mask, Site site) {
    const bool all_lanes = mask == 0xffffffffu;
    Warp& warp = warps_[current_->number / kWarp];
    const bool is_last = all_lanes && (warp.arrived | 1u << lane()) == mask;
    if (is_last) ++warp.barriers;
    exchange(mask, "", 1, site);
    tell_checker();
  }

  void note_wait() {
    current_->has_waited = true;
    tell_checker();
  }

  void add_copy(AsyncCopy copy) {
    current_->copies.push_back(copy);
    ++current_->copies_in_open_group;
  }
  void end_copy_group() { current_->copy_groups.push_back(std::exchange(current_->copies_in_open_group, 0)); }
  [[nodiscard]] bool take_copy(size_t groups_under_way, AsyncCopy& copy) {
    Thread& t = *current_;
    while (t.copy_groups.size() > groups_under_way) {
      if (t.copy_groups.front() > 0) {
        --t.copy_groups.front();
        copy = t.copies.front();
        t.copies.pop_front();
        return true;
      }
      t.copy_groups.pop_front();
    }
    return false;
  }

  void set_preemption(uint32_t seed, int one_in) {
    preempt_random_.seed(seed);
    preempt_one_in_ = one_in;
  }
  // Another warp goes on instead, now and then.
  void preempt() {
    if (preempt_one_in_ == 0 || preempt_random_() % static_cast<uint32_t>(preempt_one_in_) != 0) return;
    preempted_ = true;
    ++preemptions_;
    wait(State::kReady);
  }

  [[nodiscard]] uint64_t preemptions() const { return preemptions_; }

  [[nodiscard]] bool owns(const void* address) const {
    const auto is_in = [address](const auto& vector) {
      const auto* at = static_cast<const std::byte*>(address);
      const auto* begin = reinterpret_cast<const std::byte*>(vector.data());
      return at >= begin && at < begin + vector.size() * sizeof vector[0];
    };
    return is_in(warps_) || is_in(threads_) || address == &indices;
  }

  const std::byte (*exchange(uint32_t mask, const void* value, size_t size_bytes, Site site))[64] {
    const int self = lane();
    Warp& warp = warps_[current_->number / kWarp];
    if ((mask >> self & 1u) == 0)
      fail([&] {
        return "warp collective at " + name_of(site) + ": " + name_of(*current_) + " is not in its own mask";
      });
    if (warp.arrived == 0) {
      warp.mask = mask;
      warp.site = site;
    } else if (!same_site(warp.site, site) || warp.mask != mask) {
      fail([&] {
        return "warp collective: " + name_of(*current_) + " arrives at " + name_of(site) + ", other lanes wait at " +
               name_of(warp.site);
      });
    }
    const auto set = static_cast<size_t>(warp.generation % 2);
    std::memcpy(warp.values[set][self], value, size_bytes);
    warp.arrived |= 1u << self;
    current_->site = site;
    if (warp.arrived == mask) {
      warp.arrived = 0;
      ++warp.generation;
      const int first = current_->number - self;
      for (int i = 0; i < kWarp; ++i) {
        if ((mask >> i & 1u) != 0) threads_[first + i].state = State::kReady;
      }
    } else {
      wait(State::kAtCollective);
    }
    return warp.values[set];
  }

  std::byte* shared_array(size_t size_bytes, Site site) {
    for (const SharedArray& array : shared_) {
      if (same_site(array.site, site)) return array.data;
    }
    static_shared_bytes_ += size_bytes;
    if (static_shared_bytes_ > kMaxStaticSharedBytes)
      fail([&] {
        return "static shared memory: " + std::to_string(static_shared_bytes_) + " bytes at " + name_of(site);
      });
    return add_shared(size_bytes, site);
  }
  std::byte* dynamic_shared() {
    if (dynamic_shared_ == nullptr) dynamic_shared_ = add_shared(dynamic_shared_bytes_, Site::current());
    return dynamic_shared_;
  }
  [[nodiscard]] bool in_shared_memory(const std::byte* data, size_t size_bytes) const {
    for (const SharedArray& array : shared_) {
      if (data >= array.data && data + size_bytes <= array.data + array.size_bytes) return true;
    }
    return false;
  }

 private:
  [[nodiscard]] std::vector<int> order(int n, uint32_t salt) const {
    std::vector<int> indices(static_cast<size_t>(n));
    std::iota(indices.begin(), indices.end(), 0);
    if (order_ == Order::kBackward) std::reverse(indices.begin(), indices.end());
    if (order_ == Order::kShuffled) std::shuffle(indices.begin(), indices.end(), std::mt19937(seed_ * 3 + salt));
    return indices;
  }

  std::byte* add_shared(size_t size_bytes, Site site) {
    shared_bytes_ += size_bytes;
    if (shared_bytes_ > kMaxSharedBytes)
      fail([&] { return "shared memory: " + std::to_string(shared_bytes_) + " bytes at " + name_of(site); });
      // Each array is an allocation of its own, so that the address sanitizer sees where it ends.
#if defined(FORETOKEN_ACCESS_CHECKS)
    void* data = take_shared(size_bytes);
#else
    void* data = nullptr;
    FT_CHECK(posix_memalign(&data, 128, std::max<size_t>(size_bytes, 1)) == 0);
    std::memset(data, 0xff, size_bytes);
#endif
    shared_.push_back({site, size_bytes, static_cast<std::byte*>(data)});
    return shared_.back().data;
  }

  void run_block(const std::vector<int>& warp_order, const std::vector<int>& lane_order) {
    at_barrier_ = 0;
    for (Warp& warp : warps_) warp.arrived = 0;
    failure_.clear();
    int alive = num_threads_;
    while (alive > 0 && failure_.empty()) {
      bool progress = false;
      for (const int w : warp_order) alive -= run_warp(w, lane_order, progress);
      if (!progress && failure_.empty()) failure_ = describe_standstill();
    }
#if defined(FORETOKEN_ACCESS_CHECKS)
    if (measures_traffic()) end_block_traffic();
    clear_shared();
#else
    for (const SharedArray& array : shared_) std::free(array.data);
#endif
    shared_.clear();
    shared_bytes_ = static_shared_bytes_ = 0;
    dynamic_shared_ = nullptr;
    if (!failure_.empty()) {
      // Threads that were left waiting keep a half-run body on their stacks: kernel bodies hold nothing that needs
      // destruction.
      for (Thread& t : threads_) t.fiber = nullptr;
      throw EmulationError(failure_);
    }
  }

  // Runs the warp's lanes until each waits for another warp or has ended; returns how many ended.
  int run_warp(int w, const std::vector<int>& lane_order, bool& progress) {
    int ended = 0;
    for (bool again = true; again && failure_.empty();) {
      again = false;
      for (const int l : lane_order) {
        const int i = w * kWarp + l;
        if (i >= num_threads_) continue;
        Thread& t = threads_[i];
        if (t.state != State::kReady) continue;
        resume(t);
        again = progress = true;
        if (t.state == State::kDone) ++ended;
        if (!failure_.empty()) break;
        if (std::exchange(preempted_, false)) return ended;
      }
    }
    return ended;
  }

  [[nodiscard]] std::string describe_standstill() const {
    std::string text = "threads of a block have parted: ";
    const Thread *waiting = nullptr, *other = nullptr;
    for (int i = 0; i < num_threads_; ++i) {
      const Thread& t = threads_[i];
      if (t.state != State::kDone && waiting == nullptr) waiting = &t;
    }
    for (int i = 0; i < num_threads_ && waiting != nullptr; ++i) {
      const Thread& t = threads_[i];
      if (t.state != waiting->state || !same_site(t.site, waiting->site)) other = &t;
    }
    const auto describe = [](const Thread& t) {
      return name_of(t) + (t.state == State::kDone        ? " has ended"
                           : t.state == State::kAtBarrier ? " waits at the barrier " + name_of(t.site)
                                                          : " waits at the collective " + name_of(t.site));
    };
    if (waiting != nullptr) text += describe(*waiting);
    if (other != nullptr) text += ", " + describe(*other);
    return text;
  }

  // From the scheduler into a thread, until it waits or ends.
  void resume(Thread& t) {
    current_ = &t;
    indices = &t.indices;
    tell_checker();
    if (t.fiber == nullptr) {
      t.fiber = context::make_fcontext(t.stack + kStackBytes, kStackBytes, &Machine::enter);
#if defined(__SANITIZE_THREAD__)
      if (t.tsan_fiber != nullptr) __tsan_destroy_fiber(t.tsan_fiber);
      t.tsan_fiber = __tsan_create_fiber(0);
#endif
    }
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, t.stack, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
    scheduler_fiber_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(t.tsan_fiber, 0);
#endif
    t.fiber = context::jump_fcontext(t.fiber, this).fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    indices = nullptr;
#if defined(FORETOKEN_ACCESS_CHECKS)
    running_thread = nullptr;
#endif
  }

  // From a thread to the scheduler.
  void wait(State state) {
    Thread& t = *current_;
    t.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&t.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_fiber_, 0);
#endif
    scheduler_ = context::jump_fcontext(scheduler_, nullptr).fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(t.fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // A fiber serves one thread number of block after block.
  static void enter(context::transfer_t from) {
    auto* machine = static_cast<Machine*>(from.data);
    machine->scheduler_ = from.fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine->scheduler_stack_, &machine->scheduler_stack_bytes_);
#endif
    for (;;) {
      (*machine->body_)();
      machine->require_wait();
      machine->wait(State::kDone);
    }
  }

  void require_wait() {
    if (current_->has_waited) return;
    fail([&] {
      return name_of(*current_) +
             " ends without wait_for_kernels_ahead(): when this kernel has ended, kernels ahead of it may still run";
    });
  }

  // What the access checker has to know; nothing where there is none.
  void begin_grid([[maybe_unused]] Parameters parameters, [[maybe_unused]] bool must_wait) {
#if defined(FORETOKEN_ACCESS_CHECKS)
    running_.must_wait = must_wait;
    FT_CHECK(running_.block < 0xf0000000u);  // block numbers of a run never come round
    running_.first_block = running_.block + 1;
    running_.parameters = static_cast<const std::byte*>(parameters.begin);
    running_.parameters_end = running_.parameters + parameters.size_bytes;
#endif
  }
  void begin_block() {
    barriers_ = 0;
    for (Warp& warp : warps_) warp.barriers = 0;
#if defined(FORETOKEN_ACCESS_CHECKS)
    ++running_.block;
#endif
  }
  void tell_checker() {
#if defined(FORETOKEN_ACCESS_CHECKS)
    const Warp& warp = warps_[current_->number / kWarp];
    FT_CHECK(barriers_ < 65535 && warp.barriers < 65535);
    running_.thread = static_cast<uint16_t>(current_->number);
    running_.barriers = static_cast<uint16_t>(barriers_);
    running_.warp_barriers = static_cast<uint16_t>(warp.barriers);
    running_.has_waited = current_->has_waited;
    running_.stack_begin = current_->stack;
    running_.stack_end = current_->stack + kStackBytes;
    running_thread = &running_;
#endif
  }

  std::mutex mutex_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  int num_threads_ = 0;
  const std::function<void()>* body_ = nullptr;
  Thread* current_ = nullptr;
  context::fcontext_t scheduler_ = nullptr;
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] size_t scheduler_stack_bytes_ = 0;
  [[maybe_unused]] void* scheduler_fiber_ = nullptr;
  int at_barrier_ = 0;
  int barriers_ = 0;  // of the block that runs
  Site barrier_site_;
  std::mt19937 preempt_random_;
  int preempt_one_in_ = 0;
  bool preempted_ = false;
  uint64_t preemptions_ = 0;
#if defined(FORETOKEN_ACCESS_CHECKS)
  RunningThread running_;
#endif
  std::vector<SharedArray> shared_;
  size_t shared_bytes_ = 0, static_shared_bytes_ = 0;
  size_t dynamic_shared_bytes_ = 0;
  std::byte* dynamic_shared_ = nullptr;
  std::string failure_;
  Order order_ = Order::kForward;
  uint32_t seed_ = 0;
  uint64_t threads_run_ = 0;
};

Machine& machine() {
  static Machine* instance = new Machine;  // never destroyed: its fibers would have to be unwound
  return *instance;
}

}  // namespace

void set_order(Order order, uint32_t seed) {
  machine().set_order(order, seed);
}
void set_preemption(uint32_t seed, int one_in) {
  machine().set_preemption(seed, one_in);
}
uint64_t preemptions() {
  return machine().preemptions();
}
void preempt() {
  machine().preempt();
}
bool owned_by_machine(const void* address) {
  return machine().owns(address);
}
void run_grid(uint3 grid, uint3 block, size_t dynamic_shared_bytes, const std::function<void()>& body,
              Parameters parameters, bool must_wait) {
  machine().run(grid, block, dynamic_shared_bytes, body, parameters, must_wait);
}
void note_wait() {
  machine().note_wait();
}
#if !defined(FORETOKEN_ACCESS_CHECKS)
void require_constant(const void*, size_t) {}
void note_weights(const void*, size_t) {}
void require_loadable(const void*, size_t) {}
#endif
uint64_t threads_run() {
  return machine().threads_run();
}
void sync_block(Site site) {
  machine().sync_block(site);
}
void sync_warp(uint32_t mask, Site site) {
  machine().sync_warp(mask, site);
}
void fail(const char* message) {
  machine().fail([&] { return message + (", " + machine().running()); });
}
const std::byte (*exchange(uint32_t mask, const void* value, size_t size_bytes, Site site))[64] {
  return machine().exchange(mask, value, size_bytes, site);
}
int lane() {
  return machine().lane();
}
void add_copy(AsyncCopy copy) {
  machine().add_copy(copy);
}
void end_copy_group() {
  machine().end_copy_group();
}
bool take_copy(int groups_under_way, AsyncCopy& copy) {
  return machine().take_copy(static_cast<size_t>(groups_under_way), copy);
}
std::byte* shared_array(size_t size_bytes, Site site) {
  return machine().shared_array(size_bytes, site);
}
std::byte* dynamic_shared() {
  return machine().dynamic_shared();
}
bool in_shared_memory(const void* data, size_t size_bytes) {
  return machine().in_shared_memory(static_cast<const std::byte*>(data), size_bytes);
}

}  // namespace foretoken::cuda::emulation
