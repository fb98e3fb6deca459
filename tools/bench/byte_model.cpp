#include "tools/bench/byte_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "engine/gguf/tensor_name.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

bool is_routed(std::string_view part) {
  return part.find("_exps.") != std::string_view::npos;
}

bool is_feed_forward(std::string_view part) {
  return part.starts_with("ffn_");
}

double tensor_bytes(const GgufFile& file, std::string_view name) {
  const GgufTensor* tensor = file.find_tensor(name);
  return tensor == nullptr ? 0 : static_cast<double>(tensor->size_bytes);
}

/// Sum over the tensors that can hold the head, first that is there.
double head_bytes(const GgufFile& file, std::initializer_list<std::string> names) {
  for (const std::string& name : names) {
    const double bytes = tensor_bytes(file, name);
    if (bytes > 0) return bytes;
  }
  return 0;
}

}  // namespace

ByteModel::ByteModel(const GgufFile& file, const ModelConfig& config) : config_(config) {
  const double routed_share =
      config.num_experts > 0 ? static_cast<double>(config.experts_per_token) / static_cast<double>(config.num_experts)
                             : 0;
  for (const GgufTensor& tensor : file.tensors()) {
    const auto [layer, part] = split_tensor_name(tensor.name);
    if (layer < 0) continue;
    const double bytes = static_cast<double>(tensor.size_bytes);
    const bool mtp = layer >= config.num_layers;
    if (!mtp && tensor.shape.size() > 1) {
      prompt_operations_ += 2 * static_cast<double>(tensor.num_values()) * (is_routed(part) ? routed_share : 1);
    }
    if (mtp && (part.starts_with("nextn.embed_tokens") || part.starts_with("nextn.shared_head_head"))) continue;
    if (is_routed(part)) {
      (mtp ? mtp_routed_ : trunk_.routed_experts) += bytes * routed_share;
    } else if (mtp) {
      mtp_dense_ += bytes;
    } else if (is_feed_forward(part)) {
      trunk_.shared_and_routers += bytes;
    } else if (config.recurrent[static_cast<size_t>(layer)]) {
      trunk_.delta_net_projections += bytes;
    } else {
      trunk_.attention_projections += bytes;
    }
  }
  const auto recurrent = std::count(config.recurrent.begin(), config.recurrent.end(), true);
  num_attention_layers_ = config.num_layers - static_cast<int>(recurrent);
  // The matrix of each value head and the last conv_taps - 1 inputs of each channel, float32, read once and written
  // once a pass.
  const double state =
      static_cast<double>(config.state_size) * static_cast<double>(config.value_dim()) +
      static_cast<double>(std::max(config.conv_taps - 1, 0)) * static_cast<double>(config.conv_channels());
  trunk_.delta_net_state = static_cast<double>(recurrent) * state * 4 * 2;
  trunk_.head = head_bytes(file, {"output.weight", "token_embd.weight"});
  if (config.num_mtp_layers > 0) {
    mtp_head_ = head_bytes(file, {"blk." + std::to_string(config.num_layers) + ".nextn.shared_head_head.weight",
                                  "output_extra.weight", "output.weight", "token_embd.weight"});
  }
}

double ByteModel::kv_bytes(int num_layers, double kv_len, KvType kv_type) const {
  const double value_bytes = kv_type == KvType::kF32 ? 4 : 2;
  return num_layers * 2.0 * config_.num_kv_heads * config_.head_dim * value_bytes * kv_len;
}

PassBytes ByteModel::trunk_pass(double distinct_experts, double kv_len, KvType kv_type) const {
  PassBytes bytes = trunk_;
  bytes.routed_experts *= distinct_experts;
  bytes.kv = kv_bytes(num_attention_layers_, kv_len, kv_type);
  return bytes;
}

double ByteModel::mtp_layer_pass(double distinct_experts, double kv_len, KvType kv_type) const {
  return mtp_dense_ + mtp_routed_ * distinct_experts + kv_bytes(config_.num_mtp_layers, kv_len, kv_type);
}

double ByteModel::draft_head(int64_t draft_vocab) const {
  if (draft_vocab == 0 || draft_vocab >= config_.vocab_size) return mtp_head_;
  return mtp_head_ * static_cast<double>(draft_vocab) / static_cast<double>(config_.vocab_size);
}

double independent_overlap(const ModelConfig& config, int num_rows) {
  if (config.num_experts == 0) return 1;
  const double share = static_cast<double>(config.experts_per_token) / static_cast<double>(config.num_experts);
  return (1 - std::pow(1 - share, num_rows)) / share;
}

double published_overlap(const ModelConfig& config, int num_rows) {
  if (config.num_experts == 0) return 1;
  // n = 1..5 as published; from there on the share of new experts falls evenly to the 20% that are left after eight
  // tokens.
  static constexpr std::array<double, 9> kDistinct = {1, 1.55, 1.94, 2.26, 2.55, 2.81, 3.05, 3.27, 3.47};
  FT_CHECK(num_rows >= 1 && num_rows <= static_cast<int>(kDistinct.size()));
  return std::min(kDistinct[static_cast<size_t>(num_rows - 1)], independent_overlap(config, num_rows));
}

double published_acceptance_length(int k) {
  static constexpr std::array<double, 5> kPublished = {1, 1.88, 2.63, 3.14, 3.57};
  if (k < static_cast<int>(kPublished.size())) return kPublished[static_cast<size_t>(k)];
  double step = kPublished[4] - kPublished[3];
  double length = kPublished[4];
  for (int i = 4; i < k; ++i) {
    step *= 0.8;
    length += step;
  }
  return length;
}

double ideal_speedup(const ByteModel& bytes, int k, double acceptance_length, double distinct_experts,
                     int64_t draft_vocab, double kv_len, KvType kv_type) {
  const double one = bytes.trunk_pass(1, kv_len, kv_type).total();
  const double window =
      bytes.trunk_pass(distinct_experts, kv_len, kv_type).total() + k * bytes.draft_step(draft_vocab, kv_len, kv_type);
  return acceptance_length * one / window;
}

}  // namespace foretoken
