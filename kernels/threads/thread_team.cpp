#include "kernels/threads/thread_team.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/threads/control_group.h"

namespace foretoken {

namespace {

using Clock = std::chrono::steady_clock;

// How long a waiting member keeps its core. Loops of a decode step follow each other within a few microseconds, a
// sleeper costs its waker a system call and comes some 50 us later; past that, sleeping wins. Members first only pause,
// then offer the core to whoever else wants it.
constexpr auto kPauseTime = std::chrono::microseconds(10);
constexpr auto kSpinTime = std::chrono::microseconds(60);

std::atomic<uint64_t> loops_done{0};

inline void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until done() or kSpinTime has gone by; returns done(). With more members than cores pausing only keeps a
// working member from its core, so then (`crowded`) every look is followed by a yield.
template <class Done>
bool spin_until(const Done& done, bool crowded) {
  if (done()) return true;
  const auto begin = Clock::now();
  for (bool yield = crowded;;) {
    if (yield) {
      std::this_thread::yield();
      if (done()) return true;
    } else {
      for (int i = 0; i < 32; ++i) {  // about a microsecond between two looks at the clock
        pause_core();
        if (done()) return true;
      }
    }
    const auto waited = Clock::now() - begin;
    if (waited > kSpinTime) return false;
    yield = crowded || waited > kPauseTime;
  }
}

}  // namespace

// How a loop runs. The caller writes the loop's fields and opens the gate; a worker passes the gate by adding itself to
// `gate` and finding the open bit in what was there before; members take items until none is left; the caller closes
// the gate and waits until nobody is inside.
//
// Each member has a range of its own, so that it reads on where it stopped (a matrix kernel at the start of an item
// waits for memory; with items dealt from one counter and two members, every item was a start: 23 GB/s became 26), and
// the same part of every matrix in each pass. Who is through with its range takes items from the others', one by one,
// its own node's members first: theirs lie beside it.
//
// INVARIANTS
// 1. context, body, num_items, by_node, begins, loop and epoch change only while the gate is closed and nobody who
//    found it open is inside.
// 2. A worker reads them only after finding the gate open and before it leaves. So what it runs belongs to the loop
//    that is open, however late it wakes and whatever it was woken for: a loop's fields are never carried out of the loop.
// 3. The caller never waits for a worker that has not come in. A sleeping or descheduled worker holds up nobody; one
//    inside holds up the item that it works on.
// 4. A count from a worker that found the gate closed comes and goes without any read of the fields; it may delay the
//    caller's return by that moment, no more.
// 5. Wake-ups may be lost only when they do not matter: sleepers announce themselves before they look a last time
//    (`sleepers`, `caller_sleeps`), wakers change the word before they look for sleepers, all four sequentially
//    consistent.
struct ThreadTeam::State {
  static constexpr uint32_t kOpen = 1u << 16;
  static constexpr uint32_t kInside = kOpen - 1;  // mask of the number of workers inside
  static_assert(kMaxThreads < static_cast<int>(kInside));
  static constexpr uint64_t kCount = 0xffffffff;  // mask of the items taken

  // What workers look at while they wait, and what they read once they are in.
  alignas(64) std::atomic<uint32_t> epoch{0};  // loops opened so far
  std::atomic<uint32_t> gate{0};
  std::atomic<uint32_t> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};
  bool by_node = false;  // member i begins with items [begins[i], begins[i + 1]), else with an equal part of all
  void* context = nullptr;
  BodyFn body = nullptr;
  int64_t num_items = 0;
  uint32_t loop = 0;  // number of the loop that runs

  // In lines that nobody writes while the team is at work, or every loop would fetch them anew; only where there are
  // several nodes the numbers in `begins` change.
  alignas(64) bool crowded = false;
  std::vector<int64_t> begins;

  // Per member, in a line of its own: number of the loop << 32 | items taken from its range. A word of an older loop
  // stands for none, so opening a loop touches none of them.
  struct alignas(64) Taken {
    std::atomic<uint64_t> word{0};
  };
  std::vector<Taken> taken;

  // The members [begin, end) of one node. What is on a node without any goes with the next one's items, or with the
  // last one's.
  struct Group {
    int node;
    int64_t begin, end;
  };
  std::vector<Group> groups;
  std::vector<size_t> group_of;  // by member
  NumaNodes nodes;
  const std::atomic<bool>* asked_to_stop = nullptr;  // set before the first loop

  // The caller's.
  alignas(64) bool in_loop = false;
  std::optional<ThreadPin> caller_pin;
  std::vector<std::thread> workers;

  ~State() {
    stop.store(true);
    epoch.fetch_add(1);
    epoch.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void lay_members(int num_members) {
    group_of.resize(num_members);
    begins.resize(static_cast<size_t>(num_members) + 1);
    for (int i = 0; i < num_members; ++i) {
      const int node = nodes.node_of_member(i, num_members);
      if (groups.empty() || groups.back().node != node) groups.push_back({node, i, i});
      groups.back().end = i + 1;
      group_of[i] = groups.size() - 1;
    }
  }

  void set_begins(std::span<const int64_t> node_ends) {
    int64_t first = 0;
    for (const Group& group : groups) {
      const bool is_last = &group == &groups.back();
      const int64_t size = (is_last ? node_ends.back() : node_ends[group.node]) - first;
      const int64_t members = group.end - group.begin;
      for (int64_t i = 0; i < members; ++i) begins[group.begin + i] = first + size * i / members;
      first += size;
    }
    begins.back() = first;
  }

  [[nodiscard]] bool is_asked_to_stop() const {
    return asked_to_stop != nullptr && asked_to_stop->load(std::memory_order_relaxed);
  }

  [[nodiscard]] const NumaNode* node_to_pin(int thread_idx) const {
    if (nodes.count() == 1) return nullptr;
    return &nodes.nodes()[groups[group_of[thread_idx]].node];
  }

  void take_items(int thread_idx) noexcept {
    const auto fn = body;
    void* const fn_context = context;
    const int64_t n = num_items;
    const auto num_members = static_cast<int64_t>(taken.size());
    const uint64_t current = uint64_t{loop} << 32;
    const Group& own = groups[group_of[thread_idx]];
    const int64_t mates = own.end - own.begin, place = thread_idx - own.begin;
    for (int64_t i = 0; i < num_members; ++i) {
      const int64_t owner =
          i < mates ? own.begin + (place + i) % mates : (own.end + (place + i) % (num_members - mates)) % num_members;
      const auto at = static_cast<size_t>(owner);
      const int64_t begin = by_node ? begins[at] : n * owner / num_members;
      const int64_t size = (by_node ? begins[at + 1] : n * (owner + 1) / num_members) - begin;
      std::atomic<uint64_t>& word = taken[owner].word;
      for (uint64_t seen = word.load(std::memory_order_relaxed);;) {
        const uint64_t mine = (seen & ~kCount) == current ? seen & kCount : 0;
        if (static_cast<int64_t>(mine) >= size) break;
        if (!word.compare_exchange_weak(seen, current | (mine + 1), std::memory_order_relaxed)) continue;
        if (!is_asked_to_stop()) fn(fn_context, begin + static_cast<int64_t>(mine), thread_idx);
        seen = word.load(std::memory_order_relaxed);
      }
    }
  }

  void work(int thread_idx) {
    std::optional<ThreadPin> pin;
    if (const NumaNode* const node = node_to_pin(thread_idx)) pin.emplace(*node);
    uint32_t seen = 0;
    for (;;) {
      wait_for_epoch_after(seen);
      if (stop.load()) return;
      const uint32_t before = gate.fetch_add(1, std::memory_order_acquire);
      seen = epoch.load(std::memory_order_relaxed);
      if (before & kOpen) take_items(thread_idx);
      const uint32_t after = gate.fetch_sub(1) - 1;
      if ((after & kInside) == 0 && caller_sleeps.load()) gate.notify_all();
    }
  }

  void wait_for_epoch_after(uint32_t seen) {
    const auto opened = [&] { return epoch.load(std::memory_order_relaxed) != seen; };
    if (spin_until(opened, crowded)) return;
    sleepers.fetch_add(1);
    // A late member may have taken the end of the team for the loop that it came for: then no epoch follows.
    while (epoch.load() == seen && !stop.load()) epoch.wait(seen);
    sleepers.fetch_sub(1);
  }

  void open(int64_t items, std::span<const int64_t> node_ends, void* new_context, BodyFn new_body) {
    context = new_context;
    body = new_body;
    num_items = items;
    by_node = node_ends.size() > 1;
    if (by_node) set_begins(node_ends);
    ++loop;
    gate.fetch_add(kOpen, std::memory_order_release);
    epoch.fetch_add(1);
    const int64_t asleep = sleepers.load();
    if (asleep == 0) return;
    if (asleep < items) {
      epoch.notify_all();
    } else {  // the caller takes one item itself
      for (int64_t i = 1; i < items; ++i) epoch.notify_one();
    }
  }

  void close_and_wait() {
    gate.fetch_sub(kOpen, std::memory_order_acq_rel);
    const auto empty = [&] { return (gate.load(std::memory_order_acquire) & kInside) == 0; };
    if (spin_until(empty, crowded)) return;
    caller_sleeps.store(true);
    for (uint32_t now; ((now = gate.load()) & kInside) != 0;) gate.wait(now);
    caller_sleeps.store(false, std::memory_order_relaxed);
  }
};

ThreadTeam::ThreadTeam(int num_threads, NumaNodes nodes) : state_(std::make_unique<State>()) {
  FT_CHECK(num_threads >= 1 && num_threads <= kMaxThreads);
  if (num_threads > 1) state_->nodes = std::move(nodes);
  state_->lay_members(num_threads);
  state_->crowded = num_threads > available_cores();
  state_->taken = std::vector<State::Taken>(static_cast<size_t>(num_threads));
  state_->workers.reserve(static_cast<size_t>(num_threads) - 1);
  for (int i = 1; i < num_threads; ++i) {
    try {
      state_->workers.emplace_back([state = state_.get(), i] { state->work(i); });
    } catch (const std::system_error& error) {
      throw InputError(fmt::format("thread {} of {} could not be started ({}); ask for fewer with --threads", i + 1,
                                   num_threads, error.what()));
    }
  }
}

ThreadTeam::~ThreadTeam() = default;

int ThreadTeam::num_threads() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

const NumaNodes& ThreadTeam::nodes() const {
  return state_->nodes;
}

void ThreadTeam::set_stop(const std::atomic<bool>* stop) {
  state_->asked_to_stop = stop;
}

int ThreadTeam::node_of(int thread_idx) const {
  return state_->groups[state_->group_of[thread_idx]].node;
}

void ThreadTeam::run(int64_t num_items, std::span<const int64_t> node_ends, void* context, BodyFn body) {
  State& state = *state_;
  FT_CHECK(!state.in_loop);  // a body called parallel_for
  FT_CHECK(num_items <= static_cast<int64_t>(State::kCount));
  FT_CHECK(node_ends.empty() || node_ends.size() == static_cast<size_t>(state.nodes.count()));
  // Not before the first loop: threads that the caller starts until then are none of the team's business.
  if (const NumaNode* const node = state.node_to_pin(0); node != nullptr && !state.caller_pin) {
    state.caller_pin.emplace(*node);
  }
  state.in_loop = true;
  if (state.workers.empty() || num_items <= 1) {
    [&]() noexcept {
      for (int64_t item = 0; item < num_items && !state.is_asked_to_stop(); ++item) body(context, item, 0);
    }();
  } else {
    state.open(num_items, node_ends, context, body);
    state.take_items(0);
    state.close_and_wait();
  }
  state.in_loop = false;
  loops_done.fetch_add(1, std::memory_order_relaxed);
}

uint64_t num_loops_done() {
  return loops_done.load(std::memory_order_relaxed);
}

namespace {

int cores_in_affinity() {
  const std::vector<int> cpus = allowed_cpus();
  return cpus.empty() ? std::max(1, static_cast<int>(std::thread::hardware_concurrency()))
                      : static_cast<int>(cpus.size());
}

// Cores that a group's quota of processor time is worth, rounded up (a team of the lower number would leave quota
// unused); 0: no quota.
int cores_in_quota(const ControlGroupFolder& folder) {
  std::string quota, period;
  if (folder.is_v2) {
    const std::string line = read_first_line(folder.path + "/cpu.max");  // "150000 100000" or "max 100000"
    const size_t space = line.find(' ');
    if (space == std::string::npos) return 0;
    quota = line.substr(0, space);
    period = line.substr(space + 1);
  } else {
    quota = read_first_line(folder.path + "/cpu.cfs_quota_us");  // -1: none
    period = read_first_line(folder.path + "/cpu.cfs_period_us");
  }
  const long long quota_us = std::atoll(quota.c_str()), period_us = std::atoll(period.c_str());
  if (quota_us <= 0 || period_us <= 0) return 0;
  return static_cast<int>(std::min<long long>((quota_us - 1) / period_us + 1, ThreadTeam::kMaxThreads));
}

}  // namespace

int available_cores() {
  int cores = std::min(cores_in_affinity(), ThreadTeam::kMaxThreads);
  for (const ControlGroupFolder& folder : control_group_folders("cpu")) {
    if (const int quota = cores_in_quota(folder); quota > 0) cores = std::min(cores, quota);
  }
  return cores;
}

}  // namespace foretoken
