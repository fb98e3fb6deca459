#include "engine/cuda/cuda_forward_pass.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/backend.h"
#include "kernels/base/error.h"
#include "kernels/rows/embed_cuda.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "kernels/rows/rows_cuda.h"
#include "kernels/select/router_cuda.h"

namespace foretoken::cuda {

namespace {

// Forms that the inputs of all these matrices need together.
unsigned forms_of(std::initializer_list<const DeviceMatrix*> matrices) {
  unsigned forms = 0;
  for (const DeviceMatrix* matrix : matrices) forms |= input_forms(*matrix);
  return forms;
}

/// What the layers' buffers must serve.
struct Needs {
  unsigned normed = 0, attended = 0, delta_out = 0, inner = 0, shared_inner = 0;
  bool two_types = false;                   // gate and up of some expert differ
  int64_t blas_cols = 0, blas_outputs = 0;  // of the matrices that cuBLAS can take; 0: there are none

  void add_blas(std::initializer_list<const DeviceMatrix*> matrices) {
    for (const DeviceMatrix* matrix : matrices) {
      if (!blas_takes(*matrix)) continue;
      blas_cols = std::max(blas_cols, matrix->row_bytes / static_cast<int64_t>(sizeof(uint16_t)));
      blas_outputs = std::max(blas_outputs, matrix->num_rows);
    }
  }
  void add(const CudaMoe& moe) {
    add_blas({&moe.router, &moe.shared_gate, &moe.shared_up, &moe.shared_down});
    normed |= input_forms(moe);
    inner |= input_forms(moe.down.all);
    shared_inner |= input_forms(moe.shared_down);
    two_types = two_types || moe.gate.all.type != moe.up.all.type || moe.shared_gate.type != moe.shared_up.type;
  }
  void add(const CudaLayer& layer) {
    if (layer.is_recurrent()) {
      const CudaDeltaNet& d = layer.delta_net();
      normed |= forms_of({&d.qkv, &d.gate, &d.beta, &d.alpha});
      delta_out |= input_forms(d.out);
      add_blas({&d.qkv, &d.gate, &d.beta, &d.alpha, &d.out});
    } else {
      const CudaAttention& a = layer.attention();
      normed |= forms_of({&a.q, &a.k, &a.v});
      attended |= input_forms(a.output);
      add_blas({&a.q, &a.k, &a.v, &a.output});
    }
    add(layer.moe);
  }
};

}  // namespace

unsigned input_forms(const DeviceMatrix& matrix) {
  if (matrix.num_rows == 0) return 0;
  const int block = weight_type_info(matrix.type).activation_block;
  return block == 0 ? 0u : block == 32 ? RowMemory::kBy32 : RowMemory::kBy256;
}

unsigned input_forms(const CudaMoe& weights) {
  return forms_of({&weights.router, &weights.gate.all, &weights.up.all, &weights.shared_gate, &weights.shared_up});
}

void check_shapes(const Model& model) {
  const ModelConfig& c = model.config();
  const auto check = [&](bool fits, std::string_view what, int64_t value, std::string_view limit) {
    if (fits) return;
    throw InputError(fmt::format("{}: --device cuda: {} is {}; the CUDA kernels take {}; run with --device cpu",
                                 model.path(), what, value, limit));
  };
  check(c.head_dim <= 256, "the length of an attention head", c.head_dim, "at most 256");
  check(c.num_experts <= 1024, "the number of experts", c.num_experts, "at most 1024");
  check(c.state_size == 0 || delta_net_supports(c.state_size), "the delta net's state size", c.state_size,
        "16, 32, 64 or 128");
  check(c.conv_taps <= 8, "the length of the delta net's convolution", c.conv_taps, "at most 8");
}

CudaBuffers::CudaBuffers(const ModelConfig& c, const CudaWeights& w, const SessionOptions& o) {
  const int64_t n = pass_rows(o), dim = c.hidden_dim;
  Needs needs;
  for (const CudaLayer& layer : w.layers) needs.add(layer);
  needs.add(w.mtp.layer);
  needs.add_blas({&w.head, &w.mtp.join});

  memory.take(n * dim, residual);
  memory.take_rows(n, dim, needs.normed, normed);
  memory.take(n * dim, mixed);
  memory.take(o.ctx_size * c.rope_dim, rope);

  const int64_t q_dim = int64_t{c.num_heads} * c.head_dim, kv_dim = int64_t{c.num_kv_heads} * c.head_dim;
  memory.take(n * q_dim * (c.gated_attention ? 2 : 1), q);
  memory.take(n * kv_dim, k);
  memory.take(n * kv_dim, v);
  memory.take(n * q_dim, queries);
  memory.take_rows(n, q_dim, needs.attended, attended);
  AttentionDesc window;
  window.kv.pages_per_sequence = pages_of(o.ctx_size);
  window.num_heads = c.num_heads;
  window.head_dim = c.head_dim;
  window.max_window_rows = o.parallel * o.max_window;
  memory.take(window.part_floats(), parts);

  if (c.state_size > 0) {
    memory.take(n * c.conv_channels(), raw);
    memory.take(n * c.value_dim(), z);
    memory.take(n * c.num_value_heads, b);
    memory.take(n * c.num_value_heads, alpha);
    memory.take(n * c.conv_channels(), chunk.mixed);
    memory.take(n * c.num_value_heads, chunk.beta);
    memory.take(n * c.num_value_heads, chunk.decay);
    memory.take_rows(n, c.value_dim(), needs.delta_out, delta_out);
  }

  memory.take(static_cast<int64_t>(w.layers.size()) + 1, num_buckets);
  if (c.num_experts > 0) {
    const int64_t num_slots = n * c.experts_per_token;
    memory.take(n * c.num_experts, router_logits);
    memory.take(num_slots, weights);
    memory.take(num_slots, experts);
    memory.take(n, shared_weight);
    memory.take(c.num_experts, bucket_experts);
    memory.take(c.num_experts + 1, bucket_begins);
    memory.take(num_slots, bucket_slots);
    memory.take_rows(num_slots, c.expert_dim, needs.inner, inner);
    memory.take(num_slots * dim, slots);
  }
  if (c.shared_expert_dim > 0) {
    memory.take_rows(n, c.shared_expert_dim, needs.shared_inner, shared_inner);
    memory.take(n * dim, shared);
  }
  if (needs.two_types) {
    memory.take(n * std::max(c.experts_per_token * c.expert_dim, c.shared_expert_dim), up);
  }
  if (o.with_mtp) {
    memory.take_rows(n, 2 * dim, input_forms(w.mtp.join), join);
    memory.take(n * dim, mtp_residual);
  }
  if (o.cublas && needs.blas_cols > 0) {
    blas.max_cols = needs.blas_cols;
    // Gate and up of one product stand side by side.
    blas.max_outputs = std::min(kMaxBlasOutputs, 2 * round_up(needs.blas_outputs, 8));
    memory.take_bytes(kBlasWorkspaceBytes, blas.workspace);
    memory.take(2 * kBlasRows * blas.max_cols, blas.columns);
    memory.take(kBlasRows, blas.inverse_scales);
    memory.take(2 * kBlasRows * blas.max_outputs, blas.products);
  }
}

void CudaForwardPass::begin(const CudaRows& rows, float* residual) {
  rows_ = rows;
  residual_ = residual;
  pending_ = Pending::kNothing;
}

void CudaForwardPass::embed(const DeviceMatrix& matrix, const int32_t* ids) {
  launch(EmbedDesc{matrix, ids, residual_, rows_.max_rows, device_num_rows()}, stream_);
}

void CudaForwardPass::norm(const float* weight, const DeviceRows& to) {
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

void CudaForwardPass::project(const DeviceMatrix& matrix, const DeviceRows& x, float* y, const DeviceMatrix& up) {
  MatmulDesc desc;
  desc.w = matrix;
  desc.up = up;
  desc.num_outputs = matrix.num_rows;
  desc.x = x;
  desc.max_rows = rows_.max_rows;
  desc.device_num_rows = device_num_rows();
  desc.y = y;
  desc.y_stride = matrix.num_rows;
  desc.blas = &buffers_.blas;
  launch(desc, choose_config(desc), stream_);
}

PrepareAttentionDesc CudaForwardPass::preparation(const DeviceKv& kv) const {
  PrepareAttentionDesc desc;
  desc.eps = config_.norm_eps;
  desc.rope = buffers_.rope;
  desc.rope_dim = config_.rope_dim;
  desc.num_heads = config_.num_heads;
  desc.num_kv_heads = config_.num_kv_heads;
  desc.head_dim = config_.head_dim;
  desc.kv = kv;
  desc.max_rows = rows_.max_rows;
  desc.pass = rows_.pass;
  return desc;
}

void CudaForwardPass::store_keys_and_values(const CudaAttention& weights, const DeviceKv& kv) {
  project(weights.k, buffers_.normed, buffers_.k);
  project(weights.v, buffers_.normed, buffers_.v);
  PrepareAttentionDesc desc = preparation(kv);
  desc.k = buffers_.k;
  desc.v = buffers_.v;
  desc.k_norm = weights.k_norm;
  launch(desc, stream_);
}

void CudaForwardPass::attend_stored(const CudaAttention& weights, const DeviceKv& kv) {
  const int64_t dim = config_.head_dim, gates = config_.gated_attention ? 2 : 1;
  project(weights.q, buffers_.normed, buffers_.q);
  PrepareAttentionDesc prepare = preparation(kv);
  prepare.q = buffers_.q;
  prepare.q_stride = config_.num_heads * dim * gates;
  prepare.q_head_stride = dim * gates;
  prepare.q_norm = weights.q_norm;
  prepare.queries = buffers_.queries;
  launch(prepare, stream_);
  attend(weights, kv);
}

void CudaForwardPass::attend(const CudaAttention& weights, const DeviceKv& kv) {
  const int64_t dim = config_.head_dim;
  AttentionDesc desc;
  desc.queries = buffers_.queries;
  desc.kv = kv;
  desc.num_heads = config_.num_heads;
  desc.num_kv_heads = config_.num_kv_heads;
  desc.head_dim = config_.head_dim;
  desc.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  if (config_.gated_attention) {
    desc.gate = buffers_.q + dim;
    desc.gate_stride = 2 * config_.num_heads * dim;
    desc.gate_head_stride = 2 * dim;
  }
  desc.out = buffers_.attended.values;
  desc.max_rows = rows_.max_rows;
  desc.pass = rows_.pass;
  desc.max_window_rows = options_.parallel * options_.max_window;
  desc.parts = rows_.has_windows ? buffers_.parts : nullptr;
  launch(desc, choose_config(desc), stream_);
  const DeviceRows attended = with_forms(buffers_.attended, input_forms(weights.output));
  quantise(attended, rows_.max_rows);
  project(weights.output, attended, buffers_.mixed);
  pending_ = Pending::kMixed;
}

void CudaForwardPass::delta_net(const CudaDeltaNet& weights, const CudaState::Recurrent& state) {
  project(weights.qkv, buffers_.normed, buffers_.raw);
  project(weights.gate, buffers_.normed, buffers_.z);
  project(weights.beta, buffers_.normed, buffers_.b);
  project(weights.alpha, buffers_.normed, buffers_.alpha);
  advance(weights, state);

  const DeviceRows out = with_forms(buffers_.delta_out, input_forms(weights.out));
  GatedNormRowsDesc norm;
  norm.x = out.values;
  norm.z = buffers_.z;
  norm.weight = weights.norm;
  norm.eps = config_.norm_eps;
  norm.num_heads = config_.num_value_heads;
  norm.head_dim = config_.state_size;
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
  DeltaSlots slots = state.slots;
  if (rows_.has_chunks) slots.chunk = buffers_.chunk;
  ConvolveDesc convolve;
  convolve.slots = slots;
  convolve.raw = buffers_.raw;
  convolve.weight = weights.conv;
  convolve.taps = config_.conv_taps;
  convolve.history = state.history;
  convolve.state_size = config_.state_size;
  convolve.num_key_heads = config_.num_key_heads;
  convolve.num_value_heads = config_.num_value_heads;
  convolve.eps = config_.norm_eps;
  convolve.b = buffers_.b;
  convolve.alpha = buffers_.alpha;
  convolve.a = weights.a;
  convolve.dt = weights.dt;
  convolve.pass = rows_.pass;
  launch(convolve, stream_);

  DeltaNetDesc net;
  net.slots = slots;
  net.state = state.state;
  net.state_size = config_.state_size;
  net.num_key_heads = config_.num_key_heads;
  net.num_value_heads = config_.num_value_heads;
  net.out = buffers_.delta_out.values;
  net.pass = rows_.pass;
  launch(net, stream_);
}

void CudaForwardPass::route(const CudaMoe& weights) {
  project(weights.router, buffers_.normed, buffers_.router_logits);
  RouteDesc desc;
  desc.logits = buffers_.router_logits;
  desc.num_experts = weights.num_experts;
  desc.top_k = weights.top_k;
  desc.experts = buffers_.experts;
  desc.weights = buffers_.weights;
  desc.shared_router = weights.shared_router;
  desc.x = buffers_.normed.values;
  desc.num_cols = config_.hidden_dim;
  desc.shared_weight = buffers_.shared_weight;
  desc.max_rows = rows_.max_rows;
  desc.device_num_rows = device_num_rows();
  launch(desc, stream_);
}

// The slots of rows [first_row, + num_rows) by expert. Slots count from first_row's.
GroupDesc CudaForwardPass::group_by_expert(const CudaMoe& weights, int first_row, int num_rows, int32_t* num_buckets) {
  GroupDesc group;
  group.experts = buffers_.experts + int64_t{first_row} * weights.top_k;
  group.num_experts = weights.num_experts;
  group.top_k = weights.top_k;
  group.places = weights.places;
  group.num_buckets = num_buckets;
  group.bucket_experts = buffers_.bucket_experts;
  group.begins = buffers_.bucket_begins;
  group.slots = buffers_.bucket_slots;
  group.max_rows = num_rows;
  launch(group, stream_);
  return group;
}

// Buckets through gate, up and down.
void CudaForwardPass::run_buckets(const CudaMoe& weights, const GroupDesc& group, int first_row) {
  const int num_rows = group.max_rows, num_slots = num_rows * weights.top_k;
  const int64_t first_slot = int64_t{first_row} * weights.top_k;
  const DeviceRows inner = rows_from(with_forms(buffers_.inner, input_forms(weights.down.all)), first_slot);
  MatmulDesc gate;
  gate.w = weights.gate.from_first();
  gate.num_outputs = weights.gate.num_rows;
  gate.x = rows_from(buffers_.normed, first_row);
  gate.max_rows = num_rows;
  gate.y = inner.values;
  gate.y_stride = weights.gate.num_rows;
  gate.buckets = group.buckets();
  gate.max_buckets = group.max_buckets();
  gate.expert_stride = weights.gate.stride_rows;
  gate.slots_per_input = weights.top_k;
  if (weights.gate.all.type == weights.up.all.type) {
    gate.up = weights.up.from_first();
    launch(gate, choose_config(gate), stream_);
  } else {
    launch(gate, choose_config(gate), stream_);
    MatmulDesc up = gate;
    up.w = weights.up.from_first();
    up.expert_stride = weights.up.stride_rows;
    up.y = buffers_.up;
    launch(up, choose_config(up), stream_);
    launch(SiluMulDesc{inner.values, buffers_.up, num_slots * weights.gate.num_rows}, stream_);
  }
  quantise(inner, num_slots);

  MatmulDesc down;
  down.w = weights.down.from_first();
  down.num_outputs = weights.down.num_rows;
  down.x = inner;
  down.max_rows = num_rows;
  down.y = buffers_.slots + first_slot * config_.hidden_dim;
  down.y_stride = config_.hidden_dim;
  down.buckets = group.buckets();
  down.max_buckets = group.max_buckets();
  down.expert_stride = weights.down.stride_rows;
  launch(down, choose_config(down), stream_);
}

void CudaForwardPass::routed_experts(const CudaMoe& weights, int layer_idx) {
  int32_t* num_buckets = buffers_.num_buckets + layer_idx;
  sums_.slots = buffers_.slots;
  sums_.weights = buffers_.weights;
  sums_.top_k = weights.top_k;
  sums_.shared = weights.has_shared() ? buffers_.shared : nullptr;
  sums_.shared_weight = weights.shared_router == nullptr ? nullptr : buffers_.shared_weight;
  if (weights.capacity == 0) return;
  if (options_.moe_verify == MoeVerify::kGrouped) {
    run_buckets(weights, group_by_expert(weights, 0, rows_.max_rows, num_buckets), 0);
  } else {
    // Each row's experts are read for it alone: what grouping is measured against.
    for (int r = 0; r < rows_.max_rows; ++r) run_buckets(weights, group_by_expert(weights, r, 1, num_buckets), r);
    static_cast<void>(group_by_expert(weights, 0, rows_.max_rows, num_buckets));  // counts the distinct ones
  }
}

void CudaForwardPass::shared_expert(const CudaMoe& weights) {
  const DeviceRows inner = with_forms(buffers_.shared_inner, input_forms(weights.shared_down));
  if (weights.shared_gate.type == weights.shared_up.type) {
    project(weights.shared_gate, buffers_.normed, inner.values, weights.shared_up);
  } else {
    project(weights.shared_gate, buffers_.normed, inner.values);
    project(weights.shared_up, buffers_.normed, buffers_.up);
    launch(SiluMulDesc{inner.values, buffers_.up, rows_.max_rows * weights.shared_gate.num_rows}, stream_);
  }
  quantise(inner, rows_.max_rows);
  project(weights.shared_down, inner, buffers_.shared);
}

void CudaForwardPass::feed_forward(const CudaMoe& weights, int layer_idx) {
  FT_CHECK(rows_.exact);
  if (weights.has_shared()) shared_expert(weights);
  pending_ = Pending::kDense;
  if (weights.num_experts == 0) return;
  route(weights);
  routed_experts(weights, layer_idx);
  pending_ = Pending::kExperts;
}

void CudaForwardPass::begin_trunk(const CudaWeights& weights, const CudaRows& rows, const int32_t* ids) {
  begin(rows, buffers_.residual);
  embed(weights.embed, ids);
}

// The layer text of engine/model/families: what the families have differs by what a layer holds.
void CudaForwardPass::mix(const CudaWeights& weights, int layer_idx) {
  const auto at = weights.layers.begin() + layer_idx;
  const auto recurrent_idx = static_cast<size_t>(
      std::count_if(weights.layers.begin(), at, [](const CudaLayer& layer) { return layer.is_recurrent(); }));
  const size_t attention_idx = static_cast<size_t>(layer_idx) - recurrent_idx;
  if (at->is_recurrent()) {
    const CudaDeltaNet& w = at->delta_net();
    norm(at->mix_norm, with_forms(buffers_.normed, forms_of({&w.qkv, &w.gate, &w.beta, &w.alpha})));
    delta_net(w, state_.recurrent[recurrent_idx]);
  } else {
    const CudaAttention& w = at->attention();
    const DeviceKv& kv = state_.kv[attention_idx];
    norm(at->mix_norm, with_forms(buffers_.normed, forms_of({&w.q, &w.k, &w.v})));
    store_keys_and_values(w, kv);
    attend_stored(w, kv);
  }
  norm(at->ffn_norm, with_forms(buffers_.normed, input_forms(at->moe)));
}

void CudaForwardPass::layers(const CudaWeights& weights, int begin, int end) {
  for (int i = begin; i < end; ++i) {
    mix(weights, i);
    feed_forward(weights.layers[static_cast<size_t>(i)].moe, i);
  }
}

void CudaForwardPass::layer_to_router(const CudaWeights& weights, int layer_idx) {
  FT_CHECK(rows_.exact);
  mix(weights, layer_idx);
  route(weights.layers[static_cast<size_t>(layer_idx)].moe);
}

void CudaForwardPass::device_experts(const CudaWeights& weights, int layer_idx) {
  const CudaMoe& moe = weights.layers[static_cast<size_t>(layer_idx)].moe;
  routed_experts(moe, layer_idx);
  if (moe.has_shared()) shared_expert(moe);
  pending_ = Pending::kExperts;
}

void CudaForwardPass::end_trunk(const CudaWeights& weights, const DeviceRows& hidden) {
  norm(weights.output_norm, hidden);
}

void CudaForwardPass::trunk(const CudaWeights& weights, const CudaRows& rows, const int32_t* ids,
                            const DeviceRows& hidden) {
  begin_trunk(weights, rows, ids);
  layers(weights, 0, static_cast<int>(weights.layers.size()));
  end_trunk(weights, hidden);
}

void CudaForwardPass::mtp_take_in(const CudaMtp& weights, const CudaRows& rows, const int32_t* ids,
                                  const float* hidden) {
  const CudaAttention& mix = weights.layer.attention();
  const int64_t dim = config_.hidden_dim;
  const unsigned mix_forms = forms_of({&mix.q, &mix.k, &mix.v});
  const DeviceRows normed = with_forms(buffers_.normed, mix_forms);

  // u = join . [rms_norm(embedding, embed_norm); rms_norm(hidden, hidden_norm)]; keys and values of all rows.
  begin(rows, buffers_.residual);
  embed(weights.embed, ids);
  NormRowsDesc half;
  half.residual = buffers_.residual;
  half.num_cols = dim;
  half.weight = weights.embed_norm;
  half.eps = config_.norm_eps;
  half.out = buffers_.join.values;
  half.out_stride = 2 * dim;
  half.max_rows = rows.max_rows;
  half.device_num_rows = device_num_rows();
  launch(half, choose_config(half), stream_);
  half.residual = const_cast<float*>(hidden);  // nothing is added to it
  half.weight = weights.hidden_norm;
  half.out = buffers_.join.values + dim;
  launch(half, choose_config(half), stream_);
  if (input_forms(weights.join) != 0) {
    const QuantiseDesc desc{buffers_.join, rows.max_rows, device_num_rows()};
    launch(desc, choose_config(desc), stream_);
  }
  fill_zero(stream_, buffers_.residual, static_cast<size_t>(rows.max_rows * dim) * sizeof(float));
  project(weights.join, buffers_.join, buffers_.mixed);
  pending_ = Pending::kMixed;
  norm(weights.layer.mix_norm, normed);
  store_keys_and_values(mix, state_.kv.back());
}

// The rows whose output is wanted go on alone, moved to the front.
void CudaForwardPass::mtp_outputs(const CudaMtp& weights, const CudaRows& outputs, const int32_t* from_rows,
                                  const DeviceRows& to) {
  const CudaAttention& mix = weights.layer.attention();
  if (from_rows == nullptr) {
    begin(outputs, buffers_.residual);
  } else {
    launch(GatherRowsDesc{buffers_.residual, from_rows, buffers_.mtp_residual, config_.hidden_dim, outputs.max_rows},
           stream_);
    begin(outputs, buffers_.mtp_residual);
    norm(weights.layer.mix_norm, with_forms(buffers_.normed, forms_of({&mix.q, &mix.k, &mix.v})));
  }
  attend_stored(mix, state_.kv.back());
  norm(weights.layer.ffn_norm, with_forms(buffers_.normed, input_forms(weights.layer.moe)));
  feed_forward(weights.layer.moe, config_.num_layers);
  norm(weights.head_norm, to);
}

void CudaForwardPass::settle(const CudaWeights& weights, const DevicePass& spans) {
  begin({0, spans, /*has_windows=*/false, /*has_chunks=*/true, /*exact=*/true}, nullptr);
  size_t recurrent_idx = 0;
  for (const CudaLayer& layer : weights.layers) {
    if (layer.is_recurrent()) advance(layer.delta_net(), state_.recurrent[recurrent_idx++]);
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
  desc.num_outputs = groups.capacity;
  desc.x = x;
  desc.max_rows = num_rows;
  desc.y = logits;
  desc.y_stride = groups.capacity;
  desc.groups = groups.groups;
  desc.device_num_groups = groups.count;
  launch(desc, choose_config(desc), stream_);
}

}  // namespace foretoken::cuda
