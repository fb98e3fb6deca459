#include "engine/cuda/placement.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>

#include "engine/model/model.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

using namespace foretoken;
using Catch::Matchers::Contains;

namespace {

// Four layers of 1000 bytes with 8 experts of 100 each, an MTP layer of 500 with 8 of 100, a head of 300, an embedding
// of 200, a draft head of its own of 60; a session of 400 + 50 + 150:
//   dense    200 + 300 + 4 * 1000 = 4500
//   MTP      500 + 8 * 100 + 60   = 1360
//   session                          600
//   experts  4 * 8 * 100          = 3200
ModelSizes four_layers() {
  ModelSizes sizes;
  sizes.layers.assign(4, {1000, 100, 8});
  sizes.mtp = LayerSizes{500, 100, 8};
  sizes.embed_bytes = 200;
  sizes.head_bytes = 300;
  sizes.draft_head_bytes = 60;
  sizes.experts_per_token = 2;
  sizes.hidden_dim = 5;
  return sizes;
}

constexpr size_t kDense = 4500, kMtp = 1360, kSession = 600, kExperts = 3200;

// The least free memory whose 95% hold `bytes`.
size_t free_for(size_t bytes) {
  size_t free_bytes = bytes * 100 / 95;
  while (free_bytes * 95 / 100 < bytes) ++free_bytes;
  return free_bytes;
}

PlacementRequest request_for(size_t bytes) {
  PlacementRequest request;
  request.free_bytes = free_for(bytes);
  request.with_mtp = true;
  request.ctx_size = 4000;
  request.session = {400, 50, 150};
  return request;
}

std::string refusal(const ModelSizes& sizes, const PlacementRequest& request) {
  try {
    (void)plan_placement(sizes, request);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("A plan that holds the whole model has every byte on the device", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession + kExperts);
  request.whole_model = GENERATE(true, false);
  const Placement plan = plan_placement(four_layers(), request);
  CHECK(plan.experts == std::vector<int>{8, 8, 8, 8});
  CHECK(plan.cache_entries == 0);
  CHECK(plan.dense_bytes == kDense);
  CHECK(plan.mtp_bytes == kMtp);
  CHECK(plan.session_bytes == kSession);
  CHECK(plan.expert_bytes == kExperts);
  CHECK(plan.cache_bytes == 0);
  CHECK(plan.host_bytes == 0);
  CHECK(plan.whole_model());
  CHECK(plan.device_bytes() == plan.budget_bytes);
  // Layers and head, KV and state, two experts of 100 in each of four layers.
  CHECK(plan.device_bytes_per_token == 4300 + 450 + 800);
  CHECK(plan.host_bytes_per_token == 0);
  CHECK(plan.bus_bytes_per_token == 0);
}

TEST_CASE("One byte less and the last layers' experts stay in RAM", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession + kExperts);
  --request.free_bytes;
  const Placement plan = plan_placement(four_layers(), request);
  REQUIRE(plan.budget_bytes == kDense + kMtp + kSession + kExperts - 1);
  // Room 3199, an eighth of it (399) for hot experts: three layers of 800 fit into 2800, and the rest, 799, holds
  // seven entries of the fourth layer.
  CHECK(plan.experts == std::vector<int>{8, 8, 8, 0});
  CHECK(plan.expert_bytes == 2400);
  CHECK(plan.cache_entries == 7);
  CHECK(plan.cache_bytes == 700);
  CHECK(plan.host_bytes == 800);
  CHECK_FALSE(plan.whole_model());
  // The fourth layer: 7 of 8 experts on the device. A row of 5 floats goes over, and two partials an eighth of the
  // time.
  CHECK(plan.device_bytes_per_token == Approx(4300 + 450 + 600 + 200 * 7.0 / 8));
  CHECK(plan.host_bytes_per_token == Approx(200 / 8.0));
  CHECK(plan.bus_bytes_per_token == Approx(20 * (1 + 2 / 8.0)));

  request.whole_model = true;
  const std::string error = refusal(four_layers(), request);
  CHECK_THAT(error, Contains("--device cuda") && Contains("--device split would fit") && Contains("3 of 4 layers"));
  CHECK(error.find('\n') == std::string::npos);
}

TEST_CASE("A budget for half of the experts", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession + kExperts / 2);
  SECTION("as many as fit: an eighth of 1600 is kept, one layer of 800 goes into 1400, two entries of three layers") {
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{8, 0, 0, 0});
    CHECK(plan.cache_entries == 2);
    CHECK(plan.cache_bytes == 600);
    CHECK(plan.host_bytes == 2400);
  }
  SECTION("without entries two whole layers fit") {
    request.cache_entries = 0;
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{8, 8, 0, 0});
    CHECK(plan.cache_entries == 0);
    CHECK(plan.device_bytes() == plan.budget_bytes);
  }
  SECTION("four entries a layer leave room for no whole layer: 4 * 4 * 100") {
    request.cache_entries = 4;
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{0, 0, 0, 0});
    CHECK(plan.cache_entries == 4);
    request.cache_entries = 5;
    CHECK_THAT(refusal(four_layers(), request), Contains("--gpu-cache 5") && Contains("--gpu-cache 4 would fit"));
  }
  SECTION("four of each layer fit exactly, five do not") {
    request.gpu_experts = 4;
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{4, 4, 4, 4});
    CHECK(plan.cache_entries == 0);
    CHECK(plan.device_bytes() == plan.budget_bytes);
    CHECK(plan.host_bytes == 1600);
    CHECK(plan.host_bytes_per_token == Approx(4 * 2 * 100 / 2.0));
    request.gpu_experts = 5;
    CHECK_THAT(refusal(four_layers(), request), Contains("--gpu-experts 5") && Contains("--gpu-experts 4 would fit"));
    --request.free_bytes;
    request.gpu_experts = 4;
    CHECK_THAT(refusal(four_layers(), request), Contains("--gpu-experts 3 would fit"));
  }
  SECTION("what --gpu-experts leaves goes to entries") {
    request.gpu_experts = 1;
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{1, 1, 1, 1});
    CHECK(plan.cache_entries == 3);
    CHECK(plan.host_bytes == 2800);
  }
}

TEST_CASE("Flags at their limits", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession + kExperts);
  SECTION("no experts, no entries") {
    request.gpu_experts = 0;
    request.cache_entries = 0;
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{0, 0, 0, 0});
    CHECK(plan.device_bytes() == kDense + kMtp + kSession);
    CHECK(plan.host_bytes_per_token == 800);
  }
  SECTION("all experts by number") {
    request.gpu_experts = 8;
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.whole_model());
    CHECK(plan.cache_entries == 0);
  }
  SECTION("more than there are") {
    request.gpu_experts = 9;
    CHECK_THAT(refusal(four_layers(), request), Contains("--gpu-experts 9") && Contains("8 routed experts"));
    request.gpu_experts.reset();
    request.cache_entries = 9;
    CHECK_THAT(refusal(four_layers(), request), Contains("--gpu-cache 9") && Contains("8 routed experts"));
  }
  SECTION("no layer, one, all, more than there are") {
    request.gpu_layers = 0;
    Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.expert_bytes + plan.cache_bytes == 0);
    request.gpu_layers = 1;
    plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{8, 0, 0, 0});
    CHECK(plan.cache_entries == 0);  // the layer that may hold experts is whole
    request.gpu_experts = 3;
    plan = plan_placement(four_layers(), request);
    CHECK(plan.experts == std::vector<int>{3, 0, 0, 0});
    CHECK(plan.cache_entries == 5);
    CHECK(plan.cache_bytes == 500);
    request.gpu_experts.reset();
    for (const int layers : {4, 99}) {
      request.gpu_layers = layers;
      CHECK(plan_placement(four_layers(), request).whole_model());
    }
  }
  SECTION("more entries than experts are left count as those that are left") {
    request.gpu_experts = 6;
    request.cache_entries = 8;
    request.free_bytes = free_for(100000);
    const Placement plan = plan_placement(four_layers(), request);
    CHECK(plan.cache_entries == 2);
  }
}

TEST_CASE("Where not even the dense parts fit, the error says what would", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession);
  CHECK(plan_placement(four_layers(), request).device_bytes() == kDense + kMtp + kSession);
  --request.free_bytes;
  // A context of 4000 positions takes 400 bytes: one for ten positions, which counts as one each.
  std::string error = refusal(four_layers(), request);
  CHECK_THAT(error, Contains("--device split") && Contains("--ctx-size 256 would fit"));
  CHECK(error.find('\n') == std::string::npos);
  // 400 bytes less: no context at all.
  request.free_bytes = free_for(kDense + kMtp + kSession - 400);
  CHECK_THAT(refusal(four_layers(), request), Contains("without --mtp it would fit"));
  request.with_mtp = false;
  CHECK_NOTHROW(plan_placement(four_layers(), request));
  request.free_bytes = 1000;
  CHECK_THAT(refusal(four_layers(), request), Contains("--device cpu"));
  request.free_bytes = 0;
  CHECK_THAT(refusal(four_layers(), request), Contains("--device cpu"));
}

TEST_CASE("What has to stay free does", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession + kExperts);
  request.reserve_bytes = request.free_bytes - (kDense + kMtp + kSession + kExperts);  // less than 5%
  CHECK(plan_placement(four_layers(), request).whole_model());
  ++request.reserve_bytes;
  CHECK_FALSE(plan_placement(four_layers(), request).whole_model());
  request.reserve_bytes = request.free_bytes + 1;
  CHECK_THAT(refusal(four_layers(), request), Contains("0.0 MiB may be used"));
}

TEST_CASE("A model without an MTP layer, or one that is not used, leaves its room to experts", "[placement]") {
  ModelSizes sizes = four_layers();
  PlacementRequest request = request_for(kDense + kSession + kExperts);
  SECTION("none") {
    sizes.mtp.reset();
  }
  SECTION("not used") {
    request.with_mtp = false;
  }
  const Placement plan = plan_placement(sizes, request);
  CHECK(plan.mtp_bytes == 0);
  CHECK(plan.whole_model());
}

TEST_CASE("A dense model has nothing to split", "[placement]") {
  ModelSizes sizes = four_layers();
  sizes.layers.assign(4, {1800, 0, 0});
  sizes.mtp = LayerSizes{1300, 0, 0};
  sizes.experts_per_token = 0;
  PlacementRequest request = request_for(7700 + 1360 + 600);
  request.whole_model = GENERATE(true, false);
  const Placement plan = plan_placement(sizes, request);
  CHECK(plan.experts == std::vector<int>{0, 0, 0, 0});
  CHECK(plan.whole_model());
  CHECK(plan.host_bytes_per_token == 0);
  CHECK_THAT(describe(plan, sizes, {}), Contains("nothing that a token reads"));
  request.gpu_experts = 1;
  CHECK_THAT(refusal(sizes, request), Contains("--gpu-experts 1") && Contains("no routed experts"));
  request.gpu_experts = 0;
  CHECK_NOTHROW(plan_placement(sizes, request));
  --request.free_bytes;
  CHECK_FALSE(refusal(sizes, request).empty());
}

TEST_CASE("Layers of different sizes, the first ones whole", "[placement]") {
  ModelSizes sizes = four_layers();
  sizes.layers[0].expert_bytes = 150;  // 1200
  sizes.layers[3].expert_bytes = 50;   // 400
  PlacementRequest request = request_for(kDense + kMtp + kSession + 2100);
  request.cache_entries = 0;
  Placement plan = plan_placement(sizes, request);
  CHECK(plan.experts == std::vector<int>{8, 8, 0, 0});
  request.cache_entries = 1;  // an entry of the last two: 150
  plan = plan_placement(sizes, request);
  CHECK(plan.experts == std::vector<int>{8, 0, 0, 0});
  CHECK(plan.cache_bytes == 250);
  request.cache_entries = 0;
  request.gpu_experts = 5;  // 5 * (150 + 100 + 100 + 50)
  plan = plan_placement(sizes, request);
  CHECK(plan.expert_bytes == 2000);
}

TEST_CASE("The time of a token: the device's parts, and where the host is slower, its excess", "[placement]") {
  PlacementRequest request = request_for(kDense + kMtp + kSession + kExperts / 2);
  request.gpu_experts = 4;
  const ModelSizes sizes = four_layers();
  const Placement plan = plan_placement(sizes, request);
  // On the device 4300 + 450 + 400 = 5150 bytes at 100 a second; each layer's host side reads 100 at 10 a second and
  // moves 20 * (1 + 1) over the bus at 20 a second: 10 + 2 s, of which the device's own 100 bytes cover 1 s.
  const TokenTime time = expected_time(plan, sizes, {100, 20, 10});
  CHECK(*time.device_ms == Approx(51500));
  CHECK(*time.host_ms == Approx(40000));
  CHECK(*time.bus_ms == Approx(8000));
  CHECK(*time.token_ms == Approx(51500 + 4 * 11000));
  CHECK_FALSE(expected_time(plan, sizes, {100, std::nullopt, 10}).token_ms.has_value());
  CHECK_FALSE(expected_time(plan, sizes, {}).device_ms.has_value());
  CHECK_THAT(describe(plan, sizes, {100, 20, 10}), Contains("4 of 8 in each of 4 layers") && Contains("tok/s"));
  CHECK_THAT(describe(plan, sizes, {}), !Contains("tok/s"));
}

TEST_CASE("The sizes of a file's parts add up to its tensors as they lie on the device", "[placement]") {
  const TempFolder folder;
  test::RandomModel spec;
  spec.architecture = GENERATE("qwen35moe", "qwen3moe", "qwen35");
  spec.fused_gate_up = GENERATE(false, true);
  spec.tied_head = spec.fused_gate_up;
  spec.write(folder.path("model.gguf"));
  const GgufFile file = GgufFile::open(folder.path("model.gguf"));
  const ModelOutline outline = Model::outline(file);
  const ModelConfig& config = outline.config;
  const ModelSizes sizes = ModelSizes::of(outline.weights, config);
  // Floats of 4 bytes, rows of whole 16 bytes: the device's sizes are the file's.
  size_t in_file = 0, of_parts = sizes.embed_bytes + sizes.head_bytes + sizes.draft_head_bytes;
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name != "output_norm.weight") in_file += tensor.size_bytes;
  }
  const auto add = [&of_parts](const LayerSizes& layer) {
    of_parts += layer.dense_bytes + static_cast<size_t>(layer.num_experts) * layer.expert_bytes;
  };
  for (const LayerSizes& layer : sizes.layers) add(layer);
  if (sizes.mtp) add(*sizes.mtp);

  CHECK(of_parts == in_file);
  CHECK(sizes.mtp.has_value() == (config.num_mtp_layers == 1));
  CHECK(sizes.layers[0].num_experts == config.num_experts);
  if (config.num_experts > 0) {
    CHECK(sizes.layers[0].expert_bytes == static_cast<size_t>(3 * config.expert_dim * config.hidden_dim) * 4);
  }
}

TEST_CASE("Rows on the device are padded to 16 bytes a plane", "[placement]") {
  const TempFolder folder;
  test::RandomModel spec;
  spec.types = {WeightType::kQ6_K};
  spec.write(folder.path("model.gguf"));
  const GgufFile file = GgufFile::open(folder.path("model.gguf"));
  const ModelSizes sizes = [&] {
    const ModelOutline outline = Model::outline(file);
    return ModelSizes::of(outline.weights, outline.config);
  }();
  // One block of 256 values a row: 128 + 64 + 16 bytes, and a scale of 2 in 16: 224, in the file 210.
  CHECK(sizes.layers[0].expert_bytes == static_cast<size_t>(2 * spec.expert_dim + spec.hidden_dim) * 224);
  CHECK(sizes.embed_bytes == static_cast<size_t>(spec.vocab_size) * 224);
}
