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
// Matrices of one project().
constexpr size_t kMostProjections = 4;

}  // namespace

PassBuffers::PassBuffers(const ModelShapes& s, int max_rows, int max_window, int64_t ctx_size, int num_threads)
    : residual(max_rows, s.hidden_dim),
      normed(max_rows, s.hidden_dim),
      mixed(max_rows, s.hidden_dim),
      num_heads(s.num_heads),
      q(max_rows, s.q_rows),
      k(max_rows, s.kv_dim),
      v(max_rows, s.kv_dim),
      attended(max_rows, s.attended_dim),
      queries(max_rows, s.query_dim),
      partials(max_window * s.num_heads * pages_of(ctx_size), s.head_dim),
      partial_queries(static_cast<size_t>(max_window * s.num_heads * pages_of(ctx_size))),
      moe(s.moe, max_rows, num_threads) {
  if (s.delta_nets.empty()) return;
  chunk.raw = FloatRows(max_rows, s.conv_channels);
  chunk.mixed = FloatRows(max_rows, s.conv_channels);
  chunk.beta = FloatRows(max_rows, s.num_value_heads);
  chunk.decay = FloatRows(max_rows, s.num_value_heads);
  z = FloatRows(max_rows, s.value_dim);
  b = FloatRows(max_rows, s.num_value_heads);
  alpha = FloatRows(max_rows, s.num_value_heads);
  delta_out = RowBuffer(max_rows, s.delta_out_dim);
  delta_scratch = FloatRows(num_threads, int64_t{s.state_size} * s.state_size);
}

size_t PassBuffers::size_bytes() const {
  size_t bytes = residual.size_bytes() + joined.size_bytes() + normed.size_bytes() + attended.size_bytes() +
                 delta_out.size_bytes() + moe.size_bytes() + partial_queries.size() * sizeof(AttentionQuery);
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
                         const RopeTables& ropes, KvPages& kv, RecurrentState& recurrent, PassBuffers& buffers,
                         WorkProfile* profile, PassPeers* peers)
    : config_(config),
      isa_(options.isa),
      verify_(options.moe_verify),
      kv_type_(options.kv_type),
      team_(team),
      ropes_(ropes),
      kv_(kv),
      recurrent_(recurrent),
      buffers_(buffers),
      profile_(profile),
      peers_(peers == nullptr || peers->by_layers() ? nullptr : peers),
      stop_(options.stop),
      max_window_(options.max_window),
      attention_scratch_(static_cast<size_t>(team.num_threads()),
                         std::vector<float>(static_cast<size_t>(kAttentionSplit + buffers.partials.num_cols()))) {
  const auto max_rows = static_cast<size_t>(buffers.residual.max_rows());
  spans_.reserve(options.parallel);
  row_spans_.reserve(max_rows);
  raw_rows_.reserve(max_rows);
  inputs_.reserve(max_rows);
  projected_.reserve(kMostProjections);
  items_.reserve(kMostProjections);
  reserve_attention(options);
}

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
  planned_ = {};
  rows_moved_ = false;
}

void ForwardPass::continue_at(int layer) {
  layer_ = layer;
  added_ = layer == 0 ? RowFault{0, FaultKind::kEmbedding} : RowFault{layer - 1, FaultKind::kFeedForward};
}

void ForwardPass::keep_rows(std::span<const Span> spans, std::span<const int> from) {
  if (static_cast<int>(from.size()) == num_rows_) return;
  // Rows move to the front in rising order, so none is overwritten before it has moved.
  for (size_t i = 0; i < from.size(); ++i)
    std::copy_n(buffers_.residual.row(from[i]), config_.hidden_dim, buffers_.residual.row(static_cast<int64_t>(i)));
  const RowFault so_far = added_;
  begin(spans, *faults_, from, is_mtp_);
  added_ = so_far;
  rows_moved_ = true;
}

void ForwardPass::embed(const MatrixView& embed, Ids ids) {
  FT_CHECK(embed.layout == Layout::kRows);
  for_rows([&](int64_t r, int) {
    decode_row(embed.type, embed.data + static_cast<size_t>(ids[r]) * embed.row_bytes(), embed.num_cols,
               buffers_.residual.row(r));
  });
  added(FaultKind::kEmbedding);
}

void ForwardPass::join(const MtpWeights& mtp, Hidden hidden) {
  const int64_t dim = config_.hidden_dim;
  RowBuffer& both = buffers_.joined;
  const unsigned blocks = inputs_of(mtp.join);
  for_rows([&](int64_t r, int) {
    const float embed_squares =
        rms_norm(isa_, buffers_.residual.row(r), mtp.embed_norm, dim, config_.norm_eps, both.row(r));
    const float hidden_squares = rms_norm(isa_, hidden[r], mtp.hidden_norm, dim, config_.norm_eps, both.row(r) + dim);
    if (!std::isfinite(embed_squares)) note(r, FaultKind::kEmbedding);
    if (!std::isfinite(hidden_squares)) note(r, FaultKind::kMtpHidden);
    quantise_forms(isa_, both, r, blocks);
    std::fill_n(buffers_.residual.row(r), dim, 0.0f);
  });
  project_to_hidden(Work::kMtpLayer, both, mtp.join);
  added(FaultKind::kMtpJoin);
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

void ForwardPass::norm_moved(const float* weight, unsigned blocks) {
  if (rows_moved_) norm(weight, blocks);
}

void ForwardPass::add_and_norm(const float* weight, unsigned blocks) {
  check_stop();
  for_rows([&](int64_t r, int) {
    add(isa_, buffers_.mixed.row(r), config_.hidden_dim, buffers_.residual.row(r));
    norm_row(r, weight, blocks, buffers_.normed);
  });
}

void ForwardPass::project(Work work, const RowBuffer& input, std::initializer_list<Projection> projections) {
  FT_CHECK(projections.size() <= kMostProjections);
  inputs_.resize(num_rows_);
  for (int r = 0; r < num_rows_; ++r) inputs_[r] = input.view(r);
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
    outputs.reserve(buffers_.residual.max_rows());
    outputs.resize(num_rows_);
    for (int r = 0; r < num_rows_; ++r) outputs[r] = p->output(r) + begin;
    matmul_rows(isa_, p->matrix, begin, end, inputs_.data(), num_rows_, outputs.data());
    return WorkDone{work, (end - begin) * static_cast<int64_t>(p->matrix.row_bytes())};
  });
}

void ForwardPass::project_to_hidden(Work work, const RowBuffer& input, const MatrixView& matrix) {
  project(work, input, {{matrix, buffers_.mixed, peers_ == nullptr ? 0 : peers_->hidden_begin}});
  if (peers_ != nullptr) peers_->gather_hidden(buffers_.mixed.row(0), num_rows_);
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

unsigned ForwardPass::inputs_of(const DenseWeights& weights) {
  return input_blocks(weights);
}

unsigned ForwardPass::inputs_of(const MatrixView& matrix) {
  return block_bits({&matrix});
}

MoeScratch& ForwardPass::begin_feed_forward() {
  buffers_.moe.profile = profile_;
  buffers_.moe.is_mtp = is_mtp_;
  buffers_.moe.peers = peers_;
  if (peers_ != nullptr) peers_->begin_feed_forward(layer_);
  return buffers_.moe;
}

void ForwardPass::experts(const MoeWeights& weights, int /*layer_idx*/) {
  moe_forward(isa_, team_, verify_, weights, buffers_.normed, num_rows_, begin_feed_forward(), buffers_.residual);
  added(FaultKind::kFeedForward);
  for (int r = 0; r < num_rows_; ++r) {
    if (buffers_.moe.routing.finite[r] == 0) note(r, FaultKind::kRouter);
  }
  ++layer_;
  distinct_experts_ += static_cast<double>(buffers_.moe.distinct_experts) / weights.top_k;
  ++expert_layers_;
}

void ForwardPass::dense(const DenseWeights& weights) {
  dense_forward(isa_, team_, weights, buffers_.normed, num_rows_, begin_feed_forward(), buffers_.residual);
  added(FaultKind::kFeedForward);
  ++layer_;
}

double ForwardPass::take_distinct_experts() {
  const double mean = expert_layers_ == 0 ? 0.0 : distinct_experts_ / expert_layers_;
  distinct_experts_ = 0;
  expert_layers_ = 0;
  return mean;
}

}  // namespace foretoken
