#include <catch2/catch.hpp>

#include "kernels/cuda/cuda_device.h"

using namespace foretoken::cuda;
using Catch::Matchers::Contains;

TEST_CASE("A missing device has a reason of one line that says what to do", "[cuda_device]") {
  using Kind = DeviceFailure::Kind;
  const auto reason = [](Kind kind, int driver) {
    const std::string text =
        reason_for(DeviceFailure{kind, driver, 13000, "out of memory (cudaErrorMemoryAllocation)"});
    CHECK(text.find('\n') == std::string::npos);
    CHECK_THAT(text, Contains("run on the CPU"));
    return text;
  };
  CHECK_THAT(reason(Kind::kNoDevice, 0), Contains("no NVIDIA driver"));
  CHECK_THAT(reason(Kind::kDriverTooOld, 0), Contains("no NVIDIA driver"));
  CHECK_THAT(reason(Kind::kNoDevice, 12080), Contains("CUDA_VISIBLE_DEVICES"));
  CHECK_THAT(reason(Kind::kDriverTooOld, 11080), Contains("CUDA 11.8") && Contains("13.0") && Contains("update"));
  CHECK_THAT(reason(Kind::kOther, 13000), Contains("out of memory (cudaErrorMemoryAllocation)"));
  CHECK_THAT(reason_for_image("RTX 3090", 86, "90"), Contains("RTX 3090 has compute capability 8.6") &&
                                                         Contains("built for 90") && Contains("ARCHITECTURES=86"));
  CHECK_THAT(reason_for_capability("Tesla T4", 75), Contains("Tesla T4") && Contains("7.5") && Contains("8.0"));
}

TEST_CASE("What needs a device says why there is none", "[cuda_device]") {
  const DeviceQuery query = query_device();
  CHECK(query.device.has_value() == query.reason.empty());
  if (query.device) return;
  CHECK_THROWS(free_memory_bytes());
  CHECK_THROWS(measure_bandwidth());
  CHECK_THROWS(require_device());
}
