#include <algorithm>
#include <chrono>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

namespace {

// The first copy wakes the link up (it sleeps at a low rate while nothing crosses it), the best of the others counts.
constexpr int kCopies = 6;

/// Best bytes a second of `copy`, which moves `bytes`.
template <class Copy>
double best_of(const Stream& stream, double bytes, Copy&& copy) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int i = 0; i < kCopies; ++i) {
    const auto begin = Clock::now();
    copy();
    stream.synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (i > 0) best = std::max(best, bytes / std::max(seconds, 1e-9));
  }
  return best;
}

}  // namespace

DeviceBandwidth measure_bandwidth(size_t bytes) {
  bytes = std::max<size_t>(std::min(bytes, free_memory_bytes() / 8), 1 << 16);
  const Stream stream;
  const DeviceBuffer from(bytes, "measuring the bandwidth"), to(bytes, "measuring the bandwidth");
  const PinnedBuffer host(bytes);
  fill_zero(stream, from.data(), bytes);
  DeviceBandwidth result;
  result.device =
      best_of(stream, 2.0 * static_cast<double>(bytes), [&] { copy_on_device(stream, to.data(), from.data(), bytes); });
  result.bus =
      best_of(stream, static_cast<double>(bytes), [&] { copy_to_device(stream, to.data(), host.data(), bytes); });
  return result;
}

}  // namespace foretoken::cuda
