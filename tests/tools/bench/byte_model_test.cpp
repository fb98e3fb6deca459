#include "tools/bench/byte_model.h"

#include <catch2/catch.hpp>

#include "engine/model/model.h"

using namespace foretoken;

namespace {

ModelConfig experts_8_of_256() {
  ModelConfig config;
  config.num_experts = 256;
  config.experts_per_token = 8;
  return config;
}

}  // namespace

TEST_CASE("U(n) for independent routing and as published", "[byte_model]") {
  const ModelConfig config = experts_8_of_256();
  const double independent[] = {1, 1.97, 2.91, 3.82, 4.70};
  const double published[] = {1, 1.55, 1.94, 2.26, 2.55};
  for (int n = 1; n <= 5; ++n) {
    CHECK(independent_overlap(config, n) == Approx(independent[n - 1]).margin(0.005));
    CHECK(published_overlap(config, n) == Approx(published[n - 1]));
  }
  for (int n = 2; n <= 9; ++n) CHECK(published_overlap(config, n) > published_overlap(config, n - 1));
  CHECK(independent_overlap(ModelConfig(), 4) == 1);  // dense: nothing is routed
}

TEST_CASE("Published overlap never exceeds what independent routing would read", "[byte_model]") {
  ModelConfig config;
  config.num_experts = 4;
  config.experts_per_token = 2;
  for (int n = 1; n <= 9; ++n) CHECK(published_overlap(config, n) <= independent_overlap(config, n));
  CHECK(published_overlap(config, 9) <= 2);  // four experts are all there are
}

TEST_CASE("The kinds of bytes of a file's trunk add up to its tensors", "[byte_model]") {
  const GgufFile file = GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf");
  const ModelOutline outline = Model::outline(file);
  const ModelConfig& config = outline.config;
  REQUIRE(config.num_mtp_layers == 1);
  const ByteModel bytes(outline.weights, config);

  // With all experts read, a pass reads every tensor of the trunk's blocks and the head.
  const double all_experts = static_cast<double>(config.num_experts) / config.experts_per_token;
  double trunk = 0, mtp = 0, head = 0;
  const std::string mtp_prefix = "blk." + std::to_string(config.num_layers) + ".";
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name.starts_with(mtp_prefix)) {
      mtp += static_cast<double>(tensor.size_bytes);
    } else if (tensor.name.starts_with("blk.")) {
      trunk += static_cast<double>(tensor.size_bytes);
    } else if (tensor.name == "output.weight") {
      head = static_cast<double>(tensor.size_bytes);
    }
  }
  if (head == 0) head = static_cast<double>(file.find_tensor("token_embd.weight")->size_bytes);
  const PassBytes pass = bytes.trunk_pass(all_experts, 0, KvType::kF16);
  CHECK(pass.total() - pass.delta_net_state == Approx(trunk + head));
  CHECK(bytes.mtp_layer_pass(all_experts, 0, KvType::kF16) == Approx(mtp));
  CHECK(bytes.draft_head(0) == Approx(head));
  CHECK(bytes.draft_head(config.vocab_size / 4) == Approx(head / 4));

  // Two operations for each weight of the trunk's matrices that a token meets: an expert matrix counts by top-k.
  double weights = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    if (!tensor.name.starts_with("blk.") || tensor.name.starts_with(mtp_prefix) || tensor.shape.size() == 1 ||
        tensor.name.ends_with("ssm_conv1d.weight")) {
      continue;
    }
    const bool routed = tensor.shape.size() == 3;
    weights += static_cast<double>(tensor.num_values()) / (routed ? all_experts : 1);
  }
  CHECK(bytes.prompt_operations() == Approx(2 * weights));

  // State: read and written, float32. KV: keys and values of every position.
  const double recurrent = static_cast<double>(std::count(config.recurrent.begin(), config.recurrent.end(), true));
  const DeltaNetShape& shape = outline.weights.layers[0].delta_net().shape;
  const double state =
      static_cast<double>(config.state_size * shape.value_dim() + (config.conv_taps - 1) * shape.conv_channels());
  CHECK(pass.delta_net_state == Approx(recurrent * state * 8));
  const double attention_layers = config.num_layers - recurrent;
  CHECK(bytes.trunk_pass(1, 1000, KvType::kF16).kv ==
        Approx(attention_layers * 2 * config.num_kv_heads * config.head_dim * 2 * 1000));
  CHECK(bytes.trunk_pass(1, 1000, KvType::kF32).kv == Approx(2 * bytes.trunk_pass(1, 1000, KvType::kF16).kv));
}

TEST_CASE("The ideal speed-up is tokens gained against bytes read", "[byte_model]") {
  const GgufFile file = GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf");
  const ModelOutline outline = Model::outline(file);
  const ModelConfig& config = outline.config;
  const ByteModel bytes(outline.weights, config);
  const double one = bytes.trunk_pass(1, 0, KvType::kF16).total();
  const double window = bytes.trunk_pass(1.5, 0, KvType::kF16).total();
  const double draft = bytes.draft_step(1024, 0, KvType::kF16);
  CHECK(ideal_speedup(bytes, 2, 2.5, 1.5, 1024, 0, KvType::kF16) == Approx(2.5 * one / (window + 2 * draft)));
  CHECK(ideal_speedup(bytes, 2, 2.5, 1.5, 0, 0, KvType::kF16) <
        ideal_speedup(bytes, 2, 2.5, 1.5, 1024, 0, KvType::kF16));
}

TEST_CASE("Published acceptance lengths, and their continuation", "[byte_model]") {
  CHECK(published_acceptance_length(0) == 1);
  CHECK(published_acceptance_length(1) == 1.88);
  CHECK(published_acceptance_length(4) == 3.57);
  CHECK(published_acceptance_length(5) == Approx(3.57 + 0.43 * 0.8));
  CHECK(published_acceptance_length(8) < 5);
}
