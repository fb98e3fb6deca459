#include <fmt/format.h>

#include <catch2/catch.hpp>

#include "engine/cuda/cuda_backend.h"
#include "mtp/decoder.h"
#include "tests/engine/model/random_model.h"
#if defined(FORETOKEN_ACCESS_CHECKS)
#include "kernels/cuda/emulation/warp_traffic.h"

namespace foretoken {
namespace {

// The table of docs/cuda.md: what the kernels of plain decoding, of windows and of a prompt move. Hidden: it prints, and
// judges nothing.
TEST_CASE("traffic of each kernel", "[.traffic]") {
  use_cuda_backend();
  const Model model = Model::load(std::string(FORETOKEN_SOURCE_DIR) + "/models/foretoken-demo.gguf", {});
  cuda::emulation::measure_traffic(true);
  for (const int k : {0, 3}) {
    SessionOptions session_options;
    session_options.device = Device::kCuda;
    session_options.ctx_size = 128;
    session_options.with_mtp = k > 0;
    session_options.max_window = k + 1;
    DecodeOptions options;
    options.max_new_tokens = 6;
    options.mtp = k;
    Session session(model, session_options);
    (void)decode(session, test::random_ids(40, model.config().vocab_size, 7), options);
  }
  cuda::emulation::measure_traffic(false);
  fmt::print(
      "| kernel | device: instructions of a warp | bytes asked for in bytes moved | shared: passes over the least "
      "|\n|---|---|---|---|\n");
  for (const auto& [name, traffic] : cuda::emulation::traffic_by_kernel()) {
    const std::string shared = traffic.shared_instructions == 0
                                   ? "-"
                                   : fmt::format("{:.2f}", static_cast<double>(traffic.shared_passes) /
                                                               static_cast<double>(traffic.shared_least_passes));
    fmt::print("| `{}` | {} | {:.0f}% | {} |\n", name, traffic.device_instructions, 100 * traffic.device_efficiency(),
               shared);
  }
}

}  // namespace
}  // namespace foretoken

#endif
