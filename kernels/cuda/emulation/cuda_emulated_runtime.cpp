#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_faults.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/cuda/emulation/cuda_emulation.h"
#if defined(FORETOKEN_ACCESS_CHECKS)
#include "kernels/cuda/emulation/emulated_memory.h"
#include "kernels/cuda/emulation/warp_traffic.h"
#endif

namespace foretoken::cuda {

namespace emulation {

namespace {

Faults faults;
bool lost = false;

}  // namespace

void inject(const Faults& wanted) {
  faults = wanted;
  lost = false;
}

}  // namespace emulation

namespace {

// As on a GPU, work that crashes is noticed by the next call that waits, and by every call after it.
void notice_loss(std::string_view what) {
  if (emulation::lost) fail_call(what, "unspecified launch failure", "cudaErrorLaunchFailure");
}

using Work = std::function<void()>;
using Clock = std::chrono::steady_clock;

// A piece of work in a queue or in a recording.
struct Item {
  Work run;
  std::string name;   // what it is, for messages
  uint64_t hash = 0;  // of shape and parameters: the same when a recording is listed again
  const void* kernel = nullptr;
  // A copy's memory. Pinned memory is read when the copy runs: until then it has to stay, and to stay as it is.
  const std::byte* pinned_source = nullptr;
  std::byte* pinned_target = nullptr;
  size_t size_bytes = 0;
  uint64_t source_sum = 0;
  const uint32_t* waits_for = nullptr;  // a flag of the host's

  [[nodiscard]] bool can_run() const {
    return waits_for == nullptr || std::atomic_ref(const_cast<uint32_t&>(*waits_for)).load() != 0;
  }
};

struct EmulatedStream {
  std::deque<Item> queue;
  std::vector<Item>* recording = nullptr;
};

struct EmulatedGraph {
  std::vector<Item> items;
};

struct EmulatedEvent {
  Clock::time_point time;
  uint64_t recorded = 0, happened = 0;  // how often
  EmulatedStream* stream = nullptr;
  bool with_time = false;
};

uint64_t sum_of(const std::byte* data, size_t size_bytes) {
  uint64_t sum = 0xcbf29ce484222325u;
  size_t at = 0;
  for (; at + 8 <= size_bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + at, 8);
    sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
    sum ^= sum >> 29;
  }
  for (; at < size_bytes; ++at) sum = (sum ^ static_cast<uint64_t>(data[at])) * 0x100000001b3u;
  return sum;
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto *x = static_cast<const std::byte*>(a), *y = static_cast<const std::byte*>(b);
  return x < y + b_bytes && y < x + a_bytes;
}

// Set while this host thread records a graph: what a capture refuses on a GPU is refused then.
thread_local bool is_recording = false;

void refuse_in_recording(const char* what) {
  if (is_recording) throw EmulationError(std::string(what) + " while a graph is recorded: a capture refuses it");
}

// The device's queues and memory. Work waits in its stream's queue until somebody waits for the stream, an event of it, or
// the whole device; nothing has happened before. One mutex for all: host threads take turns.
class Device {
 public:
  void add(EmulatedStream* stream) {
    const std::lock_guard lock(mutex_);
    streams_.push_back(stream);
  }
  // As on a GPU, the work of a stream that is given up still happens.
  void remove(EmulatedStream* stream) {
    const std::lock_guard lock(mutex_);
    finish_quietly();
    std::erase(streams_, stream);
  }

  void submit(EmulatedStream* stream, Item item) {
    FT_CHECK(stream != nullptr);
    const std::lock_guard lock(mutex_);
    if (stream->recording != nullptr) {
      if (item.kernel != nullptr && !loaded_.contains(item.kernel) && !all_loaded_)
        throw EmulationError(item.name +
                             " was never launched before it is recorded: a capture refuses to load a kernel");
      stream->recording->push_back(std::move(item));
      return;
    }
    notice_loss("starting work");
    const bool waits = item.kernel != nullptr && launches_block();
    if (item.kernel != nullptr) loaded_.insert(item.kernel);
    enqueue(stream, std::move(item));
    if (waits) finish(stream);
  }

  void enqueue(EmulatedStream* stream, Item item) {
    const std::lock_guard lock(mutex_);
    if (item.pinned_source != nullptr) item.source_sum = sum_of(item.pinned_source, item.size_bytes);
    // Who looks at the target too early finds NaN, unless work before this still needs what is there.
    if (item.pinned_target != nullptr && !is_queued_source(item.pinned_target, item.size_bytes))
      std::memset(item.pinned_target, 0xff, item.size_bytes);
    stream->queue.push_back(std::move(item));
  }

  void finish(EmulatedStream* stream) {
    const std::lock_guard lock(mutex_);
    run_until([stream] { return stream->queue.empty(); }, stream);
  }
  void finish(const EmulatedEvent& event) {
    const std::lock_guard lock(mutex_);
    if (event.recorded > 0) run_until([&event] { return event.happened == event.recorded; }, event.stream);
  }

  void finish(EmulatedStream* stream, std::span<const uint32_t> flags) {
    const std::lock_guard lock(mutex_);
    run_until([&] { return std::all_of(flags.begin(), flags.end(), [](uint32_t flag) { return flag != 0; }); }, stream);
  }

  // Allocation and release, as cudaMalloc and cudaFree: the latter waits for all work of the device.
  void* allocate(size_t size_bytes, size_t counted_bytes, std::string_view what, std::span<const BufferPiece> pieces) {
    refuse_in_recording("allocating memory");
    const std::lock_guard lock(mutex_);
    const size_t total = require_device().memory_bytes;
    if (allocated_bytes_ + counted_bytes > total)
      refuse_memory(counted_bytes, what, total > allocated_bytes_ ? total - allocated_bytes_ : 0, total);
    if (size_bytes == 0) return nullptr;
    notice_loss("allocating memory");
    void* data = take_memory(size_bytes, pieces);
    allocations_.emplace(static_cast<std::byte*>(data), Allocation{size_bytes, counted_bytes});
    allocated_bytes_ += counted_bytes;
    return data;
  }
  void free(void* data) {
    if (data == nullptr) return;
    const std::lock_guard lock(mutex_);
    finish_quietly();
    const auto found = allocations_.find(static_cast<std::byte*>(data));
    FT_CHECK(found != allocations_.end());
    allocated_bytes_ -= found->second.counted_bytes;
    allocations_.erase(found);
    give_memory_back(data);
  }
  [[nodiscard]] size_t allocated_bytes() {
    const std::lock_guard lock(mutex_);
    return allocated_bytes_;
  }

  std::byte* pin(size_t size_bytes) {
    refuse_in_recording("pinning memory");
    const std::lock_guard lock(mutex_);
    notice_loss("allocating memory");
    void* data = nullptr;
    FT_CHECK(posix_memalign(&data, 256, size_bytes) == 0);
    std::memset(data, 0xff, size_bytes);
    pinned_.emplace(static_cast<std::byte*>(data), size_bytes);
    return static_cast<std::byte*>(data);
  }
  void unpin(void* data) {
    const std::lock_guard lock(mutex_);
    finish_quietly();
    pinned_.erase(static_cast<std::byte*>(data));
    std::free(data);
  }
  // As cudaFreeHost: what still works with the memory comes to its end.
  void finish_all() {
    const std::lock_guard lock(mutex_);
    finish_quietly();
  }
  [[nodiscard]] bool is_pinned(const void* data) {
    const std::lock_guard lock(mutex_);
    auto* const at = const_cast<std::byte*>(static_cast<const std::byte*>(data));
    const auto next = pinned_.upper_bound(at);
    return next != pinned_.begin() && at < std::prev(next)->first + std::prev(next)->second;
  }
  [[nodiscard]] bool is_of_device(const void* data) {
    const std::lock_guard lock(mutex_);
    auto* const at = const_cast<std::byte*>(static_cast<const std::byte*>(data));
    const auto next = allocations_.upper_bound(at);
    return next != allocations_.begin() && at < std::prev(next)->first + std::prev(next)->second.size_bytes;
  }

  void set_order(std::optional<uint32_t> seed) {
    const std::lock_guard lock(mutex_);
    any_order_ = seed.has_value();
    random_.seed(seed.value_or(0));
  }
  void set_all_loaded(bool loaded) {
    const std::lock_guard lock(mutex_);
    all_loaded_ = loaded;
  }
  [[nodiscard]] std::map<std::string, uint64_t> take_kernel_counts() {
    const std::lock_guard lock(mutex_);
    return std::exchange(kernel_counts_, {});
  }

 private:
  [[nodiscard]] bool is_queued_source(const void* data, size_t size_bytes) const {
    for (const EmulatedStream* stream : streams_) {
      for (const Item& item : stream->queue) {
        if (item.pinned_source != nullptr && overlap(item.pinned_source, item.size_bytes, data, size_bytes))
          return true;
      }
    }
    return false;
  }

  // Streams are not ordered among each other: with a seed, any of them goes on.
  template <class Done>
  void run_until(const Done& done, EmulatedStream* wanted) {
    if (done()) return;
#if defined(FORETOKEN_ACCESS_CHECKS)
    const emulation::DeviceAccess access;
#endif
    while (!done()) {
      EmulatedStream* stream = wanted;
      if (any_order_ && random_() % 2 == 0) stream = streams_[random_() % streams_.size()];
      if (stream == wanted && (stream->queue.empty() || !stream->queue.front().can_run())) {
        throw EmulationError(stream->queue.empty() ? "the host waits for what nothing in the stream brings about"
                                                   : stream->queue.front().name +
                                                         " waits for a flag that the host has not raised, and "
                                                         "the host waits for the stream");
      }
      if (stream->queue.empty() || !stream->queue.front().can_run()) continue;
      const Item item = std::move(stream->queue.front());
      stream->queue.pop_front();
      if (item.kernel != nullptr) ++kernel_counts_[item.name];
      try {
        if (item.pinned_source != nullptr && sum_of(item.pinned_source, item.size_bytes) != item.source_sum)
          throw EmulationError(item.name + ": its pinned source was written to before the copy had run");
        item.run();
      } catch (...) {
        for (EmulatedStream* each : streams_) each->queue.clear();
        throw;
      }
    }
  }

  // In destructors: what fails has lost its witness.
  void finish_quietly() {
    for (EmulatedStream* stream : std::vector(streams_)) {
      try {
        run_until([stream] { return stream->queue.empty(); }, stream);
      } catch (const std::exception&) {
        if (stream->queue.empty() || stream->queue.front().can_run()) return;
        // On a GPU this would wait for ever, and whoever releases memory with it.
        fmt::print(stderr, "cuda emulation: memory or a stream is released while {} waits for the host\n",
                   stream->queue.front().name);
        std::abort();
      }
    }
  }

  // Filled with 0xff, so that what is read before it is written is NaN.
  static void* take_memory(size_t size_bytes, [[maybe_unused]] std::span<const BufferPiece> pieces) {
#if defined(FORETOKEN_ACCESS_CHECKS)
    std::vector<emulation::Piece> parts;
    for (const BufferPiece& piece : pieces) parts.push_back({piece.offset, piece.size_bytes});
    if (parts.empty()) parts.push_back({0, size_bytes});
    return emulation::allocate_device_memory(size_bytes, parts);
#else
    void* data = nullptr;
    FT_CHECK(posix_memalign(&data, 256, size_bytes) == 0);
    std::memset(data, 0xff, size_bytes);
    return data;
#endif
  }
  static void give_memory_back(void* data) {
#if defined(FORETOKEN_ACCESS_CHECKS)
    emulation::free_device_memory(static_cast<std::byte*>(data));
#else
    std::free(data);
#endif
  }

  std::recursive_mutex mutex_;
  std::vector<EmulatedStream*> streams_;
  struct Allocation {
    size_t size_bytes, counted_bytes;
  };
  std::map<std::byte*, Allocation> allocations_;
  std::map<std::byte*, size_t> pinned_;
  std::unordered_set<const void*> loaded_;  // kernels that were launched
  bool all_loaded_ = false;
  std::map<std::string, uint64_t> kernel_counts_;
  size_t allocated_bytes_ = 0;
  bool any_order_ = false;
  std::mt19937 random_;
};

Device& device() {
  static Device* instance = new Device;  // buffers of static lifetime may outlive everything
  return *instance;
}

EmulatedStream* emulated(const Stream& stream) {
  return static_cast<EmulatedStream*>(stream.handle());
}

// A copy or fill that runs later. Host memory that is not pinned is read at once.
void submit_copy(const Stream& stream, const char* name, void* to, const void* from, size_t size_bytes) {
  Item item;
  item.name = name;
  item.size_bytes = size_bytes;
  item.hash = add_to_hash(add_to_hash(add_to_hash(uint64_t{1}, to), from), size_bytes);
  if (device().is_pinned(from)) item.pinned_source = static_cast<const std::byte*>(from);
  if (device().is_pinned(to)) item.pinned_target = static_cast<std::byte*>(to);
  std::shared_ptr<std::vector<std::byte>> held;
  if (!device().is_of_device(from) && item.pinned_source == nullptr) {
    refuse_in_recording("a copy from memory that is not pinned");
    held = std::make_shared<std::vector<std::byte>>(static_cast<const std::byte*>(from),
                                                    static_cast<const std::byte*>(from) + size_bytes);
  }
  item.run = [to, from, size_bytes, held] {
#if defined(FORETOKEN_ACCESS_CHECKS)
    emulation::check_allocated(from, size_bytes);
    emulation::check_allocated(to, size_bytes);
    emulation::mark_written(to, size_bytes);
#endif
    std::memcpy(to, held != nullptr ? held->data() : from, size_bytes);
  };
  device().submit(emulated(stream), std::move(item));
}

}  // namespace

namespace emulation {

void set_stream_order(std::optional<uint32_t> seed) {
  device().set_order(seed);
}
void assume_kernels_loaded(bool loaded) {
  device().set_all_loaded(loaded);
}
std::map<std::string, uint64_t> take_kernel_counts() {
  return device().take_kernel_counts();
}

}  // namespace emulation

Stream::Stream(Launches launches)
    : handle_(new EmulatedStream),
      is_dependent_(launches == Launches::kDependent && require_device().dependent_launch) {
  device().add(emulated(*this));
}
Stream::~Stream() {
  if (handle_ == nullptr) return;
  device().remove(emulated(*this));
  delete emulated(*this);
}
// What the host does before each wait for work of the device.
static void begin_wait(const char* what) {
  refuse_in_recording(what);
  if (emulation::faults.waits_until_lost && (*emulation::faults.waits_until_lost)-- == 0) emulation::lost = true;
  notice_loss("waiting for the device");
}

void Stream::synchronize() const {
  begin_wait("waiting for a stream");
  device().finish(emulated(*this));
}

Event::Event(bool with_time) : handle_(new std::shared_ptr<EmulatedEvent>(std::make_shared<EmulatedEvent>())) {
  (*static_cast<std::shared_ptr<EmulatedEvent>*>(handle_))->with_time = with_time;
}
Event::~Event() {
  delete static_cast<std::shared_ptr<EmulatedEvent>*>(handle_);
}
void Event::record(const Stream& stream) {
  const auto event = *static_cast<std::shared_ptr<EmulatedEvent>*>(handle_);
  event->stream = emulated(stream);
  Item item;
  item.name = "an event";
  const bool recorded = event->stream->recording != nullptr;
  const uint64_t number = recorded ? 0 : ++event->recorded;
  item.run = [event, number] {
    event->time = Clock::now();
    event->happened = number;
  };
  device().submit(event->stream, std::move(item));
}
void Event::synchronize() const {
  refuse_in_recording("waiting for an event");
  notice_loss("waiting for an event");
  device().finish(**static_cast<std::shared_ptr<EmulatedEvent>*>(handle_));
}
float Event::milliseconds_since(const Event& begin) const {
  refuse_in_recording("reading the time between two events");
  const EmulatedEvent &from = **static_cast<std::shared_ptr<EmulatedEvent>*>(begin.handle_),
                      &to = **static_cast<std::shared_ptr<EmulatedEvent>*>(handle_);
  if (!from.with_time || !to.with_time) throw EmulationError("a time is asked of an event that has none");
  if (from.happened != from.recorded || to.happened != to.recorded)
    throw EmulationError("the time between two events is asked for before they have happened");
  return std::chrono::duration<float, std::milli>(to.time - from.time).count();
}

// Until it ends, what this host thread puts into the stream goes into the graph.
GraphRecording::GraphRecording(const Stream& stream) : stream_(stream) {
  FT_CHECK(emulated(stream)->recording == nullptr);
  auto* graph = new EmulatedGraph;
  emulated(stream)->recording = &graph->items;
  is_recording = true;
  handle_ = graph;
}

GraphRecording::~GraphRecording() {
  if (!is_open_) return;
  emulated(stream_)->recording = nullptr;
  is_recording = false;
  delete static_cast<EmulatedGraph*>(handle_);
}

Graph GraphRecording::end() {
  is_open_ = false;
  emulated(stream_)->recording = nullptr;
  is_recording = false;
  Graph result;
  result.handle_ = handle_;
  return result;
}

Graph::~Graph() {
  delete static_cast<EmulatedGraph*>(handle_);
}

void Graph::launch(const Stream& stream) const {
  notice_loss("launching a graph");
  if (emulated(stream)->recording != nullptr) throw EmulationError("a graph is launched while another is recorded");
  for (const Item& item : static_cast<EmulatedGraph*>(handle_)->items) device().enqueue(emulated(stream), item);
  if (launches_block()) device().finish(emulated(stream));
}

bool recordings_are_compared() {
  return true;
}

void Graph::require_same(const Graph& listed_again) const {
  const std::vector<Item>&items = static_cast<EmulatedGraph*>(handle_)->items,
        &now = static_cast<EmulatedGraph*>(listed_again.handle_)->items;
  const auto name = [](const std::vector<Item>& list, size_t i) { return i < list.size() ? list[i].name : "nothing"; };
  for (size_t i = 0; i < std::max(now.size(), items.size()); ++i) {
    if (i < now.size() && i < items.size() && now[i].name == items[i].name && now[i].hash == items[i].hash) continue;
    throw EmulationError(fmt::format("a recording is out of date: its work {} of {} is {}, and now it would be {}{}", i,
                                     items.size(), name(items, i), name(now, i),
                                     name(items, i) == name(now, i) ? " with another shape or parameters" : ""));
  }
}

size_t guard_bytes() {
#if defined(FORETOKEN_ACCESS_CHECKS)
  return emulation::DeviceMemory::kGuardBytes;
#else
  return 0;
#endif
}

DeviceBuffer::DeviceBuffer(size_t size_bytes, std::string_view what)
    : data_(device().allocate(size_bytes, size_bytes, what, {})), size_bytes_(size_bytes) {}
DeviceBuffer::DeviceBuffer(size_t size_bytes, std::string_view what, std::span<const BufferPiece> pieces)
    : data_(device().allocate(size_bytes, size_bytes - pieces.size() * guard_bytes(), what, pieces)),
      size_bytes_(size_bytes) {}
DeviceBuffer::~DeviceBuffer() {
  device().free(data_);
}

void* allocate_host_memory(HostMemory kind, size_t size_bytes) {
  if (kind == HostMemory::kPinned) return device().pin(size_bytes);
  refuse_in_recording("mapping memory");
  notice_loss("allocating memory");
#if defined(FORETOKEN_ACCESS_CHECKS)
  return emulation::allocate_mapped_memory(size_bytes);
#else
  void* data = nullptr;
  FT_CHECK(posix_memalign(&data, 256, size_bytes) == 0);
  std::memset(data, 0xff, size_bytes);
  return data;
#endif
}

void free_host_memory(HostMemory kind, void* data) {
  if (kind == HostMemory::kPinned) return device().unpin(data);
  device().finish_all();
#if defined(FORETOKEN_ACCESS_CHECKS)
  emulation::free_mapped_memory(static_cast<std::byte*>(data));
#else
  std::free(data);
#endif
}

// Pages are not rounded here: a kernel that leaves what was asked for is found.
RegisteredMemory::RegisteredMemory(const void* data, [[maybe_unused]] size_t size_bytes)
    : data_(const_cast<void*>(data)) {
#if defined(FORETOKEN_ACCESS_CHECKS)
  emulation::register_host_memory(data, size_bytes);
#endif
}
RegisteredMemory::~RegisteredMemory() {
  if (data_ == nullptr) return;
  device().finish_all();
#if defined(FORETOKEN_ACCESS_CHECKS)
  emulation::unregister_host_memory(data_);
#endif
}

Flags::Flags(int count) : memory_(static_cast<size_t>(count) * sizeof(uint32_t)) {
  for (int i = 0; i < count; ++i) lower(i);
}
void Flags::raise(int i) const {
  std::atomic_ref(words()[i]).store(1);
}
void Flags::lower(int i) const {
  std::atomic_ref(words()[i]).store(0);
}
void Flags::wait(const Stream& stream, int count) const {
  begin_wait("waiting for a flag");
  device().finish(emulated(stream), {words(), static_cast<size_t>(count)});
}

void copy_to_device(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  if (size_bytes > 0) submit_copy(stream, "a copy to the device", to, from, size_bytes);
}
void copy_to_host(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  if (size_bytes == 0) return;
  const bool waits = !device().is_pinned(to);  // a copy to other memory returns when it has run
  if (waits) refuse_in_recording("a copy to memory that is not pinned");
  submit_copy(stream, "a copy to the host", to, from, size_bytes);
  if (waits) device().finish(emulated(stream));
}
void copy_on_device(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  if (size_bytes > 0) submit_copy(stream, "a copy on the device", to, from, size_bytes);
}
void fill_zero(const Stream& stream, void* to, size_t size_bytes) {
  Item item;
  item.name = "a fill";
  item.hash = add_to_hash(add_to_hash(uint64_t{2}, to), size_bytes);
  item.run = [to, size_bytes] {
#if defined(FORETOKEN_ACCESS_CHECKS)
    emulation::check_allocated(to, size_bytes);
    emulation::mark_written(to, size_bytes);
#endif
    std::memset(to, 0, size_bytes);
  };
  device().submit(emulated(stream), std::move(item));
}

// Threads that a block of each kernel may have: its __launch_bounds__, as nvcc wrote them into the table of kernels. The
// instances of a template have the same. Kernels that are not in it (tests have their own) take what a GPU takes.
static const std::map<std::string, unsigned, std::less<>>& launch_bounds() {
  static const std::map<std::string, unsigned, std::less<>> bounds = [] {
    std::map<std::string, unsigned, std::less<>> found;
    std::ifstream table(FORETOKEN_KERNEL_TABLE);
    FT_CHECK(table.good());
    for (std::string line; std::getline(table, line);) {
      std::istringstream cells(line);
      std::vector<std::string> row;
      for (std::string cell; std::getline(cells, cell, '\t');) row.push_back(cell);
      constexpr size_t kThreads = 6;
      if (line.starts_with('#') || row.size() <= kThreads || row[0] == "kernel") continue;
      unsigned& most = found[row[0].substr(0, row[0].find('<'))];
      most = std::max(most, static_cast<unsigned>(std::stoul(row[kThreads])));
    }
    return found;
  }();
  return bounds;
}

// As a GPU's driver, also while work is recorded. The limits are those of all compute capabilities.
static void check_shape(const LaunchShape& shape, const char* name) {
  constexpr unsigned kMostX = 0x7fffffff, kMostYZ = 65535, kMostThreads = 1024, kMostThreadsZ = 64;
  const Dim3 &grid = shape.grid, &block = shape.block;
  const bool fits = grid.x >= 1 && grid.x <= kMostX && grid.y >= 1 && grid.y <= kMostYZ && grid.z >= 1 &&
                    grid.z <= kMostYZ && block.x >= 1 && block.y >= 1 && block.z >= 1 && block.z <= kMostThreadsZ &&
                    uint64_t{block.x} * block.y * block.z <= kMostThreads;
  if (fits) {
    const auto bound = launch_bounds().find(name);
    const unsigned threads = block.x * block.y * block.z;
    if (bound == launch_bounds().end() || threads <= bound->second) return;
    throw EmulationError(
        fmt::format("{}: blocks of {} threads, its launch bounds allow {}", name, threads, bound->second));
  }
  throw EmulationError(fmt::format("{}: a grid of {} x {} x {} blocks of {} x {} x {} threads: no GPU takes it", name,
                                   grid.x, grid.y, grid.z, block.x, block.y, block.z));
}

static void submit_kernel(const Stream& stream, const LaunchShape& shape, const char* name, const void* kernel,
                          uint64_t hash, Work body, emulation::Parameters parameters) {
  check_shape(shape, name);
  Item item;
  item.name = name;
  item.kernel = kernel;
  item.hash = add_to_hash(hash, shape);
  item.waits_for = shape.waits_for;
  const bool must_wait = kernel != nullptr && stream.is_dependent();  // a library's kernels see to it themselves
  item.run = [shape, name, body = std::move(body), parameters, must_wait] {
    try {
#if defined(FORETOKEN_ACCESS_CHECKS)
      emulation::begin_grid_traffic(name);
#endif
      emulation::run_grid({shape.grid.x, shape.grid.y, shape.grid.z}, {shape.block.x, shape.block.y, shape.block.z},
                          shape.shared_bytes, body, parameters, must_wait);
    } catch (const EmulationError& error) {
      throw EmulationError(std::string(name) + ": " + error.what());
    }
  };
  device().submit(emulated(stream), std::move(item));
}

void launch_body(const Stream& stream, const LaunchShape& shape, const char* name, Work body) {
  submit_kernel(stream, shape, name, nullptr, 0, std::move(body), {});
}

void launch_call(const Stream& stream, const LaunchShape& shape, const char* name, const KernelCall& call) {
  const void* memory = call.memory.get();
  submit_kernel(stream, shape, name, call.kernel, call.hash, [run = call.run, held = call.memory] { run(held.get()); },
                {memory, call.size_bytes});
}

// A small device, so that configurations for several blocks are exercised.
DeviceQuery query_device() {
  DeviceProperties device{"emulated", 90, 4, 99 << 10, size_t{1} << 33, /*dependent_launch=*/true};
  if (emulation::faults.memory_bytes) device.memory_bytes = *emulation::faults.memory_bytes;
  return {device, {}};
}

const DeviceProperties& require_device() {
  static thread_local DeviceProperties device;
  device = *query_device().device;
  return device;
}

size_t free_memory_bytes() {
  const size_t total = require_device().memory_bytes, allocated = device().allocated_bytes();
  return total > allocated ? total - allocated : 0;
}

}  // namespace foretoken::cuda
