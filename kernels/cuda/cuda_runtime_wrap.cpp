#include "kernels/cuda/cuda_runtime_wrap.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <immintrin.h>

#include <atomic>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_faults.h"

namespace foretoken::cuda {

namespace {

void check(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  fail_call(what, cudaGetErrorString(status), cudaGetErrorName(status));
}

cudaStream_t stream_of(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.handle());
}

double mebibytes(size_t size_bytes) {
  return static_cast<double>(size_bytes) / (1 << 20);
}

}  // namespace

Stream::Stream(Launches launches)
    : is_dependent_(launches == Launches::kDependent && require_device().dependent_launch) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  handle_ = stream;
}

Stream::~Stream() {
  if (handle_ != nullptr) cudaStreamDestroy(static_cast<cudaStream_t>(handle_));
}

void Stream::synchronize() const {
  check(cudaStreamSynchronize(stream_of(*this)), "waiting for the device");
}

Event::Event(bool with_time) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, with_time ? cudaEventDefault : cudaEventDisableTiming), "creating an event");
  handle_ = event;
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}

void Event::record(const Stream& stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(handle_), stream_of(stream)), "recording an event");
}

void Event::synchronize() const {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "waiting for an event");
}

float Event::milliseconds_since(const Event& begin) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(begin.handle_), static_cast<cudaEvent_t>(handle_)),
        "reading the time between two events");
  return milliseconds;
}

GraphRecording::GraphRecording(const Stream& stream) : stream_(stream) {
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal), "starting to record a graph");
}

GraphRecording::~GraphRecording() {
  if (!is_open_) return;
  cudaGraph_t graph = nullptr;
  // Leaves the stream usable; its own status would hide the first error.
  cudaStreamEndCapture(stream_of(stream_), &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
}

Graph GraphRecording::end() {
  is_open_ = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_of(stream_), &graph), "recording a graph");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "instantiating a graph");
  Graph result;
  result.handle_ = executable;
  return result;
}

Graph::~Graph() {
  if (handle_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

void Graph::launch(const Stream& stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), stream_of(stream)), "launching a graph");
}

DeviceBuffer::DeviceBuffer(size_t size_bytes, std::string_view what) {
  if (size_bytes == 0) return;
  const cudaError_t status = cudaMalloc(&data_, size_bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // the failure is not sticky
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory");
    refuse_memory(size_bytes, what, free_bytes, total_bytes);
  }
  check(status, fmt::format("allocating {:.1f} MiB for {}", mebibytes(size_bytes), what));
  size_bytes_ = size_bytes;
}

DeviceBuffer::DeviceBuffer(size_t size_bytes, std::string_view what, std::span<const BufferPiece>)
    : DeviceBuffer(size_bytes, what) {}

bool recordings_are_compared() {
  return false;
}

void Graph::require_same(const Graph&) const {}

size_t guard_bytes() {
  return 0;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

void* allocate_host_memory(HostMemory kind, size_t size_bytes) {
  void* data = nullptr;
  if (kind == HostMemory::kPinned) {
    check(cudaMallocHost(&data, size_bytes), fmt::format("pinning {:.1f} MiB of host memory", mebibytes(size_bytes)));
    return data;
  }
  check(cudaHostAlloc(&data, size_bytes, cudaHostAllocMapped),
        fmt::format("mapping {:.1f} MiB of host memory", mebibytes(size_bytes)));
  // Kernels get the host's address: with one address space for both, which all GPUs have that we run on, it is theirs.
  void* of_device = nullptr;
  check(cudaHostGetDevicePointer(&of_device, data, 0), "mapping host memory");
  FT_CHECK(of_device == data);
  return data;
}

void free_host_memory(HostMemory, void* data) {
  cudaFreeHost(data);
}

RegisteredMemory::RegisteredMemory(const void* data, size_t size_bytes) {
  const auto [begin, end] = pages_around(data, size_bytes);
  auto* const pages = reinterpret_cast<void*>(begin);
  // Where the driver can register memory for reading alone, it has to be asked so: pages of a file cannot be written.
  int read_only = 0, current = 0;
  check(cudaGetDevice(&current), "asking for the device");
  check(cudaDeviceGetAttribute(&read_only, cudaDevAttrHostRegisterReadOnlySupported, current), "asking for the device");
  const unsigned flags = cudaHostRegisterMapped | (read_only != 0 ? cudaHostRegisterReadOnly : 0u);
  if (cudaHostRegister(pages, end - begin, flags) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // the failure is not sticky
    return;
  }
  data_ = pages;
  void* of_device = nullptr;
  if (cudaHostGetDevicePointer(&of_device, pages, 0) == cudaSuccess && of_device == pages) return;
  static_cast<void>(cudaGetLastError());
  static_cast<void>(cudaHostUnregister(std::exchange(data_, nullptr)));
}

RegisteredMemory::~RegisteredMemory() {
  if (data_ != nullptr) cudaHostUnregister(data_);
}

Flags::Flags(int count) : memory_(static_cast<size_t>(count) * sizeof(uint32_t)) {
  for (int i = 0; i < count; ++i) lower(i);
}

void Flags::raise(int i) const {
  std::atomic_ref(words()[i]).store(1, std::memory_order_release);
}

void Flags::lower(int i) const {
  std::atomic_ref(words()[i]).store(0, std::memory_order_relaxed);
}

void Flags::wait(const Stream& stream, int count) const {
  constexpr int kLooksPerQuery = 1 << 14;  // a question to the driver takes as long as hundreds of looks
  for (int i = 0; i < count; ++i) {
    const std::atomic_ref flag(words()[i]);
    for (int looks = 1; flag.load(std::memory_order_acquire) == 0; ++looks) {
      _mm_pause();
      if (looks % kLooksPerQuery != 0) continue;
      const cudaError_t status = cudaStreamQuery(stream_of(stream));
      if (status == cudaErrorNotReady) continue;
      check(status, "waiting for the device");
      FT_CHECK(flag.load(std::memory_order_acquire) != 0);  // all work is done, and it was not raised
    }
  }
}

void copy_to_device(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyHostToDevice, stream_of(stream)), "copying to the device");
}

void copy_to_host(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToHost, stream_of(stream)), "copying from the device");
}

void copy_on_device(const Stream& stream, void* to, const void* from, size_t size_bytes) {
  check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, stream_of(stream)), "copying on the device");
}

void fill_zero(const Stream& stream, void* to, size_t size_bytes) {
  check(cudaMemsetAsync(to, 0, size_bytes, stream_of(stream)), "filling device memory");
}

void launch_function(const Stream& stream, const LaunchShape& shape, const char* name, const void* function,
                     void** arguments) {
  // More shared memory than this, a kernel's own arrays and the launch's together, has to be asked for, kernel by kernel.
  constexpr size_t kWithoutAsking = 48 << 10;
  cudaFuncAttributes attributes{};
  if (shape.shared_bytes > 0) check(cudaFuncGetAttributes(&attributes, function), name);
  if (attributes.sharedSizeBytes + shape.shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          name);
  }
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(shape.grid.x, shape.grid.y, shape.grid.z);
  launch.blockDim = dim3(shape.block.x, shape.block.y, shape.block.z);
  launch.dynamicSmemBytes = shape.shared_bytes;
  launch.stream = stream_of(stream);
  // Of a graph that is recorded it makes programmatic edges between kernels.
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  launch.attrs = &dependent;
  launch.numAttrs = stream.is_dependent() ? 1 : 0;
  check(cudaLaunchKernelExC(&launch, function, arguments), name);
}

}  // namespace foretoken::cuda
