#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/backend.h"
#include "engine/cluster/cluster.h"
#include "engine/cluster/message.h"
#include "engine/cluster/share_layout.h"

namespace foretoken {

// What rank 0 and the followers say to each other: one broadcast message begins with a ClusterCommand, and what else is
// exchanged for it both sides do in the functions below.

enum class ClusterCommand : uint8_t {
  kEnd,
  kLoad,        // path, path of the MTP layer, repack, ClusterOptions; then load_share()
  kMakeEngine,  // its number, options; then a StartRecord of each
  kDropEngine,  // its number
  // Of an engine, whose number comes first.
  kForward,        // spans, ids; then finish_forward()
  kComputeLogits,  // rows; then LogitPeaks
  kLogits,         // each rank's rows of the last kComputeLogits to rank 0
  kHidden,         // hidden rows of the last kForward from the last rank to rank 0, with ClusterMode::kLayers
  kMtpForward,     // spans, ids, hidden rows
  kMtpComputeLogits,
  kMtpLogits,
  kSetDraftGroups,
  kAddDraftGroup,
  kReset,
  kSettle,
  kReadState,
  kWriteState,
  kReadPage,
  kWritePage,
};

/// Loading and engines begin on all ranks or on none: what each says to it.
struct StartRecord {
  bool failed = false;
  int num_pages = 0;
  char host[64] = {};
  char message[1024] = {};
};
[[nodiscard]] StartRecord start_record();
void set_failure(StartRecord& record, const std::string& message);

/// The largest of a rank's logits in one row, and how much of the softmax over them it has.
struct LogitPeak {
  float largest = 0;
  int32_t id = -1;  // -1: the rank has none
  float share = 0;
  int32_t has_faults = 0;  // of any row of the pass
};

/// A rank's share of one engine: its own backend, and where the sequences of a pass stand.
class EngineShare {
 public:
  /// Throws InputError as make_cpu_backend.
  EngineShare(const Model& model, const SessionOptions& options, Transport& transport);

  [[nodiscard]] Backend& backend() { return *backend_; }
  [[nodiscard]] const RankPlan& plan() const { return plan_; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] bool by_layers() const { return plan_.mode == ClusterMode::kLayers; }
  [[nodiscard]] bool is_last() const { return rank_ + 1 == plan_.num_ranks(); }
  [[nodiscard]] int64_t hidden_dim() const { return hidden_dim_; }
  [[nodiscard]] int64_t head_rows() const { return head_rows_; }

  // On rank 0.
  static void put_sequence(Message& message, const SequenceState& sequence);
  void put_spans(Message& message, std::span<const Span> spans);
  void put_spans(Message& message, std::span<const MtpSpan> spans);

  /// On a follower: does what the message says. `command` and the engine's number have been taken.
  void obey(ClusterCommand command, Message& message);

  // On all ranks.

  /// Behind a pass: notes the faults that any rank has found in `faults`, which has no others, and returns the distinct
  /// experts of all ranks' layers.
  double finish_pass(bool is_mtp, RowFaults& faults);
  /// [ranks][num_rows] of the last compute_logits() or mtp_compute_logits(); faults as in finish_pass().
  void gather_peaks(int num_rows, bool is_mtp, std::vector<LogitPeak>& peaks, RowFaults& faults);

 private:
  SequenceState& take_sequence(Message& message);
  void take_spans(Message& message);
  void take_mtp_spans(Message& message);
  void send_to_root(const float* values, int64_t count);
  [[nodiscard]] const RowFaults& own_faults(bool is_mtp) const {
    return is_mtp ? backend_->mtp_faults() : backend_->faults();
  }
  void gather_faults(const RowFaults& own, RowFaults& faults);

  Transport& transport_;
  const RankPlan& plan_;
  const int rank_;
  const int64_t hidden_dim_, vocab_size_, head_rows_;
  int num_own_expert_layers_ = 0;
  std::unique_ptr<Backend> backend_;
  std::vector<SequenceState> sequences_;  // [parallel], of a follower
  std::vector<Span> spans_;
  std::vector<MtpSpan> mtp_spans_;
  std::vector<TokenId> ids_;
  int64_t num_rows_ = 0;  // of the last forward()
  std::vector<float> hidden_;
  std::vector<const float*> hidden_rows_;
  std::vector<int32_t> rows_;
  std::vector<std::byte> bytes_;
  RowFaults all_faults_;  // of a follower, which has no use for them
  std::vector<LogitPeak> peaks_;
};

/// Checks, on all ranks, that they run the same program over the same file, and loads this one's share. Throws
/// InputError on all ranks if it fails on one. hosts, bandwidths: become each rank's.
[[nodiscard]] Model load_share(Transport& transport, const ClusterMember& member, const std::string& path,
                               LoadOptions options, const ClusterOptions& how, std::vector<std::string>& hosts,
                               std::vector<double>& bandwidths);

[[nodiscard]] std::string host_name();

}  // namespace foretoken
