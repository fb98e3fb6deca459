#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace foretoken::cuda {

// The CUDA runtime as the rest of the program uses it: owners of streams, events, graphs and memory, copies, and one
// checked launch. Every failing call throws InputError with one line that names the call and CUDA's own reason. The
// emulation has the same interface (cuda_emulated_runtime.cpp): a stream there is a queue that runs when somebody waits
// for it, a graph is a list of launches.

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct LaunchShape {
  Dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic shared memory
  /// A flag that the kernel waits for (wait_for_flag() of cuda_language.h), of Flags; nullptr: none. The emulation starts
  /// it when the flag is raised.
  const uint32_t* waits_for = nullptr;
};

/// When a kernel of a stream begins. kInOrder: when all work ahead of it has ended. kDependent (programmatic dependent
/// launch): behind another kernel it may begin before that one has ended, and its threads wait themselves
/// (wait_for_kernels_ahead() in cuda_language.h); behind anything else as kInOrder, and so for copies and fills. Where the
/// device or the image of the kernels has no such launches (DeviceProperties::dependent_launch), it is kInOrder.
enum class Launches { kInOrder, kDependent };

/// A queue of work on the device. Work begins in the order in which it was put in. One host thread at a time.
class Stream {
 public:
  explicit Stream(Launches launches = Launches::kDependent);
  ~Stream();
  Stream(Stream&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), is_dependent_(other.is_dependent_) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(is_dependent_, other.is_dependent_);
    return *this;
  }

  /// Waits for all work; errors of the work appear here.
  void synchronize() const;
  [[nodiscard]] void* handle() const { return handle_; }
  /// Whether its kernels are launched as kDependent.
  [[nodiscard]] bool is_dependent() const { return is_dependent_; }

 private:
  void* handle_ = nullptr;
  bool is_dependent_ = false;
};

class Event {
 public:
  /// with_time: milliseconds_since() may be asked of it, which makes recording dearer.
  explicit Event(bool with_time = false);
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  void record(const Stream& stream);
  void synchronize() const;
  /// REQUIRES: both have their time, were recorded and have happened.
  [[nodiscard]] float milliseconds_since(const Event& begin) const;
  [[nodiscard]] void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

/// Work that was recorded once and is started as one. Pointers and sizes are those of the recording: what changes
/// between replays has to be read from device memory.
class Graph {
 public:
  Graph() = default;
  /// Records what `work` puts into `stream`; see GraphRecording.
  Graph(const Stream& stream, const std::function<void()>& work);
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  [[nodiscard]] bool empty() const { return handle_ == nullptr; }
  void launch(const Stream& stream) const;
  /// `listed_again` was recorded from the same work, later. The emulation throws EmulationError where the two are not the
  /// same: then this one is out of date. REQUIRES: recordings_are_compared().
  void require_same(const Graph& listed_again) const;

 private:
  friend class GraphRecording;
  void* handle_ = nullptr;
};

/// Whether whoever replays a graph has to list its work again and compare: in the emulation. On a GPU it would cost what
/// the graph saves.
[[nodiscard]] bool recordings_are_compared();

/// A graph in the making: what is put into `stream` until end() is recorded, and nothing of it runs. No allocation and
/// no waiting meanwhile.
class GraphRecording {
 public:
  explicit GraphRecording(const Stream& stream);
  /// Drops what was recorded, unless end() was called.
  ~GraphRecording();
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;
  [[nodiscard]] Graph end();

 private:
  const Stream& stream_;
  void* handle_ = nullptr;  // of what is being recorded
  bool is_open_ = true;
};

inline Graph::Graph(const Stream& stream, const std::function<void()>& work) {
  GraphRecording recording(stream);
  work();
  *this = recording.end();
}

/// Part of a DeviceBuffer, in bytes.
struct BufferPiece {
  size_t offset, size_bytes;
};
/// Room that is left behind each piece: 0 on a GPU. The emulation has some, and finds accesses of it.
[[nodiscard]] size_t guard_bytes();

/// Memory of the device, not initialised. Move-only.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// Of these pieces, each with guard_bytes() behind it, which do not count as the device's memory.
  DeviceBuffer(size_t size_bytes, std::string_view what, std::span<const BufferPiece> pieces);
  /// Throws InputError naming `what` and the sizes if it does not fit.
  explicit DeviceBuffer(size_t size_bytes, std::string_view what = "a work buffer");
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }

  template <class T = std::byte>
  [[nodiscard]] T* data() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] size_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
};

/// What the device does with host memory: copies from and to it without a detour; or kernels also read and write it where
/// it lies, over the bus.
enum class HostMemory { kPinned, kMapped };
/// For HostBuffer below.
[[nodiscard]] void* allocate_host_memory(HostMemory kind, size_t size_bytes);
void free_host_memory(HostMemory kind, void* data);

/// Host memory for the device. Move-only.
template <HostMemory kKind>
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(size_t size_bytes)
      : data_(size_bytes == 0 ? nullptr : allocate_host_memory(kKind, size_bytes)), size_bytes_(size_bytes) {}
  ~HostBuffer() {
    if (data_ != nullptr) free_host_memory(kKind, data_);
  }
  HostBuffer(HostBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }

  template <class T = std::byte>
  [[nodiscard]] T* data() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] size_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
};
using PinnedBuffer = HostBuffer<HostMemory::kPinned>;
using MappedBuffer = HostBuffer<HostMemory::kMapped>;

/// Pages of host memory: [begin, end) around data. Addresses, because they may belong to several allocations.
struct HostPages {
  uintptr_t begin = 0, end = 0;
};
[[nodiscard]] HostPages pages_around(const void* data, size_t size_bytes);

/// While one of these lives, kernels may load from host memory that is somebody else's, where it lies. Move-only.
class RegisteredMemory {
 public:
  RegisteredMemory() = default;
  /// pages_around() the memory. Pages are registered once: no other of these may hold one of them. What
  /// the driver cannot register (memory of some files) stays as it was; is_registered() tells.
  RegisteredMemory(const void* data, size_t size_bytes);
  ~RegisteredMemory();
  RegisteredMemory(RegisteredMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  RegisteredMemory& operator=(RegisteredMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }

  [[nodiscard]] bool is_registered() const { return data_ != nullptr; }

 private:
  void* data_ = nullptr;
};

/// By flags host and device tell each other, in the midst of a stream's work, that something is ready in memory that both
/// reach. Who sees a flag raised sees all that was written before it was raised.
class Flags {
 public:
  Flags() = default;
  explicit Flags(int count);

  /// [count] for kernels: raise_flag() and wait_for_flag() of cuda_language.h.
  [[nodiscard]] uint32_t* words() const { return memory_.data<uint32_t>(); }
  void raise(int i) const;
  void lower(int i) const;
  /// Returns when kernels of `stream` have raised flags [0, count). Throws InputError if the device fails, or has nothing
  /// more to do.
  void wait(const Stream& stream, int count) const;

 private:
  MappedBuffer memory_;
};

/// CUDA_LAUNCH_BLOCKING, which debuggers and sanitizers want: a launch returns when its work is done.
[[nodiscard]] bool launches_block();

// Copies and fills are work of the stream. A copy from or to memory that is not pinned may wait for it.
void copy_to_device(const Stream& stream, void* to, const void* from, size_t size_bytes);
void copy_to_host(const Stream& stream, void* to, const void* from, size_t size_bytes);
void copy_on_device(const Stream& stream, void* to, const void* from, size_t size_bytes);
void fill_zero(const Stream& stream, void* to, size_t size_bytes);

/// Starts one kernel: `function` is its host handle, `arguments` point to its parameters. For launch() below.
void launch_function(const Stream& stream, const LaunchShape& shape, const char* name, const void* function,
                     void** arguments);
/// The same in the emulation, where a kernel is a function to call once a thread.
void launch_body(const Stream& stream, const LaunchShape& shape, const char* name, std::function<void()> body);
#ifdef FORETOKEN_CUDA_EMULATION
/// A kernel and its parameters, which its threads read where they lie.
struct KernelCall {
  std::shared_ptr<const void> memory;
  size_t size_bytes = 0;
  void (*run)(const void* memory) = nullptr;
  const void* kernel = nullptr;
  uint64_t hash = 0;  // of the parameters
};
void launch_call(const Stream& stream, const LaunchShape& shape, const char* name, const KernelCall& call);

/// FNV-1a, without what lies between the members.
template <class T>
uint64_t add_to_hash(uint64_t hash, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  __builtin_clear_padding(&value);
  unsigned char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

template <class... Parameters>
KernelCall make_kernel_call(void (*kernel)(Parameters...), const std::tuple<Parameters...>& values) {
  struct Held {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> values;
  };
  KernelCall call;
  call.memory = std::make_shared<const Held>(Held{kernel, values});
  call.size_bytes = sizeof(Held);
  call.run = [](const void* memory) {
    const Held& held = *static_cast<const Held*>(memory);
    std::apply(held.kernel, held.values);
  };
  call.kernel = reinterpret_cast<const void*>(kernel);
  call.hash = 0xcbf29ce484222325u;
  std::apply([&call](const auto&... value) { ((call.hash = add_to_hash(call.hash, value)), ...); }, values);
  return call;
}
#endif

/// launch(stream, shape, "cuda_rms_norm", cuda_rms_norm, arguments...): the only way a kernel is started.
template <class... Parameters, class... Arguments>
void launch(const Stream& stream, const LaunchShape& shape, const char* name, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
#ifdef FORETOKEN_CUDA_EMULATION
  launch_call(stream, shape, name, make_kernel_call(kernel, values));
#else
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {static_cast<void*>(&value)...};
        launch_function(stream, shape, name, reinterpret_cast<const void*>(kernel), pointers);
      },
      values);
#endif
}

}  // namespace foretoken::cuda
