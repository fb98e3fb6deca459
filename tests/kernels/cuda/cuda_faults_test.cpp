#include "kernels/cuda/cuda_faults.h"

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/cuda/cuda_test_support.h"

// What becomes of a device that fails: one line that says what to do.

namespace foretoken::cuda {
namespace {

using Catch::Matchers::Contains;

template <class Body>
std::string failure(Body&& body) {
  try {
    body();
  } catch (const InputError& error) {
    const std::string text = error.what();
    CHECK(text.find('\n') == std::string::npos);
    return text;
  }
  return "";
}

TEST_CASE("Memory that does not fit is refused with both sizes and what to do") {
  const std::string text =
      failure([] { refuse_memory(size_t{3} << 20, "the layers", size_t{2} << 20, size_t{8} << 20); });
  CHECK_THAT(text, Contains("3.0 MiB for the layers") && Contains("2.0 of 8.0 MiB") && Contains("--ctx-size"));
  // More than any device has.
  const std::string refused = failure([] { DeviceBuffer(size_t{1} << 50, "a wish"); });
  CHECK_THAT(refused, Contains("a wish") && Contains("MiB are free"));
}

TEST_CASE("An error after which nothing works says so") {
  const auto text_of = [](const char* name) { return failure([&] { fail_call("waiting", "some reason", name); }); };
  CHECK_THAT(text_of("cudaErrorIllegalAddress"), Contains("waiting: some reason (cudaErrorIllegalAddress)") &&
                                                     Contains("lost") && Contains("--device cpu"));
  CHECK_THAT(text_of("cudaErrorInvalidValue"), !Contains("lost"));
}

TEST_CASE("Copies have a speed") {
  const DeviceBandwidth bandwidth = measure_bandwidth(size_t{1} << 20);
  CHECK(bandwidth.device > 1e6);
  CHECK(bandwidth.bus > 1e6);
}

#ifdef FORETOKEN_CUDA_EMULATION

struct FaultGuard {
  ~FaultGuard() { emulation::inject({}); }
};

TEST_CASE("The emulated device has the memory it is given, and gives back what is freed") {
  FaultGuard guard;
  const size_t before = free_memory_bytes();
  {
    const DeviceBuffer buffer(1 << 20);
    CHECK(free_memory_bytes() == before - (1 << 20));
  }
  CHECK(free_memory_bytes() == before);
  emulation::Faults faults;
  faults.memory_bytes = query_device().device->memory_bytes - before + (3 << 20);
  emulation::inject(faults);
  DeviceBuffer first(2 << 20, "the first");
  CHECK_THAT(failure([] { DeviceBuffer(2 << 20, "the second"); }),
             Contains("2.0 MiB for the second") && Contains("1.0 of"));
  first = DeviceBuffer();
  CHECK_NOTHROW(DeviceBuffer(3 << 20));
}

TEST_CASE("A device that is lost fails the wait that finds it, and every call after it") {
  FaultGuard guard;
  emulation::Faults faults;
  faults.waits_until_lost = 1;
  emulation::inject(faults);
  const Stream stream;
  DeviceBuffer buffer(64);
  fill_zero(stream, buffer.data(), 64);
  CHECK(failure([&] { stream.synchronize(); }).empty());
  CHECK_THAT(failure([&] { stream.synchronize(); }), Contains("waiting for the device") && Contains("lost"));
  CHECK_THAT(failure([&] { fill_zero(stream, buffer.data(), 64); }), Contains("lost"));
  CHECK_THAT(failure([&] { DeviceBuffer(64); }), Contains("lost"));
}

#endif

}  // namespace
}  // namespace foretoken::cuda
