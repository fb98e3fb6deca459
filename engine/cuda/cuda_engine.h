#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/cuda/cuda_forward_pass.h"
#include "engine/cuda/cuda_model.h"
#include "engine/cuda/cuda_split.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "engine/sequence/sequence_state.h"
#include "engine/session_memory.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/select/choose_cuda.h"

namespace foretoken::cuda {

/// Work that is done over and over. The first time it is launched piece by piece, which also brings its kernels onto
/// the device (that cannot be done while a graph is recorded); the second time it is recorded, and from then on
/// replayed as one launch.
class Recorded {
 public:
  void run(const Stream& stream, const std::function<void()>& work);
  /// The next run() is nothing but one launch.
  [[nodiscard]] bool is_recorded() const { return !graph_.empty(); }

 private:
  Graph graph_;
  bool ran_once_ = false;
};

/// Widest window of a device cycle.
inline constexpr int kMaxWindow = 32;

/// What the host tells the device before a pass or a cycle; recorded work reads it in device memory.
struct Command {
  PassScalars window;             // of the running pass of the trunk
  PassScalars steps[kMaxWindow];  // of the chained step that makes draft i; [0] is not used
  int32_t last = 0;               // the known token
  int32_t deferred_row = 0;       // where the hidden row of a window without drafts is put by
  int32_t forced[kMaxWindow];     // drafts to take instead of the MTP layer's, or -1
};

/// What a cycle tells the host.
struct CycleResult {
  int32_t num_accepted = 0;
  int32_t choices[kMaxWindow];  // the target's own after each row of the window
  float shares[kMaxWindow];     // how sure the MTP layer was of each draft
  int32_t next_draft = 0;       // first draft of the next window
  float next_share = 0;
};

/// Scalars of a sequence's next pass of the trunk.
[[nodiscard]] inline PassScalars window_scalars(const SequenceState& sequence, int num_rows) {
  const SlotTurn& turn = sequence.turn;
  return {num_rows, static_cast<int32_t>(sequence.length), turn.old_slot, turn.kept, turn.replay};
}

/// Memory and work of a session on the device, shared by the host's calls (CudaBackend) and the cycle (CudaCycle).
/// All device memory is taken in the constructor, after a check that it is there.
class CudaEngine {
 public:
  /// Throws InputError: no device, shapes that the kernels do not have, too little memory.
  /// `team` computes the host's experts of a split.
  CudaEngine(const Model& model, const SessionOptions& options, ThreadTeam& team);
  ~CudaEngine() { shared->detach(stream); }
  CudaEngine(const CudaEngine&) = delete;
  CudaEngine& operator=(const CudaEngine&) = delete;

  /// The trunk over the first num_rows of `ids`; `command->window` says where. Windows are recorded, chunks launched.
  /// In a split the host computes between them, so that this returns with the last layers under way.
  void run_trunk(int num_rows, bool in_slot);
  /// The next run_trunk() over so many rows of a window replays what is recorded.
  [[nodiscard]] bool is_recorded(int num_rows) const;
  /// Before a pass or a cycle. REQUIRES: the stream is idle.
  void begin_pass() { shared->begin_pass(stream); }
  /// The head over `hidden` rows [row_begin, + num_rows): `logits`.
  void run_head(int row_begin, int num_rows);
  /// The draft head over `mtp_hidden` rows [row_begin, + num_rows): `draft_logits`.
  void run_draft_head(int row_begin, int num_rows);
  /// Choices of num_rows rows of `from`; row r's stands at *position + offset + r.
  void choose(const float* from, bool is_draft, int num_rows, const int32_t* position, int offset, int32_t* ids,
              float* shares);

  /// Sends what was changed by set_groups and add_group, if anything was. REQUIRES: the stream is idle.
  void send_groups();
  void set_groups(std::span<const int32_t> groups);
  void add_group(int32_t group);
  [[nodiscard]] std::span<const int32_t> groups() const { return groups_; }

  /// Forgets the recurrent states.
  void reset();

  [[nodiscard]] SessionMemory memory() const;
  /// U(n) of the last pass, from the numbers of buckets in `host_buckets`.
  [[nodiscard]] double distinct_experts() const;
  [[nodiscard]] int64_t vocab_groups() const;

  const Model& model;
  const ModelConfig& config;
  const SessionOptions& options;
  Stream stream;
  const std::shared_ptr<CudaModel> shared;  // with other sessions
  CudaWeights& weights;
  CudaState state;
  CudaBuffers buffers;
  CudaForwardPass pass;
  std::unique_ptr<CudaSplit> split;  // nullptr: everything is on the device

  // In device memory.
  int32_t* ids = nullptr;  // [max(pass_rows, kMaxWindow)] tokens of the running pass; of a cycle: last, then the drafts
  int32_t* follow_ids = nullptr;    // [pass_rows]
  float* follow_hidden = nullptr;   // [pass_rows, hidden_dim] from the host, or put by
  FollowScalars* follow = nullptr;  // of the running pass of the MTP layer
  Command* command = nullptr;
  CycleResult* result = nullptr;
  SamplingScalars* sampling = nullptr;
  DeviceRows hidden, mtp_hidden;  // [pass_rows, hidden_dim] after the final norm, after shared_head_norm
  float* logits = nullptr;        // [logits_rows, vocab_size]
  float* draft_logits = nullptr;  // [logits_rows, 16 * vocab_groups()]
  CudaForwardPass::Groups draft_groups;

  // In pinned host memory, written only while the stream is idle.
  struct Host {
    PinnedBuffer command, result, follow, sampling, ids, groups, num_buckets;
  } host;

 private:
  void check_memory() const;
  void run_split_trunk(int num_rows, bool in_slot);

  std::vector<int32_t> groups_;  // rising
  bool groups_changed_ = true;
  int32_t* device_groups_ = nullptr;  // [vocab_groups + 1]: their number, then the groups
  float* choose_work_ = nullptr;
  DeviceArena io_memory_;
  std::optional<Blas> blas_;                        // with options.cublas, if the model has matrices for it
  std::vector<Recorded> trunk_;                     // [max_window + 1]
  std::vector<std::vector<Recorded>> split_trunk_;  // [max_window + 1][2 * split layers + 1] the trunk in pieces
};

}  // namespace foretoken::cuda
