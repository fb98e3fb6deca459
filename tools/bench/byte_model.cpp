#include "tools/bench/byte_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

double bytes_of(const MatrixView& matrix) {
  return static_cast<double>(matrix.size_bytes());
}
double bytes_of(const VectorView& vector) {
  return static_cast<double>(vector.count) * sizeof(float);
}
/// Of all experts; a tensor that holds two matrices of each counts half.
double bytes_of(const ExpertMatrices& experts) {
  if (experts.all.num_rows == 0) return 0;
  return bytes_of(experts.all) * static_cast<double>(experts.num_rows) / static_cast<double>(experts.stride_rows);
}

/// Multiplications and additions for one row. Vectors cost next to nothing.
double operations_of(const MatrixView& matrix) {
  return 2.0 * static_cast<double>(matrix.num_rows) * static_cast<double>(matrix.num_cols);
}
double operations_of(const VectorView&) {
  return 0;
}
double operations_of(const ExpertMatrices& experts) {
  if (experts.all.num_rows == 0) return 0;
  return operations_of(experts.all) * static_cast<double>(experts.num_rows) / static_cast<double>(experts.stride_rows);
}

}  // namespace

ByteModel::ByteModel(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config) : config_(config) {
  const double routed_share =
      config.num_experts > 0 ? static_cast<double>(config.experts_per_token) / static_cast<double>(config.num_experts)
                             : 0;
  for (const LayerWeights& layer : weights.layers) {
    const auto part_of = [&](WeightRole role) -> std::pair<double&, double> {
      switch (role) {
        case WeightRole::kRoutedExpert:
          return {trunk_.routed_experts, routed_share};
        case WeightRole::kRouter:
        case WeightRole::kSharedExpert:
        case WeightRole::kDense:
          return {trunk_.shared_and_routers, 1};
        default:
          return {layer.is_recurrent() ? trunk_.delta_net_projections : trunk_.attention_projections, 1};
      }
    };
    LayerWeights::for_each(
        [&](WeightRole role, const auto& weight) {
          auto [bytes, share] = part_of(role);
          bytes += bytes_of(weight) * share;
          prompt_operations_ += operations_of(weight) * share;
        },
        layer);
  }
  if (config.num_mtp_layers > 0) {
    MtpWeights::for_each(
        [&](WeightRole role, const auto& weight) {
          const bool routed = role == WeightRole::kRoutedExpert;
          (routed ? mtp_routed_ : mtp_dense_) += bytes_of(weight) * (routed ? routed_share : 1);
        },
        weights.mtp);
    mtp_head_ = bytes_of(weights.mtp.head);
  }
  trunk_.head = bytes_of(weights.head);

  for (const LayerWeights& layer : weights.layers) {
    if (!layer.is_recurrent()) {
      kv_values_ += 2 * layer.attention().shape.kv_dim();
      continue;
    }
    // The matrix of each value head and the last conv_taps - 1 inputs of each channel, float32, read once and written
    // once a pass.
    const DeltaNetShape& shape = layer.delta_net().shape;
    trunk_.delta_net_state += 2.0 * sizeof(float) * static_cast<double>(shape.state_values() + shape.history_values());
  }
  if (config.num_mtp_layers > 0) mtp_kv_values_ = 2 * weights.mtp.layer.attention().shape.kv_dim();
}

double ByteModel::kv_bytes(int64_t values, double kv_len, KvType kv_type) {
  return static_cast<double>(values * kv_value_bytes(kv_type)) * kv_len;
}

PassBytes ByteModel::trunk_pass(double distinct_experts, double kv_len, KvType kv_type) const {
  PassBytes bytes = trunk_;
  bytes.routed_experts *= distinct_experts;
  bytes.kv = kv_bytes(kv_values_, kv_len, kv_type);
  return bytes;
}

double ByteModel::mtp_layer_pass(double distinct_experts, double kv_len, KvType kv_type) const {
  return mtp_dense_ + mtp_routed_ * distinct_experts + kv_bytes(mtp_kv_values_, kv_len, kv_type);
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
  return std::min(kDistinct[num_rows - 1], independent_overlap(config, num_rows));
}

double published_acceptance_length(int k) {
  static constexpr std::array<double, 5> kPublished = {1, 1.88, 2.63, 3.14, 3.57};
  if (k < static_cast<int>(kPublished.size())) return kPublished[k];
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
