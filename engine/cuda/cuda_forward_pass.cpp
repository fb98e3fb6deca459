#include "engine/cuda/cuda_forward_pass.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "engine/cuda/cuda_split.h"
#include "kernels/base/error.h"
#include "kernels/rows/embed_cuda.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "kernels/rows/rows_cuda.h"
#include "kernels/select/router_cuda.h"

namespace foretoken::cuda {

void check_shapes(const Model& model, const ModelShapes& s) {
  const auto check = [&](bool fits, std::string_view what, int64_t value, std::string_view limit) {
    if (fits) return;
    throw InputError(fmt::format("{}: --device cuda: {} is {}; the CUDA kernels take {}; run with --device cpu",
                                 model.path(), what, value, limit));
  };
  check(s.head_dim <= 256, "the length of an attention head", s.head_dim, "at most 256");
  check(s.moe.num_experts <= kMaxExperts, "the number of experts", s.moe.num_experts, "at most 1024");
  for (const DeltaNetShape& shape : s.delta_nets) {
    check(delta_net_supports(shape.state_size), "the delta net's state size", shape.state_size, "16, 32, 64 or 128");
    check(shape.conv_taps <= 8, "the length of the delta net's convolution", shape.conv_taps, "at most 8");
  }
}

void CudaForwardPass::begin(const CudaRows& rows) {
  rows_ = rows;
  residual_ = buffers_.residual;
  rows_moved_ = false;
  pending_ = Pending::kNothing;
}

void CudaForwardPass::keep_rows(const CudaRows& rows, const int32_t* from) {
  if (from != nullptr) {
    launch(GatherRowsDesc{buffers_.residual, from, buffers_.mtp_residual, config_.hidden_dim, rows.max_rows}, stream_);
  }
  begin(rows);
  rows_moved_ = from != nullptr;
  if (rows_moved_) residual_ = buffers_.mtp_residual;
}

void CudaForwardPass::embed(const DeviceMatrix& matrix, Ids ids) {
  launch(EmbedDesc{matrix, ids, residual_, rows_.max_rows, device_num_rows()}, stream_);
}

void CudaForwardPass::join(const CudaMtp& mtp, Hidden hidden) {
  const int64_t dim = config_.hidden_dim;
  NormRowsDesc half;
  half.residual = residual_;
  half.num_cols = dim;
  half.weight = mtp.embed_norm;
  half.eps = config_.norm_eps;
  half.out = buffers_.join.values;
  half.out_stride = 2 * dim;
  half.max_rows = rows_.max_rows;
  half.device_num_rows = device_num_rows();
  launch(half, choose_config(half), stream_);
  half.residual = const_cast<float*>(hidden);  // nothing is added to it
  half.weight = mtp.hidden_norm;
  half.out = buffers_.join.values + dim;
  launch(half, choose_config(half), stream_);
  if (input_forms(mtp.join) != 0) {
    const QuantiseDesc desc{buffers_.join, rows_.max_rows, device_num_rows()};
    launch(desc, choose_config(desc), stream_);
  }
  fill_zero(stream_, residual_, static_cast<size_t>(rows_.max_rows * dim) * sizeof(float));
  project(mtp.join, buffers_.join, buffers_.mixed);
  pending_ = Pending::kMixed;
}

void CudaForwardPass::norm_moved(const float* weight, unsigned forms) {
  if (rows_moved_) norm(weight, forms);
}

void CudaForwardPass::norm_to(const float* weight, unsigned forms, const DeviceRows& rows) {
  const DeviceRows to = with_forms(rows, forms);
  NormRowsDesc desc;
  desc.residual = residual_;
  desc.num_cols = config_.hidden_dim;
  switch (pending_) {
    case Pending::kNothing:
      break;
    case Pending::kMixed:
      desc.add = buffers_.mixed;
      break;
    case Pending::kExperts:
      desc.experts = sums_;
      break;
    case Pending::kDense:
      desc.add = buffers_.shared;
      break;
  }
  pending_ = Pending::kNothing;
  desc.weight = weight;
  desc.eps = config_.norm_eps;
  desc.out = to.values;
  desc.out_stride = to.num_cols;
  desc.by32 = to.by32;
  desc.by256 = to.by256;
  desc.max_rows = rows_.max_rows;
  desc.device_num_rows = device_num_rows();
  launch(desc, choose_config(desc), stream_);
}

void CudaForwardPass::quantise(const DeviceRows& rows, int num_rows) {
  if (rows.by32.empty() && rows.by256.empty()) return;
  const QuantiseDesc desc{rows, num_rows, nullptr};
  launch(desc, choose_config(desc), stream_);
}

MatmulDesc CudaForwardPass::projection(const DeviceMatrix& matrix, const DeviceRows& x, float* y) const {
  MatmulDesc desc;
  desc.w = matrix;
  desc.num_outputs = matrix.num_rows;
  desc.x = x;
  desc.max_rows = rows_.max_rows;
  desc.device_num_rows = device_num_rows();
  desc.y = y;
  desc.y_stride = matrix.num_rows;
  desc.blas = &buffers_.blas;
  return desc;
}

void CudaForwardPass::project(const DeviceMatrix& matrix, const DeviceRows& x, float* y, const DeviceMatrix& up) {
  MatmulDesc desc = projection(matrix, x, y);
  desc.up = up;
  launch(desc, choose_config(desc), stream_);
}

void CudaForwardPass::project_together(std::initializer_list<MatmulOutput> outputs, const DeviceRows& x) {
  std::vector<MatmulDesc> descs;
  for (const MatmulOutput& output : outputs) {
    if (output.w.num_rows > 0) descs.push_back(projection(output.w, x, output.y));
  }
  launch_together(descs, stream_);
}

PrepareAttentionDesc CudaForwardPass::preparation(const CudaAttention& weights, int kv_layer, bool queries,
                                                  bool keys_and_values) const {
  const AttentionShape& shape = weights.shape;
  PrepareAttentionDesc desc;
  desc.eps = config_.norm_eps;
  desc.rope = buffers_.rope(shape.rope);
  desc.rope_dim = shape.rope.dim;
  desc.adjacent_pairs = shape.rope.pairs == RopePairs::kAdjacent;
  desc.num_heads = shape.num_heads;
  desc.num_kv_heads = shape.num_kv_heads;
  desc.head_dim = shape.head_dim;
  desc.kv = state_.kv[kv_layer];
  desc.max_rows = rows_.max_rows;
  desc.pass = rows_.pass;
  if (queries) {
    desc.q = buffers_.q;
    desc.q_stride = shape.q_rows();
    desc.q_head_stride = shape.q_rows() / shape.num_heads;
    desc.q_norm = weights.q_norm;
    desc.q_bias = weights.q_bias;
    desc.queries = buffers_.queries;
  }
  if (keys_and_values) {
    desc.k = buffers_.k;
    desc.v = buffers_.v;
    desc.k_norm = weights.k_norm;
    desc.k_bias = weights.k_bias;
    desc.v_bias = weights.v_bias;
  }
  return desc;
}

void CudaForwardPass::attention(const CudaAttention& weights, int kv_layer) {
  project_together({{weights.q, buffers_.q}, {weights.k, buffers_.k}, {weights.v, buffers_.v}}, buffers_.normed);
  launch(preparation(weights, kv_layer, /*queries=*/true, /*keys_and_values=*/true), stream_);
  attend(weights, kv_layer);
}

void CudaForwardPass::store_keys_and_values(const CudaAttention& weights, int kv_layer) {
  project_together({{weights.k, buffers_.k}, {weights.v, buffers_.v}}, buffers_.normed);
  launch(preparation(weights, kv_layer, /*queries=*/false, /*keys_and_values=*/true), stream_);
}

void CudaForwardPass::attend_stored(const CudaAttention& weights, int kv_layer) {
  project(weights.q, buffers_.normed, buffers_.q);
  launch(preparation(weights, kv_layer, /*queries=*/true, /*keys_and_values=*/false), stream_);
  attend(weights, kv_layer);
}

void CudaForwardPass::attend(const CudaAttention& weights, int kv_layer) {
  const AttentionShape& shape = weights.shape;
  const int64_t dim = shape.head_dim;
  AttentionDesc desc;
  desc.queries = buffers_.queries;
  desc.kv = state_.kv[kv_layer];
  desc.num_heads = shape.num_heads;
  desc.num_kv_heads = shape.num_kv_heads;
  desc.head_dim = shape.head_dim;
  desc.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  if (shape.gated) {
    desc.gate = buffers_.q + dim;
    desc.gate_stride = shape.q_rows();
    desc.gate_head_stride = 2 * dim;
    if (weights.q_bias.count > 0) desc.gate_bias = weights.q_bias + dim;
  }
  desc.out = buffers_.attended.values;
  desc.max_rows = rows_.max_rows;
  desc.pass = rows_.pass;
  desc.max_window_rows = options_.parallel * options_.max_window;
  desc.parts = rows_.has_windows ? buffers_.parts : nullptr;
  const DeviceRows attended = with_forms(with_cols(buffers_.attended, shape.query_dim()), input_forms(weights.output));
  const bool merged = rows_.has_windows && !rows_.has_chunks;  // all rows are those of windows
  if (merged) {
    desc.by32 = attended.by32;
    desc.by256 = attended.by256;
  }
  launch(desc, choose_config(desc), stream_);
  if (!merged) quantise(attended, rows_.max_rows);
  project(weights.output, attended, buffers_.mixed);
  pending_ = Pending::kMixed;
}

void CudaForwardPass::delta_net(const CudaDeltaNet& weights, int recurrent_idx) {
  const DeltaNetShape& shape = weights.shape;
  project_together({{weights.qkv, buffers_.raw},
                    {weights.gate, buffers_.z},
                    {weights.beta, buffers_.b},
                    {weights.alpha, buffers_.alpha}},
                   buffers_.normed);
  advance(weights, state_.recurrent[recurrent_idx]);

  const DeviceRows out = with_forms(with_cols(buffers_.delta_out, shape.value_dim()), input_forms(weights.out));
  GatedNormRowsDesc norm;
  norm.x = out.values;
  norm.z = buffers_.z;
  norm.weight = weights.norm;
  norm.eps = config_.norm_eps;
  norm.num_heads = shape.num_value_heads;
  norm.head_dim = shape.state_size;
  norm.out = out.values;
  norm.by32 = out.by32;
  norm.by256 = out.by256;
  norm.max_rows = rows_.max_rows;
  norm.device_num_rows = device_num_rows();
  launch(norm, choose_config(norm), stream_);
  project(weights.out, out, buffers_.mixed);
  pending_ = Pending::kMixed;
}

void CudaForwardPass::advance(const CudaDeltaNet& weights, const CudaState::Recurrent& state) {
  const DeltaNetShape& shape = weights.shape;
  DeltaBanks banks = state.banks;
  if (rows_.has_chunks) banks.chunk = buffers_.chunk;
  ConvolveDesc convolve;
  convolve.banks = banks;
  convolve.raw = buffers_.raw;
  convolve.weight = weights.conv;
  convolve.taps = shape.conv_taps;
  convolve.history = state.history;
  convolve.state_size = shape.state_size;
  convolve.num_key_heads = shape.num_key_heads;
  convolve.num_value_heads = shape.num_value_heads;
  convolve.eps = config_.norm_eps;
  convolve.b = buffers_.b;
  convolve.alpha = buffers_.alpha;
  convolve.a = weights.a;
  convolve.dt = weights.dt;
  convolve.pass = rows_.pass;
  launch(convolve, stream_);

  DeltaNetDesc net;
  net.banks = banks;
  net.state = state.state;
  net.state_size = shape.state_size;
  net.num_key_heads = shape.num_key_heads;
  net.num_value_heads = shape.num_value_heads;
  net.grouped_heads = shape.grouped_heads;
  net.out = buffers_.delta_out.values;
  net.pass = rows_.pass;
  launch(net, stream_);
}

void CudaForwardPass::route(const CudaMoe& weights, int layer_idx) {
  MatmulOutput shared;  // the shared expert's router is one more row
  if (weights.shared_router != nullptr) {
    const int64_t dim = config_.hidden_dim;
    shared.w = {reinterpret_cast<const std::byte*>(weights.shared_router.data),
                1,
                dim,
                device_row_bytes(WeightType::kF32, dim),
                WeightType::kF32,
                1.0f};
    shared.y = buffers_.shared_weight;
  }
  project_together({{weights.router, buffers_.router_logits}, shared}, buffers_.normed);
  RouteDesc desc;
  desc.logits = buffers_.router_logits;
  desc.num_experts = weights.num_experts;
  desc.top_k = weights.top_k;
  desc.experts = buffers_.experts;
  desc.weights = buffers_.weights;
  desc.shared_weight = shared.y;
  desc.max_rows = rows_.max_rows;
  if (options_.moe_verify == MoeVerify::kGrouped && weights.capacity > 0) {
    launch(desc, grouping(weights, layer_idx, 0, rows_.max_rows), stream_);
  } else {
    launch(desc, stream_);
  }
}

GroupDesc CudaForwardPass::grouping(const CudaMoe& weights, int layer_idx, int first_row, int num_rows) const {
  GroupDesc group;
  group.experts = buffers_.experts + int64_t{first_row} * weights.top_k;
  group.num_experts = weights.num_experts;
  group.top_k = weights.top_k;
  group.places = weights.places;
  if (split_ != nullptr) split_->add_fetching(layer_idx, group);
  group.num_buckets = buffers_.num_buckets + layer_idx;
  group.bucket_experts = buffers_.bucket_experts;
  group.begins = buffers_.bucket_begins;
  group.slots = buffers_.bucket_slots;
  group.max_rows = num_rows;
  if (num_rows > kMaxDotRows) {  // the kernel of prompts computes them
    group.num_tiles = buffers_.num_tiles;
    std::copy(std::begin(buffers_.bucket_tiles), std::end(buffers_.bucket_tiles), group.tiles);
  }
  return group;
}

bool CudaForwardPass::joins_buckets(const CudaMoe& weights) const {
  const CudaDense& shared = weights.shared;
  const auto alike = [](const DeviceMatrix& one, const CudaExpertMatrices& each) {
    return one.type == each.all.type && one.num_rows == each.num_rows && one.num_cols == each.all.num_cols;
  };
  return weights.has_shared() && weights.capacity > 0 && options_.moe_verify == MoeVerify::kGrouped &&
         weights.gate.all.type == weights.up.all.type && alike(shared.gate, weights.gate) &&
         alike(shared.up, weights.up) && alike(shared.down, weights.down);
}

// Buckets through gate, up and down.
void CudaForwardPass::run_buckets(const CudaMoe& weights, const GroupDesc& group, int first_row, bool with_shared) {
  const int num_rows = group.max_rows, num_slots = num_rows * weights.top_k;
  const int64_t first_slot = int64_t{first_row} * weights.top_k;
  const DeviceRows inner =
      rows_from(with_forms(with_cols(buffers_.inner, weights.expert_dim()), input_forms(weights.down.all)), first_slot);
  MatmulDesc gate;
  gate.w = weights.gate.from_first();
  gate.num_outputs = weights.gate.num_rows;
  gate.x = rows_from(buffers_.normed, first_row);
  gate.max_rows = num_rows;
  gate.y = inner.values;
  gate.y_stride = weights.gate.num_rows;
  gate.buckets = group.buckets();
  gate.max_buckets = group.max_buckets();
  gate.max_slots = group.max_slots();
  gate.expert_stride = weights.gate.stride_rows;
  gate.scales = weights.gate.scales;
  gate.slots_per_input = weights.top_k;
  if (weights.gate.all.type == weights.up.all.type) {
    gate.up = weights.up.from_first();
    gate.up_scales = weights.up.scales;
    if (with_shared) gate.shared = {weights.shared.gate, weights.shared.up, 0, num_slots};
    launch(gate, choose_config(gate), stream_);
  } else {
    launch(gate, choose_config(gate), stream_);
    MatmulDesc up = gate;
    up.w = weights.up.from_first();
    up.expert_stride = weights.up.stride_rows;
    up.scales = weights.up.scales;
    up.y = buffers_.up;
    launch(up, choose_config(up), stream_);
    launch(SiluMulDesc{inner.values, buffers_.up, num_slots * weights.gate.num_rows}, stream_);
  }
  quantise(inner, with_shared ? num_slots + num_rows : num_slots);

  MatmulDesc down;
  down.w = weights.down.from_first();
  down.num_outputs = weights.down.num_rows;
  down.x = inner;
  down.max_rows = num_rows;
  down.y = buffers_.slots + first_slot * config_.hidden_dim;
  down.y_stride = config_.hidden_dim;
  down.buckets = group.buckets();
  down.max_buckets = group.max_buckets();
  down.max_slots = group.max_slots();
  down.expert_stride = weights.down.stride_rows;
  down.scales = weights.down.scales;
  if (with_shared) down.shared = {weights.shared.down, {}, num_slots, num_slots};
  launch(down, choose_config(down), stream_);
}

void CudaForwardPass::routed_experts(const CudaMoe& weights, int layer_idx) {
  sums_.slots = buffers_.slots;
  sums_.weights = buffers_.weights;
  sums_.top_k = weights.top_k;
  sums_.shared = weights.has_shared() ? buffers_.shared : nullptr;
  sums_.shared_weight = weights.shared_router == nullptr ? nullptr : buffers_.shared_weight;
  if (weights.capacity == 0) return;
  if (options_.moe_verify == MoeVerify::kGrouped) {
    const bool with_shared = joins_buckets(weights);
    run_buckets(weights, grouping(weights, layer_idx, 0, rows_.max_rows), 0, with_shared);
    if (with_shared) sums_.shared = buffers_.slots + int64_t{rows_.max_rows} * weights.top_k * config_.hidden_dim;
  } else {
    // Each row's experts are read for it alone: what grouping is measured against.
    for (int r = 0; r < rows_.max_rows; ++r) {
      const GroupDesc group = grouping(weights, layer_idx, r, 1);
      launch(group, stream_);
      run_buckets(weights, group, r, /*with_shared=*/false);
    }
    launch(grouping(weights, layer_idx, 0, rows_.max_rows), stream_);  // counts the distinct ones
  }
}

void CudaForwardPass::shared_or_dense(const CudaDense& weights) {
  const DeviceRows inner = with_forms(with_cols(buffers_.shared_inner, weights.dim()), input_forms(weights.down));
  if (weights.gate.type == weights.up.type) {
    project(weights.gate, buffers_.normed, inner.values, weights.up);
  } else {
    project(weights.gate, buffers_.normed, inner.values);
    project(weights.up, buffers_.normed, buffers_.up);
    launch(SiluMulDesc{inner.values, buffers_.up, rows_.max_rows * weights.dim()}, stream_);
  }
  quantise(inner, rows_.max_rows);
  project(weights.down, inner, buffers_.shared);
}

void CudaForwardPass::dense(const CudaDense& weights) {
  FT_CHECK(rows_.exact);
  shared_or_dense(weights);
  pending_ = Pending::kDense;
}

void CudaForwardPass::experts(const CudaMoe& weights, int layer_idx) {
  FT_CHECK(rows_.exact);
  if (split_ != nullptr && split_->splits(layer_idx)) {
    // The host computes its experts while the device computes those that are here.
    route(weights, layer_idx);
    split_->send_rows(rows_.max_rows, weights.top_k);
    split_->fetch(layer_idx);
    routed_experts(weights, layer_idx);
    if (weights.has_shared() && !joins_buckets(weights)) shared_or_dense(weights.shared);
    recorder_.host_step(
        [split = split_, layer_idx, num_rows = rows_.max_rows] { split->compute(layer_idx, num_rows); });
    split_->receive_slots(layer_idx, rows_.max_rows, weights.top_k);
  } else {
    if (weights.has_shared() && !joins_buckets(weights)) shared_or_dense(weights.shared);
    route(weights, layer_idx);
    routed_experts(weights, layer_idx);
  }
  pending_ = Pending::kExperts;
}

void CudaForwardPass::settle(const CudaWeights& weights, const DevicePass& spans) {
  begin({0, spans, /*has_windows=*/false, /*has_chunks=*/true, /*exact=*/true});
  for (const CudaLayer& layer : weights.layers) {
    if (layer.is_recurrent()) advance(layer.delta_net(), state_.recurrent[layer.mixer_idx]);
  }
}

void CudaForwardPass::head(const DeviceMatrix& matrix, const DeviceRows& x, int num_rows, float* logits) {
  rows_ = {};
  rows_.max_rows = num_rows;
  project(matrix, x, logits);
}

void CudaForwardPass::draft_head(const DeviceMatrix& matrix, const Groups& groups, const DeviceRows& x, int num_rows,
                                 float* logits) {
  MatmulDesc desc;
  desc.w = matrix;
  desc.num_outputs = groups.launched;
  desc.x = x;
  desc.max_rows = num_rows;
  desc.y = logits;
  desc.y_stride = groups.capacity;
  desc.groups = groups.groups;
  desc.device_num_groups = groups.count;
  launch(desc, choose_config(desc), stream_);
}

}  // namespace foretoken::cuda
