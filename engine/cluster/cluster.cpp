#include "engine/cluster/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/cluster/protocol.h"
#include "engine/sequence/float_rows.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

/// While one lives, rank 0 does what the others wait for.
class Busy {
 public:
  explicit Busy(Transport& transport) : transport_(transport) { transport_.set_busy(true); }
  ~Busy() { transport_.set_busy(false); }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  Transport& transport_;
};

/// Rank 0's end of an engine: every call is told to the followers, then done here with this rank's share.
class ClusterBackend final : public Backend {
 public:
  /// num_passes: is counted up.
  ClusterBackend(const Model& model, const SessionOptions& options, Transport& transport, int number,
                 int64_t& num_passes)
      : Backend(options),
        config_(model.config()),
        transport_(transport),
        number_(number),
        num_passes_(num_passes),
        hidden_(0, 0),
        mtp_hidden_{FloatRows(0, 0), FloatRows(0, 0)} {
    const Busy busy(transport_);
    begin(ClusterCommand::kMakeEngine);
    const SessionOptions& o = options_;
    message_.put(o.ctx_size);
    message_.put(o.kv_type);
    message_.put(o.prompt_chunk);
    message_.put(o.max_window);
    message_.put(o.parallel);
    message_.put(o.kv_memory_bytes);
    message_.put(o.with_mtp);
    message_.put(o.moe_verify);
    message_.put(o.isa);
    message_.broadcast(transport_);
    std::vector<StartRecord> records(static_cast<size_t>(transport_.num_ranks()));
    StartRecord& mine = records[0] = start_record();
    // A pass that has begun is finished on all ranks; whether to stop is looked at between two.
    SessionOptions own = o;
    own.stop = nullptr;
    own.cluster = nullptr;
    std::exception_ptr failure;
    try {
      share_.emplace(model, own, transport_);
      mine.num_pages = share_->backend().num_pages();
    } catch (const std::exception& error) {
      failure = std::current_exception();
      set_failure(mine, error.what());
    }
    gather_records(transport_, records);
    if (failure) std::rethrow_exception(failure);
    num_pages_ = mine.num_pages;
    for (const StartRecord& record : records) {
      if (record.failed) throw InputError(fmt::format("{} (a host of the cluster): {}", record.host, record.message));
      num_pages_ = std::min(num_pages_, record.num_pages);
    }
    is_made_ = true;
    memory_ = own_backend().memory();
    const bool by_layers = share_->by_layers();
    const auto rows = static_cast<int64_t>(logits_rows(o));
    logits_ = FloatRows(rows, config_.vocab_size);
    if (o.with_mtp) mtp_logits_ = FloatRows(rows, config_.vocab_size);
    if (by_layers) hidden_ = FloatRows(pass_rows(o), config_.hidden_dim);
    for (FloatRows& mtp_hidden : mtp_hidden_) {
      if (by_layers && o.with_mtp) mtp_hidden = FloatRows(pass_rows(o), config_.hidden_dim);
    }
    faults_.reserve(pass_rows(o));
    mtp_faults_.reserve(pass_rows(o));
    const RankPlan& plan = share_->plan();
    page_bytes_ = whole_page_bytes(plan, o.kv_type, o.with_mtp);
    state_bytes_ = whole_state_bytes(plan);
    for (int rank = 0; rank < plan.num_ranks(); ++rank) {
      pages_.push_back(page_layout(plan, rank, o.kv_type, o.with_mtp));
      states_.push_back(state_layout(plan, rank));
    }
    FT_CHECK_EQ(pages_[0].own_bytes, own_backend().page_bytes());
    FT_CHECK_EQ(states_[0].own_bytes, own_backend().state_bytes());
  }

  ~ClusterBackend() override {
    if (!is_made_) return;
    begin(ClusterCommand::kDropEngine);
    message_.broadcast(transport_);
  }

  SessionMemory memory() const override { return memory_; }
  int num_pages() const override { return num_pages_; }
  ThreadTeam& team() override { return own_backend().team(); }
  WorkProfile* profile() override { return own_backend().profile(); }
  void count_expert_reads(ExpertReads* reads) override { own_backend().count_expert_reads(reads); }

  void forward(std::span<const Span> spans, std::span<const TokenId> ids) override {
    check_stop();
    const Busy busy(transport_);
    ++num_passes_;
    begin(ClusterCommand::kForward);
    share_->put_spans(message_, spans);
    message_.put_all(ids);
    message_.broadcast(transport_);
    own_backend().forward(spans, ids);
    faults_.begin(static_cast<int>(ids.size()));
    distinct_experts_ = share_->finish_pass(/*is_mtp=*/false, faults_);
    num_rows_ = static_cast<int64_t>(ids.size());
    has_hidden_ = false;
    if (share_->by_layers() && options_.with_mtp) receive_hidden();
    check_stop();
  }

  double distinct_experts() override { return distinct_experts_; }

  const float* hidden(int row) override {
    if (!share_->by_layers() || share_->is_last()) return own_backend().hidden(row);
    if (!has_hidden_) {
      const Busy busy(transport_);
      tell(ClusterCommand::kHidden);
      receive_hidden();
    }
    return hidden_.row(row);
  }

  void compute_logits(std::span<const int32_t> rows) override {
    const Busy busy(transport_);
    begin(ClusterCommand::kComputeLogits);
    message_.put_all(rows);
    message_.broadcast(transport_);
    if (share_->head_rows() > 0) own_backend().compute_logits(rows);
    num_logits_ = static_cast<int>(rows.size());
    has_logits_ = false;
    share_->gather_peaks(num_logits_, /*is_mtp=*/false, peaks_, faults_);
    check_stop();
  }

  const float* logits(int index) override {
    if (!has_logits_) {
      const Busy busy(transport_);
      tell(ClusterCommand::kLogits);
      collect_logits(num_logits_, /*is_mtp=*/false, logits_);
      has_logits_ = true;
    }
    return logits_.row(index);
  }

  std::optional<TokenId> largest_logit(int index) override { return largest(peaks_, index, num_logits_)->id; }

  void mtp_forward(std::span<const MtpSpan> spans, std::span<const TokenId> ids,
                   std::span<const float* const> hidden) override {
    check_stop();
    const Busy busy(transport_);
    begin(ClusterCommand::kMtpForward);
    share_->put_spans(message_, spans);
    message_.put_all(ids);
    const auto dim = static_cast<size_t>(config_.hidden_dim);
    message_.put(hidden.size() * dim);
    for (const float* row : hidden) message_.put_bytes(std::as_bytes(std::span(row, dim)));
    message_.broadcast(transport_);
    const bool has_layer = !share_->by_layers() || share_->is_last();
    if (has_layer) own_backend().mtp_forward(spans, ids, hidden);
    mtp_faults_.begin(static_cast<int>(ids.size()));
    (void)share_->finish_pass(/*is_mtp=*/true, mtp_faults_);
    if (has_layer) return;
    int64_t num_outputs = 0;
    for (const MtpSpan& span : spans) num_outputs += span.num_rows - span.first_output;
    if (num_outputs == 0) return;
    mtp_current_ = 1 - mtp_current_;
    receive_rows(mtp_hidden_[mtp_current_], num_outputs);
  }

  const float* mtp_hidden(int output) override {
    if (!share_->by_layers() || share_->is_last()) return own_backend().mtp_hidden(output);
    return mtp_hidden_[mtp_current_].row(output);
  }

  void mtp_compute_logits(std::span<const int32_t> outputs) override {
    const Busy busy(transport_);
    begin(ClusterCommand::kMtpComputeLogits);
    message_.put_all(outputs);
    message_.broadcast(transport_);
    if (share_->head_rows() > 0) own_backend().mtp_compute_logits(outputs);
    num_mtp_logits_ = static_cast<int>(outputs.size());
    has_mtp_logits_ = false;
    share_->gather_peaks(num_mtp_logits_, /*is_mtp=*/true, mtp_peaks_, mtp_faults_);
  }

  const float* mtp_logits(int index) override {
    if (!has_mtp_logits_) {
      const Busy busy(transport_);
      tell(ClusterCommand::kMtpLogits);
      collect_logits(num_mtp_logits_, /*is_mtp=*/true, mtp_logits_);
      has_mtp_logits_ = true;
    }
    return mtp_logits_.row(index);
  }

  std::optional<std::pair<TokenId, float>> mtp_largest_logit(int index) override {
    const LogitPeak& best = *largest(mtp_peaks_, index, num_mtp_logits_);
    // A rank's largest has `share` of its own softmax, so its exponentials sum up to 1 / share.
    double sum = 0;
    for (int rank = 0; rank < transport_.num_ranks(); ++rank) {
      const LogitPeak& peak = mtp_peaks_[rank * num_mtp_logits_ + index];
      if (peak.share > 0) sum += std::exp(static_cast<double>(peak.largest) - best.largest) / peak.share;
    }
    return std::pair(best.id, sum > 0 ? static_cast<float>(1 / sum) : 0.0f);
  }

  void set_draft_groups(std::span<const int32_t> groups) override {
    const Busy busy(transport_);
    begin(ClusterCommand::kSetDraftGroups);
    message_.put_all(groups);
    message_.broadcast(transport_);
    own_backend().set_draft_groups(groups);
  }

  void add_draft_group(int32_t group) override {
    const Busy busy(transport_);
    tell(ClusterCommand::kAddDraftGroup, group);
    own_backend().add_draft_group(group);
  }

  void reset(int slot) override {
    const Busy busy(transport_);
    tell(ClusterCommand::kReset, slot);
    own_backend().reset(slot);
  }

  void settle(SequenceState& sequence) override {
    const Busy busy(transport_);
    begin(ClusterCommand::kSettle);
    EngineShare::put_sequence(message_, sequence);
    message_.broadcast(transport_);
    own_backend().settle(sequence);
  }

  size_t state_bytes() const override { return state_bytes_; }
  void read_state(int slot, std::span<std::byte> to) override {
    const Busy busy(transport_);
    tell(ClusterCommand::kReadState, slot);
    collect(states_, to, [&](std::span<std::byte> own) { own_backend().read_state(slot, own); });
  }
  void write_state(int slot, std::span<const std::byte> from) override {
    const Busy busy(transport_);
    begin(ClusterCommand::kWriteState);
    message_.put(slot);
    message_.put_bytes(from);
    message_.broadcast(transport_);
    bytes_.resize(states_[0].own_bytes);
    states_[0].from_whole(from, bytes_);
    own_backend().write_state(slot, bytes_);
  }
  size_t page_bytes() const override { return page_bytes_; }
  void read_page(int32_t page, std::span<std::byte> to) override {
    const Busy busy(transport_);
    tell(ClusterCommand::kReadPage, page);
    collect(pages_, to, [&](std::span<std::byte> own) { own_backend().read_page(page, own); });
  }
  void write_page(int32_t page, std::span<const std::byte> from) override {
    const Busy busy(transport_);
    begin(ClusterCommand::kWritePage);
    message_.put(page);
    message_.put_bytes(from);
    message_.broadcast(transport_);
    bytes_.resize(pages_[0].own_bytes);
    pages_[0].from_whole(from, bytes_);
    if (!bytes_.empty()) own_backend().write_page(page, bytes_);
  }

 private:
  Backend& own_backend() { return share_->backend(); }

  void check_stop() const {
    if (options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed)) throw Interrupted();
  }

  void begin(ClusterCommand command) {
    message_.clear();
    message_.put(command);
    message_.put(number_);
  }
  template <class... Values>
  void tell(ClusterCommand command, const Values&... values) {
    begin(command);
    (message_.put(values), ...);
    message_.broadcast(transport_);
  }

  void receive_rows(FloatRows& to, int64_t num_rows) {
    transport_.receive(transport_.num_ranks() - 1,
                       std::as_writable_bytes(std::span(to.row(0), static_cast<size_t>(num_rows * to.num_cols()))));
  }
  void receive_hidden() {
    if (!share_->is_last()) receive_rows(hidden_, num_rows_);
    has_hidden_ = true;
  }

  [[nodiscard]] const LogitPeak* largest(const std::vector<LogitPeak>& peaks, int index, int num_rows) const {
    const LogitPeak* best = nullptr;
    for (int rank = 0; rank < transport_.num_ranks(); ++rank) {
      const LogitPeak& peak = peaks[rank * num_rows + index];
      if (peak.id < 0) continue;
      if (best == nullptr || peak.largest > best->largest || (peak.largest == best->largest && peak.id < best->id))
        best = &peak;
    }
    FT_CHECK(best != nullptr);
    return best;
  }

  // The ranks' logits of the last rows, each in the columns of its own.
  void collect_logits(int num_rows, bool is_mtp, FloatRows& to) {
    const RankPlan& plan = share_->plan();
    for (int rank = 0; rank < plan.num_ranks(); ++rank) {
      const int64_t count =
          share_->by_layers() ? (rank + 1 == plan.num_ranks() ? config_.vocab_size : 0) : plan.vocab.count(rank);
      if (count == 0) continue;
      const float* from = nullptr;
      if (rank == 0) {
        from = is_mtp ? own_backend().mtp_logits(0) : own_backend().logits(0);
      } else {
        values_.resize(num_rows * count);
        transport_.receive(rank, std::as_writable_bytes(std::span(values_)));
        from = values_.data();
      }
      for (int i = 0; i < num_rows; ++i) {
        if (share_->by_layers()) {
          std::copy_n(from + i * count, count, to.row(i));
          continue;
        }
        const float* at = from + i * count;
        for (const RowRange& range : plan.vocab.of(rank)) {
          std::copy_n(at, range.end - range.begin, to.row(i) + range.begin);
          at += range.end - range.begin;
        }
      }
    }
  }

  // Puts the ranks' parts of a page or state together.
  template <class ReadOwn>
  void collect(const std::vector<ShareLayout>& layouts, std::span<std::byte> to, ReadOwn&& read_own) {
    for (size_t rank = 0; rank < layouts.size(); ++rank) {
      bytes_.resize(layouts[rank].own_bytes);
      if (bytes_.empty()) continue;
      if (rank == 0) {
        read_own(std::span(bytes_));
      } else {
        transport_.receive(static_cast<int>(rank), bytes_);
      }
      layouts[rank].to_whole(bytes_, to);
    }
  }

  const ModelConfig& config_;
  Transport& transport_;
  const int number_;
  int64_t& num_passes_;
  bool is_made_ = false;
  Message message_;
  std::optional<EngineShare> share_;
  int num_pages_ = 0;
  SessionMemory memory_;
  size_t page_bytes_ = 0, state_bytes_ = 0;
  std::vector<ShareLayout> pages_, states_;  // [ranks]
  double distinct_experts_ = 0;
  int64_t num_rows_ = 0;
  int num_logits_ = 0, num_mtp_logits_ = 0;
  bool has_hidden_ = false, has_logits_ = false, has_mtp_logits_ = false;
  int mtp_current_ = 0;
  FloatRows hidden_;                          // [max_rows, hidden_dim] with kLayers
  std::array<FloatRows, 2> mtp_hidden_;       // the same of the MTP layer's outputs, taking turns
  FloatRows logits_, mtp_logits_;             // [logits_rows, vocab_size]
  std::vector<LogitPeak> peaks_, mtp_peaks_;  // [ranks][rows]
  std::vector<float> values_;
  std::vector<std::byte> bytes_;
};

}  // namespace

Cluster::Cluster(Transport& transport, ClusterMember member) : transport_(transport), member_(std::move(member)) {
  FT_CHECK_EQ(transport.rank(), 0);
}

Cluster::~Cluster() {
  Message message;
  message.put(ClusterCommand::kEnd);
  message.broadcast(transport_);
}

Model Cluster::load(const std::string& path, LoadOptions options, const ClusterOptions& how) {
  FT_CHECK(how.shares.empty() || static_cast<int>(how.shares.size()) == num_ranks());
  const Busy busy(transport_);
  Message message;
  message.put(ClusterCommand::kLoad);
  message.put_text(path);
  message.put_text(options.mtp_path);
  message.put(options.repack);
  message.put(how.mode);
  message.put_all(std::span(how.shares));
  message.broadcast(transport_);
  Model model = load_share(transport_, member_, path, std::move(options), how, hosts_, bandwidths_);
  num_passes_ = 0;
  at_load_ = transport_.totals();
  return model;
}

std::unique_ptr<Backend> Cluster::make_backend(const Model& model, const SessionOptions& options) {
  return std::make_unique<ClusterBackend>(model, options, transport_, num_backends_++, num_passes_);
}

ClusterTraffic Cluster::traffic() const {
  const TransportTotals& now = transport_.totals();
  return {num_passes_,
          {now.num_messages - at_load_.num_messages, now.bytes_received - at_load_.bytes_received,
           now.seconds - at_load_.seconds}};
}

}  // namespace foretoken
