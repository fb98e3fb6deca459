#ifdef FORETOKEN_CUDA_EMULATION

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <map>
#include <string>

#include "engine/cuda/cuda_backend.h"
#include "kernels/cuda/emulation/cuda_emulation.h"
#include "mtp/decoder.h"
#include "tests/engine/model/random_model.h"

namespace foretoken {
namespace {

// Kernels that a token of plain decoding launches, from the recorded pieces as they are replayed: what a text of twelve
// tokens has more than one of six.
std::map<std::string, uint64_t> launches_of_six_tokens(const Model& model) {
  const auto count = [&](int num_tokens) {
    SessionOptions session_options;
    session_options.device = Device::kCuda;
    session_options.ctx_size = 64;
    session_options.with_mtp = false;
    DecodeOptions options;
    options.max_new_tokens = num_tokens;
    options.mtp = 0;
    options.ignore_eos = true;
    Session session(model, session_options);
    static_cast<void>(cuda::emulation::take_kernel_counts());
    (void)decode(session, test::random_ids(5, model.config().vocab_size, 7), options);
    return cuda::emulation::take_kernel_counts();
  };
  std::map<std::string, uint64_t> more = count(12);
  for (const auto& [name, runs] : count(6)) more[name] -= runs;
  return more;
}

// What docs/cuda.md says of launches. A layer's kernels wait for each other, so that their number is time.
TEST_CASE("launches: a token takes as many kernels as its layers' parts") {
  use_cuda_backend();
  const Model model = Model::load(std::string(FORETOKEN_SOURCE_DIR) + "/models/foretoken-demo.gguf", {});
  uint64_t all = 0;
  for (const auto& [name, runs] : launches_of_six_tokens(model)) {
    CHECK(runs % 6 == 0);
    if (runs > 0) UNSCOPED_INFO(fmt::format("{} x {}", runs / 6, name));
    all += runs / 6;
  }
  const auto& config = model.config();
  INFO(fmt::format("{} launches a token, {} layers", all, config.num_layers));
  // Twelve a layer and one for the second type of its projections; embedding, last norm, head, and four that choose.
  CHECK(all <= 13 * static_cast<uint64_t>(config.num_layers) + 7);
}

}  // namespace
}  // namespace foretoken

#endif
