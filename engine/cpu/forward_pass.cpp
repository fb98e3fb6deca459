#include "engine/cpu/forward_pass.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"

namespace foretoken {

namespace {

// Weight bytes of one work item of a projection; see expert_pass.cpp for the reasoning.
constexpr int64_t kItemBytes = 128 << 10;
constexpr int kItemsPerThread = 4;

MoeShape moe_shape(const ModelConfig& c) {
  return {c.hidden_dim, c.num_experts, c.experts_per_token, c.expert_dim, c.shared_expert_dim};
}

}  // namespace

PassBuffers::PassBuffers(const ModelConfig& c, int max_rows, int max_window, int64_t ctx_size, int num_threads)
    : residual(max_rows, c.hidden_dim),
      normed(max_rows, c.hidden_dim),
      mixed(max_rows, c.hidden_dim),
      q(max_rows, int64_t{c.num_heads} * c.head_dim * (c.gated_attention ? 2 : 1)),
      k(max_rows, int64_t{c.num_kv_heads} * c.head_dim),
      v(max_rows, int64_t{c.num_kv_heads} * c.head_dim),
      attended(max_rows, int64_t{c.num_heads} * c.head_dim),
      queries(max_rows, int64_t{c.num_heads} * c.head_dim),
      partials(max_window * c.num_heads * pages_of(ctx_size), c.head_dim),
      partial_queries(static_cast<size_t>(max_window * c.num_heads * pages_of(ctx_size))),
      moe(moe_shape(c), max_rows, num_threads) {
  if (c.state_size == 0) return;
  chunk.raw = FloatRows(max_rows, c.conv_channels());
  chunk.mixed = FloatRows(max_rows, c.conv_channels());
  chunk.beta = FloatRows(max_rows, c.num_value_heads);
  chunk.decay = FloatRows(max_rows, c.num_value_heads);
  z = FloatRows(max_rows, c.value_dim());
  b = FloatRows(max_rows, c.num_value_heads);
  alpha = FloatRows(max_rows, c.num_value_heads);
  delta_out = RowBuffer(max_rows, c.value_dim());
  delta_scratch = FloatRows(num_threads, int64_t{c.state_size} * c.state_size);
}

size_t PassBuffers::size_bytes() const {
  size_t bytes = residual.size_bytes() + normed.size_bytes() + attended.size_bytes() + delta_out.size_bytes() +
                 moe.size_bytes() + partial_queries.size() * sizeof(AttentionQuery);
  for (const FloatRows* rows : {&mixed, &q, &k, &v, &queries, &partials, &chunk.raw, &chunk.mixed, &chunk.beta,
                                &chunk.decay, &z, &b, &alpha, &delta_scratch}) {
    bytes += rows->size_bytes();
  }
  return bytes;
}

unsigned block_bits(std::initializer_list<const MatrixView*> matrices) {
  unsigned bits = 0;
  for (const MatrixView* m : matrices) {
    const int block = weight_type_info(m->type).activation_block;
    bits |= block == 0 ? 0u : block == 32 ? 1u : 2u;
  }
  return bits;
}

void quantise_forms(Isa isa, RowBuffer& rows, int64_t r, unsigned blocks) {
  if (blocks & 1u) rows.quantise(isa, r, 32);
  if (blocks & 2u) rows.quantise(isa, r, 256);
}

ForwardPass::ForwardPass(const ModelConfig& config, const SessionOptions& options, ThreadTeam& team,
                         const RopeTable& rope, KvPages& kv, RecurrentState& recurrent, PassBuffers& buffers,
                         WorkProfile* profile)
    : config_(config),
      isa_(options.isa),
      verify_(options.moe_verify),
      kv_type_(options.kv_type),
      team_(team),
      rope_(rope),
      kv_(kv),
      recurrent_(recurrent),
      buffers_(buffers),
      profile_(profile),
      stop_(options.stop),
      max_window_(options.max_window),
      attention_scratch_(static_cast<size_t>(team.num_threads()),
                         std::vector<float>(static_cast<size_t>(kAttentionSplit + config.head_dim))) {}

void ForwardPass::begin(std::span<const Span> spans, RowFaults& faults, std::span<const int> fault_rows, bool is_mtp) {
  is_mtp_ = is_mtp;
  faults_ = &faults;
  fault_rows_ = fault_rows;
  layer_ = is_mtp ? config_.num_layers : 0;
  spans_.assign(spans.begin(), spans.end());
  row_spans_.clear();
  for (size_t s = 0; s < spans_.size(); ++s) {
    FT_CHECK_EQ(spans_[s].first_row, static_cast<int>(row_spans_.size()));
    row_spans_.insert(row_spans_.end(), static_cast<size_t>(spans_[s].num_rows), static_cast<int>(s));
  }
  num_rows_ = static_cast<int>(row_spans_.size());
  FT_CHECK(num_rows_ > 0 && num_rows_ <= buffers_.residual.max_rows());
  plan_attention();
}

void ForwardPass::embed(const MatrixView& embed, std::span<const TokenId> ids) {
  FT_CHECK(embed.layout == Layout::kRows);
  for_rows([&](int64_t r, int) {
    decode_row(embed.type, embed.data + static_cast<size_t>(ids[static_cast<size_t>(r)]) * embed.row_bytes(),
               embed.num_cols, buffers_.residual.row(r));
  });
  added(FaultKind::kEmbedding);
}

void ForwardPass::check_stop() const {
  if (stop_ != nullptr && stop_->load(std::memory_order_relaxed)) throw Interrupted();
}

void ForwardPass::norm_row(int64_t r, const float* weight, unsigned blocks, RowBuffer& to) {
  const float squares =
      rms_norm(isa_, buffers_.residual.row(r), weight, config_.hidden_dim, config_.norm_eps, to.row(r));
  if (!std::isfinite(squares)) note(r, added_);
  quantise_forms(isa_, to, r, blocks);
}

void ForwardPass::norm_to(const float* weight, unsigned blocks, RowBuffer& to) {
  check_stop();
  for_rows([&](int64_t r, int) { norm_row(r, weight, blocks, to); });
}

void ForwardPass::norm(const float* weight, unsigned blocks) {
  norm_to(weight, blocks, buffers_.normed);
}

void ForwardPass::add_and_norm(const float* weight, unsigned blocks) {
  check_stop();
  for_rows([&](int64_t r, int) {
    add(isa_, buffers_.mixed.row(r), config_.hidden_dim, buffers_.residual.row(r));
    norm_row(r, weight, blocks, buffers_.normed);
  });
}

void ForwardPass::project(Work work, const RowBuffer& input, std::initializer_list<Projection> projections) {
  inputs_.resize(static_cast<size_t>(num_rows_));
  for (int r = 0; r < num_rows_; ++r) inputs_[static_cast<size_t>(r)] = input.view(r);
  int64_t all_bytes = 0;
  for (const Projection& p : projections) all_bytes += static_cast<int64_t>(p.matrix.size_bytes());
  const int64_t item_bytes = std::min(kItemBytes, all_bytes / (kItemsPerThread * team_.num_threads()));
  projected_.clear();
  for (const Projection& p : projections) {
    const int64_t groups = item_bytes / static_cast<int64_t>(p.matrix.row_bytes()) / kInterleave;
    projected_.push_back({p.matrix.num_rows, std::max<int64_t>(1, groups) * kInterleave});
  }
  items_.plan(team_.nodes(), projected_);
  for_items(items_.node_ends(), [&](int64_t item, int) {
    const auto [matrix, begin, end] = items_.find(item);
    const Projection* p = projections.begin() + matrix;
    thread_local std::vector<float*> outputs;
    outputs.resize(static_cast<size_t>(num_rows_));
    for (int r = 0; r < num_rows_; ++r) outputs[static_cast<size_t>(r)] = p->output(r) + begin;
    matmul_rows(isa_, p->matrix, begin, end, inputs_.data(), num_rows_, outputs.data());
    return WorkDone{work, (end - begin) * static_cast<int64_t>(p->matrix.row_bytes())};
  });
}

unsigned ForwardPass::inputs_of(const AttentionWeights& weights) {
  return block_bits({&weights.q, &weights.k, &weights.v});
}

unsigned ForwardPass::inputs_of(const DeltaNetWeights& weights) {
  return block_bits({&weights.qkv, &weights.gate, &weights.beta, &weights.alpha});
}

unsigned ForwardPass::inputs_of(const MoeWeights& weights) {
  return input_blocks(weights);
}

void ForwardPass::feed_forward(const MoeWeights& weights, int /*layer_idx*/) {
  buffers_.moe.profile = profile_;
  buffers_.moe.is_mtp = is_mtp_;
  moe_forward(isa_, team_, verify_, weights, buffers_.normed, num_rows_, buffers_.moe, buffers_.residual);
  added(FaultKind::kFeedForward);
  for (int r = 0; weights.num_experts > 0 && r < num_rows_; ++r) {
    if (buffers_.moe.routing.finite[static_cast<size_t>(r)] == 0) note(r, FaultKind::kRouter);
  }
  ++layer_;
  if (weights.num_experts == 0) return;
  distinct_experts_ += buffers_.moe.distinct_experts;
  ++expert_layers_;
}

double ForwardPass::take_distinct_experts() {
  const double mean = expert_layers_ == 0 ? 0.0
                                          : static_cast<double>(distinct_experts_) /
                                                static_cast<double>(expert_layers_) / config_.experts_per_token;
  distinct_experts_ = expert_layers_ = 0;
  return mean;
}

}  // namespace foretoken
