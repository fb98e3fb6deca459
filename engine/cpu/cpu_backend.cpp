#include "engine/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/cpu/forward_pass.h"
#include "engine/machine.h"
#include "engine/model/families/families.h"
#include "engine/model/shapes.h"
#include "kernels/base/error.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rows/elementwise.h"

namespace foretoken {

namespace {

// Head rows of one work item: 64 x 2048 values of Q6_K are 105 KiB.
constexpr int64_t kHeadRowsPerItem = 64;

/// Work items over rows of a head, node by node: what of the rows lies on which node is as the weights' loader had it.
class HeadItems {
 public:
  HeadItems(const NumaNodes& nodes, int64_t num_rows) {
    for (int node = 0; node < nodes.count(); ++node) shares_.push_back(nodes.rows_of(node, num_rows, kHeadUnitRows));
    const auto num_groups = static_cast<size_t>((num_rows + kInterleave - 1) / kInterleave);
    items_.reserve(num_groups);  // add() may come to make each an item
    node_ends_.reserve(shares_.size());
    set({{0, num_rows}});
  }

  // REQUIRES: `ranges` rise.
  void set(const std::vector<RowRange>& ranges) {
    items_.clear();
    node_ends_.clear();
    for (const std::vector<RowRange>& share : shares_) {
      for (const RowRange& rows : ranges) append(share, rows);
      node_ends_.push_back(static_cast<int64_t>(items_.size()));
    }
  }

  // One more item, last of its node's. REQUIRES: the rows are one group of kInterleave.
  void add(const RowRange& rows) {
    size_t node = 0;
    const auto holds = [&](const RowRange& share) { return share.begin <= rows.begin && rows.begin < share.end; };
    while (std::none_of(shares_[node].begin(), shares_[node].end(), holds)) ++node;
    items_.insert(items_.begin() + node_ends_[node], rows);
    for (; node < node_ends_.size(); ++node) ++node_ends_[node];
  }

  [[nodiscard]] std::span<const int64_t> node_ends() const { return node_ends_; }
  [[nodiscard]] const RowRange& operator[](int64_t item) const { return items_[item]; }

 private:
  void append(const std::vector<RowRange>& share, const RowRange& rows) {
    for (const RowRange& mine : share) {
      const int64_t end = std::min(rows.end, mine.end);
      for (int64_t begin = std::max(rows.begin, mine.begin); begin < end; begin += kHeadRowsPerItem)
        items_.push_back({begin, std::min(begin + kHeadRowsPerItem, end)});
    }
  }

  std::vector<std::vector<RowRange>> shares_;  // [nodes]
  std::vector<RowRange> items_;
  std::vector<int64_t> node_ends_;
};

double mib(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

// Everything that takes memory. The mappings cost nothing until they are touched, so the sizes can be summed and
// checked first.
struct EngineBuffers {
  EngineBuffers(const ModelShapes& s, const SessionOptions& o)
      : num_pages(static_cast<int>(kv_pages(o, KvShape(s.attention, o.kv_type).page_bytes()))),
        kv(KvShape(s.attention, o.kv_type), num_pages),
        recurrent(s.delta_nets, o.max_window, o.parallel),
        pass(s, pass_rows(o), o.max_window, o.ctx_size, o.threads),
        hidden(pass_rows(o), s.hidden_dim),
        logits(logits_rows(o), s.head_rows) {
    if (!o.with_mtp) return;
    pass.joined = RowBuffer(pass_rows(o), 2 * s.hidden_dim);
    for (RowBuffer& rows : mtp_hidden) rows = RowBuffer(pass_rows(o), s.hidden_dim);
    mtp_logits = FloatRows(logits_rows(o), s.head_rows);
  }

  [[nodiscard]] SessionMemory memory(const ModelShapes& s, const SessionOptions& o) const {
    SessionMemory m;
    m.kv_bytes = kv.size_bytes();
    m.recurrent_bytes = recurrent.size_bytes();
    m.work_bytes = pass.size_bytes() + hidden.size_bytes() + logits.size_bytes() + mtp_hidden[0].size_bytes() +
                   mtp_hidden[1].size_bytes() + mtp_logits.size_bytes() + RopeTables::size_bytes(s.ropes, o.ctx_size);
    return m;
  }

  int num_pages;
  KvPages kv;
  RecurrentState recurrent;
  PassBuffers pass;
  RowBuffer hidden;  // [max_rows, hidden_dim] after the final norm
  FloatRows logits;  // [logits_rows, head_rows]
  // MTP layer.
  std::array<RowBuffer, 2> mtp_hidden;  // [max_rows, hidden_dim], taking turns
  FloatRows mtp_logits;                 // [logits_rows, head_rows]
};

/// Passes over the host's memory.
class CpuBackend final : public Backend {
 public:
  CpuBackend(const Model& model, const SessionOptions& options, Transport* transport)
      : Backend(options),
        config_(model.config()),
        weights_(model.weights()),
        shapes_(ModelShapes::of(weights_, config_, options_.with_mtp)),
        text_(FamilyText<ForwardPass>::of(config_.architecture)),
        buffers_(shapes_, options_),
        memory_(checked_memory()),
        team_(options_.threads, options_.nodes),
        ropes_(shapes_.ropes, options_.ctx_size),
        profile_(options_.profile ? std::make_unique<WorkProfile>(options_.threads) : nullptr),
        peers_(transport == nullptr
                   ? nullptr
                   : std::make_unique<PassPeers>(*transport, *model.share(), shapes_, pass_rows(options_))),
        pass_(config_, options_, team_, ropes_, buffers_.kv, buffers_.recurrent, buffers_.pass, profile_.get(),
              peers_.get()),
        head_items_(team_.nodes(), shapes_.head_rows),
        draft_items_(team_.nodes(), shapes_.head_rows) {
    FT_CHECK((transport != nullptr) == (model.share() != nullptr));
    team_.set_stop(options_.stop);
    head_inputs_.reserve(logits_rows(options_));
    trunk_spans_.reserve(options_.parallel);
    output_rows_.reserve(pass_rows(options_));
    faults_.reserve(pass_rows(options_));
    mtp_faults_.reserve(pass_rows(options_));
  }

  SessionMemory memory() const override { return memory_; }
  int num_pages() const override { return buffers_.num_pages; }
  ThreadTeam& team() override { return team_; }
  WorkProfile* profile() override { return profile_.get(); }
  void count_expert_reads(ExpertReads* reads) override { buffers_.pass.moe.reads = reads; }

  void forward(std::span<const Span> spans, std::span<const TokenId> ids) override {
    faults_.begin(static_cast<int>(ids.size()));
    pass_.begin(spans, faults_);
    if (peers_ != nullptr && peers_->by_layers()) {
      run_own_layers(ids);
    } else {
      text_.trunk(pass_, weights_, ids, buffers_.hidden);
    }
    distinct_experts_ = pass_.take_distinct_experts();
    check_stop();
  }

  double distinct_experts() override { return distinct_experts_; }
  const float* hidden(int row) override { return buffers_.hidden.row(row); }

  void compute_logits(std::span<const int32_t> rows) override {
    const RowFault fault{config_.num_layers, FaultKind::kLogits};
    run_head(Work::kHead, weights_.head, head_items_, buffers_.hidden, rows, buffers_.logits,
             [&](int32_t row) { faults_.note(row, fault); });
  }
  const float* logits(int index) override { return buffers_.logits.row(index); }

  void mtp_forward(std::span<const MtpSpan> spans, std::span<const TokenId> ids,
                   std::span<const float* const> hidden) override {
    trunk_spans_.assign(spans.begin(), spans.end());
    mtp_faults_.begin(static_cast<int>(ids.size()));
    pass_.begin(trunk_spans_, mtp_faults_, {}, /*is_mtp=*/true);
    text_.mtp_take_in(pass_, weights_.mtp, ids, hidden);
    if (!keep_outputs(spans)) return;
    mtp_current_ = 1 - mtp_current_;
    text_.mtp_finish(pass_, weights_.mtp, buffers_.mtp_hidden[mtp_current_]);
    (void)pass_.take_distinct_experts();
    check_stop();
  }

  const float* mtp_hidden(int output) override { return buffers_.mtp_hidden[mtp_current_].row(output); }

  void mtp_compute_logits(std::span<const int32_t> outputs) override {
    run_head(Work::kDraftHead, weights_.mtp.head, draft_items_, buffers_.mtp_hidden[mtp_current_], outputs,
             buffers_.mtp_logits, [&](int32_t output) {
               mtp_faults_.note(output_rows_[output], {config_.num_layers + 1, FaultKind::kLogits});
             });
  }
  const float* mtp_logits(int index) override { return buffers_.mtp_logits.row(index); }

  void set_draft_groups(std::span<const int32_t> groups) override {
    std::vector<RowRange> ranges;
    for (size_t i = 0; i < groups.size(); ++i) {
      FT_CHECK(groups[i] >= 0 && (i == 0 || groups[i] > groups[i - 1]));
      append_rows(ranges, head_rows_of(groups[i]));  // a run of neighbouring groups makes items together
    }
    draft_items_.set(ranges);
    for (int r = 0; r < logits_rows(options_); ++r) {
      std::fill_n(buffers_.mtp_logits.row(r), shapes_.head_rows, -std::numeric_limits<float>::infinity());
    }
  }

  void add_draft_group(int32_t group) override {
    const RowRange rows = head_rows_of(group);
    if (rows.begin < rows.end) draft_items_.add(rows);
  }

  void reset(int slot) override { buffers_.recurrent.reset(slot); }
  void settle(SequenceState& sequence) override { pass_.settle(sequence); }

  size_t state_bytes() const override { return buffers_.recurrent.state_bytes(); }
  void read_state(int slot, std::span<std::byte> to) override { buffers_.recurrent.read(slot, to); }
  void write_state(int slot, std::span<const std::byte> from) override { buffers_.recurrent.write(slot, from); }
  size_t page_bytes() const override { return static_cast<size_t>(buffers_.kv.shape().page_bytes()); }
  void read_page(int32_t page, std::span<std::byte> to) override {
    std::copy_n(buffers_.kv.page(page), to.size(), to.begin());
  }
  void write_page(int32_t page, std::span<const std::byte> from) override {
    std::copy(from.begin(), from.end(), buffers_.kv.page(page));
  }

 private:
  SessionMemory checked_memory() const {
    const SessionMemory needed = buffers_.memory(shapes_, options_);
    const size_t available = available_memory_bytes();
    if (needed.total() <= available) return needed;
    throw InputError(
        fmt::format("a context of {} positions needs {:.0f} MiB (KV cache {:.0f}, recurrent state {:.0f}, work "
                    "{:.0f}); {:.0f} MiB of memory "
                    "are available; choose a smaller --ctx-size",
                    options_.ctx_size, mib(needed.total()), mib(needed.kv_bytes), mib(needed.recurrent_bytes),
                    mib(needed.work_bytes), mib(available)));
  }

  void check_stop() const {
    if (options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed)) throw Interrupted();
  }

  // Rows of the head in memory that stand for this group of ids: none where another process has them.
  RowRange head_rows_of(int32_t group) const {
    const int64_t begin = int64_t{group} * kInterleave, end = std::min(begin + kInterleave, config_.vocab_size);
    FT_CHECK(begin < end);
    if (shapes_.head_rows == config_.vocab_size) return {begin, end};
    if (shapes_.head_rows == 0) return {};
    const RowOwners& owners = peers_->plan().vocab;
    if (!owners.owns(peers_->rank(), begin)) return {};
    const int64_t local = owners.local_of(peers_->rank(), begin);
    return {local, local + end - begin};
  }

  // The trunk's layers that this process has, between those of its neighbours.
  void run_own_layers(std::span<const TokenId> ids) {
    if (peers_->rank() == 0) {
      pass_.embed(weights_.embed, ids);
    } else {
      peers_->receive_rows(buffers_.pass.residual.row(0), pass_.num_rows());
      pass_.continue_at(peers_->plan().first_layer(peers_->rank()));
    }
    for (const LayerWeights& layer : weights_.layers) {
      if (!layer.is_elsewhere) text_.layer(pass_, layer);
    }
    if (!peers_->is_last()) return peers_->send_rows(buffers_.pass.residual.row(0), pass_.num_rows());
    pass_.norm_to(weights_.output_norm, ForwardPass::inputs_of(weights_.head), buffers_.hidden);
  }

  // The MTP layer goes on with the rows from each span's first_output on; false if there are none.
  bool keep_outputs(std::span<const MtpSpan> spans) {
    trunk_spans_.clear();
    output_rows_.clear();
    for (const MtpSpan& span : spans) {
      const int count = span.num_rows - span.first_output;
      if (count == 0) continue;
      trunk_spans_.push_back({span.sequence, static_cast<int>(output_rows_.size()), count,
                              span.position + span.first_output, span.is_window});
      for (int r = span.first_row + span.first_output; r < span.end_row(); ++r) output_rows_.push_back(r);
    }
    if (!output_rows_.empty()) pass_.keep_rows(trunk_spans_, output_rows_);
    return !output_rows_.empty();
  }

  // logits[i] = head . from[rows[i]], for the head rows in `items`. Calls note(row) for rows with logits that are not
  // finite, from any thread.
  template <class Note>
  void run_head(Work work, const MatrixView& head, const HeadItems& items, const RowBuffer& from,
                std::span<const int32_t> rows, FloatRows& logits, const Note& note) {
    const int num_rows = static_cast<int>(rows.size());
    head_inputs_.clear();
    for (const int32_t r : rows) head_inputs_.push_back(from.view(r));
    profiled_for(team_, profile_.get(), items.node_ends(), [&](int64_t item, int) {
      const RowRange& range = items[item];
      thread_local std::vector<float*> outputs;
      outputs.reserve(logits_rows(options_));
      outputs.resize(num_rows);
      for (int i = 0; i < num_rows; ++i) outputs[i] = logits.row(i) + range.begin;
      matmul_rows(options_.isa, head, range.begin, range.end, head_inputs_.data(), num_rows, outputs.data());
      for (size_t i = 0; i < outputs.size(); ++i) {
        const float largest = largest_magnitude(options_.isa, outputs[i], range.end - range.begin);
        if (!std::isfinite(largest)) note(rows[i]);
      }
      return WorkDone{work, (range.end - range.begin) * static_cast<int64_t>(head.row_bytes())};
    });
    check_stop();
  }

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const ModelShapes shapes_;
  const FamilyText<ForwardPass> text_;
  EngineBuffers buffers_;
  const SessionMemory memory_;
  ThreadTeam team_;
  const RopeTables ropes_;
  const std::unique_ptr<WorkProfile> profile_;
  const std::unique_ptr<PassPeers> peers_;  // nullptr: alone
  ForwardPass pass_;
  HeadItems head_items_, draft_items_;
  double distinct_experts_ = 0;
  int mtp_current_ = 0;               // of buffers_.mtp_hidden
  std::vector<RowView> head_inputs_;  // [rows of the head's run]
  std::vector<Span> trunk_spans_;     // of the MTP layer's pass
  std::vector<int> output_rows_;      // rows of the MTP layer's pass that go through all of it
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const Model& model, const SessionOptions& options, Transport* transport) {
  return std::make_unique<CpuBackend>(model, options, transport);
}

SessionMemory cpu_session_memory(const ModelShapes& shapes, const SessionOptions& options) {
  return EngineBuffers(shapes, options).memory(shapes, options);
}

}  // namespace foretoken
