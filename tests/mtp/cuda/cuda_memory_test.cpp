#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <vector>

#include "engine/cuda/cuda_backend.h"
#include "engine/engine.h"
#include "engine/session_memory.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

namespace foretoken {
namespace {

using test::RandomModel;
using test::TempFolder;

struct Asked {
  int parallel = 1;
  bool with_mtp = false;
  bool split = false;
  bool cublas = false;
  int prompt_chunk = 256;
};

TEST_CASE("a session takes the memory on the device that was planned before the model was loaded", "[cuda]") {
  use_cuda_backend();
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) {
    const TempFolder folder;
    RandomModel spec = test::small_model(architecture);
    if (std::string_view(architecture) == "qwen35moe") spec.types = {WeightType::kF16, WeightType::kQ8_0};
    spec.write(folder.file("model.gguf"));
    const ModelOutline outline = Model::outline(GgufFile::open(folder.file("model.gguf")));
    const Model model = Model::load(folder.file("model.gguf"), {});
    for (const Asked& asked : {Asked{}, Asked{.parallel = 3, .prompt_chunk = 7}, Asked{.with_mtp = true},
                               Asked{.parallel = 2, .with_mtp = true, .split = true}, Asked{.cublas = true}}) {
      if (asked.with_mtp && !model.has_mtp()) continue;
      SessionOptions o;
      o.device = asked.split ? Device::kSplit : Device::kCuda;
      o.ctx_size = 300;
      o.parallel = asked.parallel;
      o.with_mtp = asked.with_mtp;
      o.max_window = asked.with_mtp ? 4 : 1;
      o.prompt_chunk = asked.prompt_chunk;
      o.cublas = asked.cublas;
      o.threads = 1;
      if (asked.split) o.split = {std::vector<int>(static_cast<size_t>(model.config().num_layers), 1), 1};
      INFO(fmt::format("{}, {} texts{}{}{}", architecture, asked.parallel, asked.with_mtp ? ", MTP" : "",
                       asked.split ? ", split" : "", asked.cublas ? ", cuBLAS" : ""));
      const SessionMemory planned = session_memory(outline.weights, outline.config, o);
      const size_t free_before = cuda::free_memory_bytes();
      const Engine engine(model, o);
      const SessionMemory taken = engine.memory();
      CHECK(planned.kv_bytes == taken.kv_bytes);
      CHECK(planned.recurrent_bytes == taken.recurrent_bytes);
      CHECK(planned.work_bytes == taken.work_bytes);
      CHECK(planned.host_bytes == taken.host_bytes);
#ifdef FORETOKEN_CUDA_EMULATION
      CHECK(free_before - cuda::free_memory_bytes() == taken.total());  // a driver rounds
#else
      CHECK(free_before >= cuda::free_memory_bytes());
#endif
    }
  }
}

}  // namespace
}  // namespace foretoken
