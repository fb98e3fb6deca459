#ifdef FORETOKEN_CUDA_EMULATION

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <string>

#include "engine/cuda/cuda_backend.h"
#include "kernels/cuda/emulation/cuda_emulation.h"
#include "mtp/decoder.h"
#include "tests/engine/model/random_model.h"
#if defined(FORETOKEN_ACCESS_CHECKS)
#include "kernels/cuda/emulation/warp_traffic.h"
#endif

namespace foretoken {
namespace {

const std::string kTableHead =
    "| kernel | device: instructions of a warp | bytes asked for in bytes moved | shared: passes over the least |";

// Plain decoding, windows and a prompt of the demonstration model: what the table is made from.
void decode_demonstration() {
  use_cuda_backend();
  const Model model = Model::load(std::string(FORETOKEN_SOURCE_DIR) + "/models/foretoken-demo.gguf", {});
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
}

// Names between the first two backticks of each line of the table.
std::set<std::string> kernels_of_table() {
  std::ifstream file(std::string(FORETOKEN_SOURCE_DIR) + "/docs/cuda.md");
  std::set<std::string> names;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line == kTableHead) inside = true;
    if (inside && line.empty()) break;
    const size_t begin = line.find('`');
    if (inside && begin != std::string::npos)
      names.insert(line.substr(begin + 1, line.find('`', begin + 1) - begin - 1));
  }
  return names;
}

TEST_CASE("traffic: the table in docs/cuda.md has the kernels that run") {
  static_cast<void>(cuda::emulation::take_kernel_counts());
  decode_demonstration();
  std::set<std::string> names;
  for (const auto& [name, runs] : cuda::emulation::take_kernel_counts()) {
    if (runs > 0) names.insert(name);
  }
  CHECK(kernels_of_table() == names);
}

#if defined(FORETOKEN_ACCESS_CHECKS)
// The table of docs/cuda.md. Hidden: it prints, and judges nothing.
TEST_CASE("traffic of each kernel", "[.traffic]") {
  cuda::emulation::measure_traffic(true);
  decode_demonstration();
  cuda::emulation::measure_traffic(false);
  fmt::print("{}\n|---|---|---|---|\n", kTableHead);
  for (const auto& [name, traffic] : cuda::emulation::traffic_by_kernel()) {
    const std::string shared = traffic.shared_instructions == 0
                                   ? "-"
                                   : fmt::format("{:.2f}", static_cast<double>(traffic.shared_passes) /
                                                               static_cast<double>(traffic.shared_least_passes));
    fmt::print("| `{}` | {} | {:.0f}% | {} |\n", name, traffic.device_instructions, 100 * traffic.device_efficiency(),
               shared);
  }
}
#endif

}  // namespace
}  // namespace foretoken

#endif
