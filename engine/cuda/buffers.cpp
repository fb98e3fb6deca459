#include "engine/cuda/cuda_buffers.h"

#include <algorithm>
#include <initializer_list>

#include "engine/backend.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/base/error.h"

namespace foretoken::cuda {

namespace {

/// What the layers' buffers must serve.
struct Needs {
  unsigned normed = 0, attended = 0, delta_out = 0, inner = 0, shared_inner = 0;
  bool two_types = false;                   // gate and up of some expert or dense part differ
  int64_t blas_cols = 0, blas_outputs = 0;  // of the matrices that cuBLAS can take; 0: there are none

  void add_blas(std::initializer_list<const MatrixView*> matrices) {
    for (const MatrixView* matrix : matrices) {
      if (!blas_takes(matrix->type, matrix->num_rows)) continue;
      // As the device holds a row: whole 16 bytes.
      blas_cols = std::max(blas_cols, round_up(matrix->num_cols, 8));
      blas_outputs = std::max(blas_outputs, matrix->num_rows);
    }
  }
  void add(const AttentionWeights& a) {
    normed |= input_forms(a);
    attended |= input_forms(a.output);
    add_blas({&a.q, &a.k, &a.v, &a.output});
  }
  void add(const DeltaNetWeights& d) {
    normed |= input_forms(d);
    delta_out |= input_forms(d.out);
    add_blas({&d.qkv, &d.gate, &d.beta, &d.alpha, &d.out});
  }
  void add(const DenseWeights& dense) {
    normed |= input_forms(dense);
    shared_inner |= input_forms(dense.down);
    two_types = two_types || dense.gate.type != dense.up.type;
    add_blas({&dense.gate, &dense.up, &dense.down});
  }
  void add(const MoeWeights& moe) {
    normed |= input_forms(moe);
    inner |= input_forms(moe.down.all);
    two_types = two_types || moe.gate.all.type != moe.up.all.type;
    add_blas({&moe.router});
    add(moe.shared);
  }
  void add(const LayerWeights& layer) {
    const auto add_part = [this](const auto& part) { add(part); };
    std::visit(add_part, layer.mixer);
    std::visit(add_part, layer.feed_forward);
  }
};

// Columns of a buffer for rows of up to `most_cols`: narrower rows, of another layer, may have these forms.
int64_t cols_for(int64_t most_cols, unsigned forms) {
  return round_up(most_cols, forms & RowMemory::kBy256 ? 256 : forms & RowMemory::kBy32 ? 32 : 1);
}

}  // namespace

CudaBuffers::CudaBuffers(const ModelShapes& s, const BasicModelWeights<MatrixView>& w, const SessionOptions& o)
    : ropes(s.ropes), rope_data(ropes.size()) {
  const int64_t n = pass_rows(o), dim = s.hidden_dim;
  Needs needs;
  for (const LayerWeights& layer : w.layers) needs.add(layer);
  if (o.with_mtp) needs.add(w.mtp.layer);
  needs.add_blas({&w.head});
  if (o.with_mtp) needs.add_blas({&w.mtp.join});

  memory.take(n * dim, residual);
  memory.take_rows(n, dim, needs.normed, normed);
  memory.take(n * dim, mixed);
  for (size_t i = 0; i < ropes.size(); ++i) memory.take(o.ctx_size * ropes[i].dim, rope_data[i]);

  memory.take(n * s.q_rows, q);
  memory.take(n * s.kv_dim, k);
  memory.take(n * s.kv_dim, v);
  memory.take(n * s.query_dim, queries);
  memory.take_rows(n, cols_for(s.query_dim, needs.attended), needs.attended, attended);
  AttentionDesc window;
  window.kv.pages_per_sequence = pages_of(o.ctx_size);
  window.num_heads = s.num_heads;
  window.head_dim = s.head_dim;
  window.max_window_rows = o.parallel * o.max_window;
  memory.take(window.part_floats(), parts);

  if (!s.delta_nets.empty()) {
    memory.take(n * s.conv_channels, raw);
    memory.take(n * s.value_dim, z);
    memory.take(n * s.num_value_heads, b);
    memory.take(n * s.num_value_heads, alpha);
    memory.take(n * s.conv_channels, chunk.mixed);
    memory.take(n * s.num_value_heads, chunk.beta);
    memory.take(n * s.num_value_heads, chunk.decay);
    memory.take_rows(n, cols_for(s.value_dim, needs.delta_out), needs.delta_out, delta_out);
  }

  const MoeShape& moe = s.moe;
  memory.take(static_cast<int64_t>(w.layers.size()) + 1, num_buckets);
  if (moe.num_experts > 0) {
    const int64_t num_slots = n * moe.top_k;
    memory.take(n * moe.num_experts, router_logits);
    memory.take(num_slots, weights);
    memory.take(num_slots, experts);
    memory.take(n, shared_weight);
    memory.take(moe.num_experts, bucket_experts);
    memory.take(moe.num_experts + 1, bucket_begins);
    memory.take(num_slots, bucket_slots);
    memory.take(kTileSizes, num_tiles);
    for (int i = 0; i < kTileSizes; ++i) {
      memory.take(max_bucket_tiles(num_slots, std::min(num_slots, int64_t{moe.num_experts}), tile_rows(i)),
                  bucket_tiles[i]);
    }
    const int64_t all_rows = num_slots + (moe.shared_dim > 0 ? n : 0);
    memory.take_rows(all_rows, cols_for(moe.expert_dim, needs.inner), needs.inner, inner);
    memory.take(all_rows * dim, slots);
  }
  if (moe.shared_dim > 0) {
    memory.take_rows(n, cols_for(moe.shared_dim, needs.shared_inner), needs.shared_inner, shared_inner);
    memory.take(n * dim, shared);
  }
  if (needs.two_types) memory.take(n * std::max(moe.top_k * moe.expert_dim, moe.shared_dim), up);
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

const float* CudaBuffers::rope(const RopeShape& shape) const {
  const auto found = std::find(ropes.begin(), ropes.end(), shape);
  FT_CHECK(found != ropes.end());
  return rope_data[found - ropes.begin()];
}

}  // namespace foretoken::cuda
