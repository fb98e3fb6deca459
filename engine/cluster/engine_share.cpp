#include <algorithm>
#include <limits>
#include <optional>

#include "engine/cluster/protocol.h"
#include "engine/cpu/cpu_backend.h"
#include "kernels/base/error.h"
#include "kernels/select/softmax.h"

namespace foretoken {

namespace {

int32_t count_faults(const RowFaults& faults) {
  int32_t count = 0;
  for (int r = 0; r < faults.num_rows(); ++r) count += faults.find(r) ? 1 : 0;
  return count;
}

}  // namespace

EngineShare::EngineShare(const Model& model, const SessionOptions& options, Transport& transport)
    : transport_(transport),
      plan_(model.share()->plan),
      rank_(transport.rank()),
      hidden_dim_(model.config().hidden_dim),
      vocab_size_(model.config().vocab_size),
      head_rows_(model.weights().head.num_rows),
      backend_(make_cpu_backend(model, options, &transport)) {
  for (const LayerWeights& layer : model.weights().layers)
    num_own_expert_layers_ += layer.is_elsewhere || layer.is_dense() ? 0 : 1;
  sequences_.resize(options.parallel);
  for (int slot = 0; slot < options.parallel; ++slot) sequences_[slot].slot = slot;
}

void EngineShare::put_sequence(Message& message, const SequenceState& sequence) {
  message.put(sequence.slot);
  message.put(sequence.turn);
  message.put(sequence.length);
  message.put_all(std::span(sequence.pages));
}

SequenceState& EngineShare::take_sequence(Message& message) {
  SequenceState& sequence = sequences_.at(message.take<int>());
  sequence.turn = message.take<BankTurn>();
  sequence.length = message.take<int64_t>();
  message.take_all(sequence.pages);
  return sequence;
}

void EngineShare::put_spans(Message& message, std::span<const Span> spans) {
  message.put(spans.size());
  for (const Span& span : spans) {
    put_sequence(message, *span.sequence);
    message.put(span.first_row);
    message.put(span.num_rows);
    message.put(span.position);
    message.put(span.is_window);
  }
}

void EngineShare::put_spans(Message& message, std::span<const MtpSpan> spans) {
  message.put(spans.size());
  for (const MtpSpan& span : spans) {
    put_sequence(message, *span.sequence);
    message.put(span.first_row);
    message.put(span.num_rows);
    message.put(span.position);
    message.put(span.is_window);
    message.put(span.first_output);
  }
}

void EngineShare::take_spans(Message& message) {
  spans_.clear();
  for (auto count = message.take<size_t>(); count > 0; --count) {
    Span span;
    span.sequence = &take_sequence(message);
    span.first_row = message.take<int>();
    span.num_rows = message.take<int>();
    span.position = message.take<int64_t>();
    span.is_window = message.take<bool>();
    spans_.push_back(span);
  }
}

void EngineShare::take_mtp_spans(Message& message) {
  mtp_spans_.clear();
  for (auto count = message.take<size_t>(); count > 0; --count) {
    MtpSpan span;
    span.sequence = &take_sequence(message);
    span.first_row = message.take<int>();
    span.num_rows = message.take<int>();
    span.position = message.take<int64_t>();
    span.is_window = message.take<bool>();
    span.first_output = message.take<int>();
    mtp_spans_.push_back(span);
  }
}

void EngineShare::send_to_root(const float* values, int64_t count) {
  if (count > 0) transport_.send(0, std::as_bytes(std::span(values, static_cast<size_t>(count))));
}

double EngineShare::finish_pass(bool is_mtp, RowFaults& faults) {
  struct Record {
    double experts;
    int32_t num_layers, num_faults;
  };
  std::vector<Record> records(static_cast<size_t>(plan_.num_ranks()));
  records[rank_] = {num_own_expert_layers_ == 0 ? 0.0 : backend_->distinct_experts() * num_own_expert_layers_,
                    num_own_expert_layers_, count_faults(own_faults(is_mtp))};
  gather_records(transport_, records);
  double experts = 0;
  int num_layers = 0, num_faults = 0;
  for (const Record& record : records) {
    experts += record.experts;
    num_layers += record.num_layers;
    num_faults += record.num_faults;
  }
  if (num_faults > 0) gather_faults(own_faults(is_mtp), faults);
  return num_layers == 0 ? 0 : experts / num_layers;
}

void EngineShare::gather_faults(const RowFaults& own, RowFaults& faults) {
  struct Record {
    int32_t layer, kind;  // kind -1: none
  };
  const int num_rows = own.num_rows();
  std::vector<Record> records(static_cast<size_t>(plan_.num_ranks() * num_rows));
  std::vector<int64_t> ends;
  for (int rank = 1; rank <= plan_.num_ranks(); ++rank)
    ends.push_back(static_cast<int64_t>(rank) * num_rows * static_cast<int64_t>(sizeof(Record)));
  for (int r = 0; r < num_rows; ++r) {
    const std::optional<RowFault> fault = own.find(r);
    records[rank_ * num_rows + r] = fault ? Record{fault->layer, static_cast<int32_t>(fault->kind)} : Record{0, -1};
  }
  transport_.all_gather(reinterpret_cast<std::byte*>(records.data()), ends);
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].kind < 0) continue;
    faults.note(static_cast<int64_t>(i) % num_rows, {records[i].layer, static_cast<FaultKind>(records[i].kind)});
  }
}

void EngineShare::gather_peaks(int num_rows, bool is_mtp, std::vector<LogitPeak>& peaks, RowFaults& faults) {
  const int num_ranks = plan_.num_ranks();
  peaks.assign(num_ranks * num_rows, {});
  for (int i = 0; i < num_rows; ++i) {
    LogitPeak& peak = peaks[rank_ * num_rows + i];
    peak.has_faults = count_faults(own_faults(is_mtp)) > 0 ? 1 : 0;
    if (head_rows_ > 0) {
      const Isa isa = backend_->options().isa;
      const float* logits = is_mtp ? backend_->mtp_logits(i) : backend_->logits(i);
      const int64_t local = argmax(isa, logits, head_rows_);
      peak.largest = logits[local];
      peak.id = static_cast<int32_t>(by_layers() ? local : plan_.vocab.global_of(rank_, local));
      if (is_mtp && peak.largest > -std::numeric_limits<float>::infinity())
        peak.share = softmax_share(isa, logits, head_rows_, local);
    }
  }
  std::vector<int64_t> ends;
  for (int rank = 1; rank <= num_ranks; ++rank)
    ends.push_back(static_cast<int64_t>(rank) * num_rows * static_cast<int64_t>(sizeof(LogitPeak)));
  transport_.all_gather(reinterpret_cast<std::byte*>(peaks.data()), ends);
  if (std::any_of(peaks.begin(), peaks.end(), [](const LogitPeak& peak) { return peak.has_faults != 0; }))
    gather_faults(own_faults(is_mtp), faults);
}

void EngineShare::obey(ClusterCommand command, Message& message) {
  switch (command) {
    case ClusterCommand::kForward: {
      take_spans(message);
      message.take_all(ids_);
      backend_->forward(spans_, ids_);
      num_rows_ = static_cast<int64_t>(ids_.size());
      all_faults_.begin(static_cast<int>(num_rows_));
      (void)finish_pass(/*is_mtp=*/false, all_faults_);
      if (by_layers() && is_last() && backend_->options().with_mtp)
        send_to_root(backend_->hidden(0), num_rows_ * hidden_dim_);
      return;
    }
    case ClusterCommand::kHidden:
      if (is_last()) send_to_root(backend_->hidden(0), num_rows_ * hidden_dim_);
      return;
    case ClusterCommand::kComputeLogits: {
      message.take_all(rows_);
      if (head_rows_ > 0) backend_->compute_logits(rows_);
      gather_peaks(static_cast<int>(rows_.size()), /*is_mtp=*/false, peaks_, all_faults_);
      return;
    }
    case ClusterCommand::kLogits:
      send_to_root(head_rows_ > 0 ? backend_->logits(0) : nullptr, static_cast<int64_t>(rows_.size()) * head_rows_);
      return;
    case ClusterCommand::kMtpForward: {
      take_mtp_spans(message);
      message.take_all(ids_);
      message.take_all(hidden_);
      hidden_rows_.clear();
      for (size_t r = 0; r < ids_.size(); ++r) hidden_rows_.push_back(&hidden_[r * static_cast<size_t>(hidden_dim_)]);
      if (!by_layers() || is_last()) backend_->mtp_forward(mtp_spans_, ids_, hidden_rows_);
      all_faults_.begin(static_cast<int>(ids_.size()));
      (void)finish_pass(/*is_mtp=*/true, all_faults_);
      if (!by_layers() || !is_last()) return;
      int64_t num_outputs = 0;
      for (const MtpSpan& span : mtp_spans_) num_outputs += span.num_rows - span.first_output;
      if (num_outputs > 0) send_to_root(backend_->mtp_hidden(0), num_outputs * hidden_dim_);
      return;
    }
    case ClusterCommand::kMtpComputeLogits:
      message.take_all(rows_);
      if (head_rows_ > 0) backend_->mtp_compute_logits(rows_);
      gather_peaks(static_cast<int>(rows_.size()), /*is_mtp=*/true, peaks_, all_faults_);
      return;
    case ClusterCommand::kMtpLogits:
      send_to_root(head_rows_ > 0 ? backend_->mtp_logits(0) : nullptr, static_cast<int64_t>(rows_.size()) * head_rows_);
      return;
    case ClusterCommand::kSetDraftGroups:
      message.take_all(rows_);
      backend_->set_draft_groups(rows_);
      return;
    case ClusterCommand::kAddDraftGroup:
      backend_->add_draft_group(message.take<int32_t>());
      return;
    case ClusterCommand::kReset:
      backend_->reset(message.take<int>());
      return;
    case ClusterCommand::kSettle:
      backend_->settle(take_sequence(message));
      return;
    case ClusterCommand::kReadState:
      bytes_.resize(backend_->state_bytes());
      backend_->read_state(message.take<int>(), bytes_);
      if (!bytes_.empty()) transport_.send(0, bytes_);
      return;
    case ClusterCommand::kWriteState: {
      const int slot = message.take<int>();
      bytes_.resize(backend_->state_bytes());
      state_layout(plan_, rank_).from_whole(message.take_bytes(whole_state_bytes(plan_)), bytes_);
      backend_->write_state(slot, bytes_);
      return;
    }
    case ClusterCommand::kReadPage:
      bytes_.resize(backend_->page_bytes());
      if (bytes_.empty()) return;
      backend_->read_page(message.take<int32_t>(), bytes_);
      transport_.send(0, bytes_);
      return;
    case ClusterCommand::kWritePage: {
      const auto page = message.take<int32_t>();
      const SessionOptions& o = backend_->options();
      bytes_.resize(backend_->page_bytes());
      page_layout(plan_, rank_, o.kv_type, o.with_mtp)
          .from_whole(message.take_bytes(whole_page_bytes(plan_, o.kv_type, o.with_mtp)), bytes_);
      if (!bytes_.empty()) backend_->write_page(page, bytes_);
      return;
    }
    case ClusterCommand::kEnd:
    case ClusterCommand::kLoad:
    case ClusterCommand::kMakeEngine:
    case ClusterCommand::kDropEngine:
      break;
  }
  FT_CHECK(false);
}

}  // namespace foretoken
