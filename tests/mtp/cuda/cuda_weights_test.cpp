#include "engine/cuda/cuda_weights.h"

#include <catch2/catch.hpp>

#include "engine/cuda/placement.h"
#include "engine/model/model.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"

namespace foretoken {
namespace {

TEST_CASE("the weights take the memory on the device that the plan gives them", "[cuda]") {
  test::RandomModel spec = test::small_model(GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama"));
  spec.vocab_size = 2000;
  spec.tied_head = GENERATE(false, true);
  spec.fused_gate_up = spec.tied_head;
  const test::TempFolder folder;
  spec.write(folder.file("model.gguf"));
  const Model model = Model::load(folder.file("model.gguf"), {});
  INFO(spec.architecture << (spec.tied_head ? ", tied head, fused gate and up" : ""));

  const ModelSizes sizes = ModelSizes::of(model.weights(), model.config());
  const ModelOutline outline = Model::outline(GgufFile::open(folder.file("model.gguf")));
  const ModelSizes before_loading = ModelSizes::of(outline.weights, outline.config);
  size_t planned = sizes.embed_bytes + sizes.head_bytes + sizes.draft_head_bytes;
  CHECK(planned == before_loading.embed_bytes + before_loading.head_bytes + before_loading.draft_head_bytes);
  const auto add = [&planned](const LayerSizes& layer, const LayerSizes& before) {
    const size_t bytes = layer.dense_bytes + static_cast<size_t>(layer.num_experts) * layer.expert_bytes;
    CHECK(bytes == before.dense_bytes + static_cast<size_t>(before.num_experts) * before.expert_bytes);
    planned += bytes;
  };
  for (size_t l = 0; l < sizes.layers.size(); ++l) add(sizes.layers[l], before_loading.layers[l]);
  if (sizes.mtp) add(*sizes.mtp, *before_loading.mtp);

  const cuda::CudaWeights weights(model, model.has_mtp());
  // Each part begins at a multiple of 256 bytes: some twenty-five parts a layer, and a few around them.
  const size_t gaps = 256 * 25 * (sizes.layers.size() + 2);
  CHECK(weights.size_bytes() >= planned);
  CHECK(weights.size_bytes() < planned + gaps);
  CHECK(gaps < sizes.embed_bytes);  // or a second embedding would go unnoticed
}

}  // namespace
}  // namespace foretoken
