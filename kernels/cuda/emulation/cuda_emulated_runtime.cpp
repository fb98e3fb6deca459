#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_faults.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/cuda/emulation/cuda_emulation.h"

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

// Device memory that is allocated: what Faults::memory_bytes bounds.
std::mutex allocations_mutex;
std::unordered_map<void*, size_t> allocations;
size_t allocated_bytes = 0;

// As on a GPU, work that crashes is noticed by the next call that waits, and by every call after it.
void notice_loss(std::string_view what) {
  if (emulation::lost) fail_call(what, "unspecified launch failure", "cudaErrorLaunchFailure");
}

using Work = std::function<void()>;
using Clock = std::chrono::steady_clock;

struct EmulatedStream {
  std::vector<Work>* recording = nullptr;
};

struct EmulatedGraph {
  std::vector<Work> work;
};

// Runs now, or at each replay of the graph that is being recorded.
void submit(const Stream& stream, Work work) {
  auto* target = static_cast<EmulatedStream*>(stream.handle());
  FT_CHECK(target != nullptr);
  if (target->recording == nullptr) notice_loss("starting work");
  if (target->recording != nullptr) {
    target->recording->push_back(std::move(work));
  } else {
    work();
  }
}

// Filled with 0xff, so that what is read before it is written is NaN. An allocation of its own for the address
// sanitizer.
void* allocate(size_t size_bytes) {
  if (size_bytes == 0) return nullptr;
  notice_loss("allocating memory");
  void* data = nullptr;
  FT_CHECK(posix_memalign(&data, 256, size_bytes) == 0);
  std::memset(data, 0xff, size_bytes);
  return data;
}

void* allocate_on_device(size_t size_bytes, std::string_view what) {
  const std::lock_guard lock(allocations_mutex);
  const size_t total = require_device().memory_bytes;
  if (allocated_bytes + size_bytes > total)
    refuse_memory(size_bytes, what, total > allocated_bytes ? total - allocated_bytes : 0, total);
  void* data = allocate(size_bytes);
  if (data != nullptr) allocations.emplace(data, size_bytes);
  allocated_bytes += size_bytes;
  return data;
}

void free_on_device(void* data) {
  if (data == nullptr) return;
  const std::lock_guard lock(allocations_mutex);
  const auto found = allocations.find(data);
  FT_CHECK(found != allocations.end());
  allocated_bytes -= found->second;
  allocations.erase(found);
  std::free(data);
}

}  // namespace

Stream::Stream() : handle_(new EmulatedStream) {}
Stream::~Stream() {
  delete static_cast<EmulatedStream*>(handle_);
}
void Stream::synchronize() const {
  FT_CHECK(static_cast<EmulatedStream*>(handle_)->recording == nullptr);
  if (emulation::faults.waits_until_lost && (*emulation::faults.waits_until_lost)-- == 0) emulation::lost = true;
  notice_loss("waiting for the device");
}

// Work has happened when it is put into a stream, so an event is the time of its recording.
Event::Event() : handle_(new Clock::time_point) {}
Event::~Event() {
  delete static_cast<Clock::time_point*>(handle_);
}
void Event::record(const Stream&) {
  *static_cast<Clock::time_point*>(handle_) = Clock::now();
}
void Event::synchronize() const {}
float Event::milliseconds_since(const Event& begin) const {
  return std::chrono::duration<float, std::milli>(*static_cast<Clock::time_point*>(handle_) -
                                                  *static_cast<Clock::time_point*>(begin.handle_))
      .count();
}

GraphRecording::GraphRecording(const Stream& stream) : stream_(stream) {
  auto* source = static_cast<EmulatedStream*>(stream.handle());
  FT_CHECK(source->recording == nullptr);
  auto* graph = new EmulatedGraph;
  source->recording = &graph->work;
  handle_ = graph;
}

GraphRecording::~GraphRecording() {
  if (!is_open_) return;
  static_cast<EmulatedStream*>(stream_.handle())->recording = nullptr;
  delete static_cast<EmulatedGraph*>(handle_);
}

Graph GraphRecording::end() {
  is_open_ = false;
  static_cast<EmulatedStream*>(stream_.handle())->recording = nullptr;
  Graph result;
  result.handle_ = handle_;
  return result;
}

Graph::~Graph() {
  delete static_cast<EmulatedGraph*>(handle_);
}

void Graph::launch(const Stream& stream) const {
  for (const Work& work : static_cast<EmulatedGraph*>(handle_)->work) submit(stream, work);
}

DeviceBuffer::DeviceBuffer(size_t size_bytes, std::string_view what)
    : data_(allocate_on_device(size_bytes, what)), size_bytes_(size_bytes) {}
DeviceBuffer::~DeviceBuffer() {
  free_on_device(data_);
}
PinnedBuffer::PinnedBuffer(size_t size_bytes) : data_(allocate(size_bytes)), size_bytes_(size_bytes) {}
PinnedBuffer::~PinnedBuffer() {
  std::free(data_);
}

void copy_to_device(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  if (size_bytes == 0) return;  // from nowhere, as CUDA allows and memcpy does not
  submit(stream, [=] { std::memcpy(to, from, size_bytes); });
}
void copy_to_host(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  copy_to_device(stream, to, from, size_bytes);
}
void copy_on_device(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  copy_to_device(stream, to, from, size_bytes);
}
void fill_zero(const Stream& stream, void* to, size_t size_bytes) {
  submit(stream, [=] { std::memset(to, 0, size_bytes); });
}

// As a GPU's driver, also while work is recorded. The limits are those of all compute capabilities.
static void check_shape(const LaunchShape& shape, const char* name) {
  constexpr unsigned kMostX = 0x7fffffff, kMostYZ = 65535, kMostThreads = 1024, kMostThreadsZ = 64;
  const Dim3 &grid = shape.grid, &block = shape.block;
  const bool fits = grid.x >= 1 && grid.x <= kMostX && grid.y >= 1 && grid.y <= kMostYZ && grid.z >= 1 &&
                    grid.z <= kMostYZ && block.x >= 1 && block.y >= 1 && block.z >= 1 && block.z <= kMostThreadsZ &&
                    uint64_t{block.x} * block.y * block.z <= kMostThreads;
  if (fits) return;
  throw EmulationError(fmt::format("{}: a grid of {} x {} x {} blocks of {} x {} x {} threads: no GPU takes it", name,
                                   grid.x, grid.y, grid.z, block.x, block.y, block.z));
}

void launch_body(const Stream& stream, const LaunchShape& shape, const char* name, Work body) {
  check_shape(shape, name);
  submit(stream, [shape, name, body = std::move(body)] {
    try {
      emulation::run_grid({shape.grid.x, shape.grid.y, shape.grid.z}, {shape.block.x, shape.block.y, shape.block.z},
                          shape.shared_bytes, body);
    } catch (const EmulationError& error) {
      throw EmulationError(std::string(name) + ": " + error.what());
    }
  });
}

// A small device, so that configurations for several blocks are exercised.
DeviceQuery query_device() {
  DeviceProperties device{"emulated", 90, 4, 99 << 10, size_t{1} << 33};
  if (emulation::faults.memory_bytes) device.memory_bytes = *emulation::faults.memory_bytes;
  return {device, {}};
}

const DeviceProperties& require_device() {
  static thread_local DeviceProperties device;
  device = *query_device().device;
  return device;
}

size_t free_memory_bytes() {
  const size_t total = require_device().memory_bytes;
  return total > allocated_bytes ? total - allocated_bytes : 0;
}

}  // namespace foretoken::cuda
