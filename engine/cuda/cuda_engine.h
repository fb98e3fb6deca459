#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/cuda/cuda_buffers.h"
#include "engine/cuda/cuda_forward_pass.h"
#include "engine/cuda/cuda_model.h"
#include "engine/cuda/cuda_recorder.h"
#include "engine/cuda/cuda_split.h"
#include "engine/cuda/cuda_state.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/device_cycle.h"
#include "engine/model/families/families.h"
#include "engine/model/model.h"
#include "engine/model/shapes.h"
#include "engine/options.h"
#include "engine/sequence/sequence_state.h"
#include "engine/session_memory.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/select/choose_cuda.h"

namespace foretoken::cuda {

/// What the host tells the device before a pass of the trunk; recorded work reads it in device memory.
struct TrunkInput {
  MirroredArena memory;
  CudaPassTable pass;
  Mirrored<int32_t> ids;  // [rows] of a cycle: known tokens, and drafts, negative where the MTP layer's own are to be
};

/// What a cycle tells the device beside that, in the memory of its windows. The cycle puts the windows with the most
/// drafts of the MTP layer first, so that those that go on are always the first ones.
struct CycleInput {
  CudaPassTable steps;              // a span of one row for each window that drafts: its last token so far
  Mirrored<int32_t> step_ids;       // [sequences]
  Mirrored<int32_t> sequences;      // [sequences] the slot of each window's sequence
  Mirrored<int32_t> deferred_rows;  // [rows] where the hidden row of a window that does not draft is kept, or negative
  Mirrored<int32_t> num_drafting;   // [1] windows that draft
};

/// What a cycle tells the host.
struct CycleResult {
  MirroredArena memory;
  Mirrored<int32_t> num_accepted;  // [sequences] of each window
  Mirrored<int32_t> choices;       // [rows] the target's own after each row
  Mirrored<float> shares;          // [rows] how sure the MTP layer was of the draft behind each row
  Mirrored<int32_t> next_draft;    // [sequences] by slot: first draft of the sequence's next window
  Mirrored<float> next_share;      // [sequences]
};

/// The rows that the MTP layer takes in, and those of them that go through the whole layer. Told by the host, or left
/// behind by a cycle's decision.
struct MtpInput {
  MirroredArena memory;
  CudaPassTable rows;             // [pass_rows]
  CudaPassTable outputs;          // [pass_rows]
  Mirrored<int32_t> output_rows;  // [pass_rows] the row of each output
  Mirrored<int32_t> ids;          // [pass_rows]
  Mirrored<int32_t> hidden_rows;  // [pass_rows] where kept hidden rows are
};

/// Memory and work of an engine on the device, shared by the host's calls (CudaBackend) and the cycle (CudaCycle).
/// All device memory is taken in the constructor, after a check that it is there.
class CudaEngine {
 public:
  /// Throws InputError: no device, shapes that the kernels do not have, too little memory.
  /// `team` computes the host's experts of a split.
  CudaEngine(const Model& model, const SessionOptions& options, ThreadTeam& team);
  ~CudaEngine() { shared->detach(stream); }
  CudaEngine(const CudaEngine&) = delete;
  CudaEngine& operator=(const CudaEngine&) = delete;

  /// Everything that puts work into the stream runs in here. Work that throws may leave recordings and memory half
  /// made: then this engine refuses all further work, in one line.
  void attempt(const std::function<void()>& work);

  /// Rows and pages of spans for `input`, on the host's side.
  void set_spans(TrunkInput& input, std::span<const Span> spans);
  /// The trunk over the rows of `input`, which is `windows` (recorded) or `chunks` (launched).
  /// In a split the host computes between the launches, so that this returns with the last layers under way.
  void run_trunk(const TrunkInput& input, bool has_windows);
  /// The next run_trunk() over so many rows of windows replays what is recorded.
  [[nodiscard]] bool is_recorded(int num_rows) const;
  /// Before a pass or a cycle: experts and pages. REQUIRES: the stream is idle.
  void begin_pass();
  // The MTP layer in two steps, launched.

  /// Keys and values of `rows`, whose tokens are `ids` and whose preceding hiddens are `preceding`.
  void mtp_take_in(const CudaRows& rows, const int32_t* ids, const float* preceding);
  /// The rows of `outputs` through the whole layer, to `mtp_hidden`; see CudaForwardPass::keep_rows.
  void mtp_finish(const CudaRows& outputs, const int32_t* from_rows);

  /// The head over these rows: `logits`.
  void run_head(const DeviceRows& rows, int num_rows);
  /// The draft head over these rows: `draft_logits`.
  void run_draft_head(const DeviceRows& rows, int num_rows);
  /// Rows `rows` of `from` side by side, in all forms: where they lie already if they follow each other. Rows that were
  /// gathered stay until the next call.
  [[nodiscard]] DeviceRows rows_together(const DeviceRows& from, std::span<const int32_t> rows);
  /// The choices behind the rows of a pass, whose logits are `from`.
  void choose(const float* from, bool is_draft, int num_rows, const DevicePass& rows, bool by_sequence, int32_t* ids,
              float* shares);

  /// Sends what was changed by set_groups and add_group, if anything was. REQUIRES: the stream is idle.
  void send_groups();
  void set_groups(std::span<const int32_t> groups);
  void add_group(int32_t group);
  [[nodiscard]] std::span<const int32_t> groups() const { return groups_; }

  /// Asks for the numbers that distinct_experts() is made of.
  void fetch_buckets();
  /// U(n) of the last pass, once fetch_buckets() has happened.
  [[nodiscard]] double distinct_experts() const;

  [[nodiscard]] SessionMemory memory() const;
  [[nodiscard]] int64_t vocab_groups() const;
  /// Rows of the windows of all sequences.
  [[nodiscard]] int max_window_rows() const { return options.parallel * options.max_window; }
  /// Hidden rows that are kept for a sequence.
  [[nodiscard]] int64_t deferred_capacity() const { return DeviceCycle::kMaxDeferred + options.max_window; }

  const Model& model;
  const ModelConfig& config;
  const SessionOptions& options;
  const ModelShapes shapes;
  Stream stream;
  const std::shared_ptr<CudaModel> shared;  // with other sessions
  CudaWeights& weights;
  CudaState state;
  CudaBuffers buffers;
  Recorder recorder;
  CudaForwardPass pass;
  const FamilyText<CudaForwardPass> text;
  std::unique_ptr<CudaSplit> split;  // nullptr: everything is on the device

  // Tables and tokens, in both memories; written by the host only while the stream is idle.
  TrunkInput windows;  // of passes that are all windows; room for max_window_rows()
  TrunkInput chunks;   // of the others; room for pass_rows
  CycleInput cycle;
  CycleResult result;
  MtpInput mtp;

  // In device memory.
  float* mtp_input = nullptr;        // [pass_rows, hidden_dim] what the MTP layer takes in, if it has to be gathered
  float* deferred_hidden = nullptr;  // [sequences, deferred_capacity(), hidden_dim] of tokens that wait
  float* draft_hidden = nullptr;     // [sequences, hidden_dim] where a sequence's chain of drafts goes on; nullptr: one
  SamplingScalars* sampling = nullptr;  // [sequences]
  DeviceRows hidden, mtp_hidden;        // [pass_rows, hidden_dim] after the final norm, after shared_head_norm
  float* logits = nullptr;              // [logits_rows, vocab_size]
  float* draft_logits = nullptr;        // [logits_rows, 16 * vocab_groups()]
  CudaForwardPass::Groups draft_groups;

 private:
  void check_memory() const;

  std::vector<int32_t> groups_;  // rising
  bool groups_changed_ = true;
  bool failed_ = false;
  int32_t* device_groups_ = nullptr;  // [vocab_groups + 1]: their number, then the groups
  float* choose_work_ = nullptr;
  DeviceRows gathered_;  // [logits_rows, hidden_dim]
  struct {
    MirroredArena memory;
    Mirrored<int32_t> rows;  // [logits_rows]
  } gather_;
  DeviceArena io_memory_;
  PinnedBuffer staged_groups_, num_buckets_;
  std::optional<Blas> blas_;     // with options.cublas, if the model has matrices for it
  std::vector<Recorded> trunk_;  // [max_window_rows() + 1]
};

}  // namespace foretoken::cuda
