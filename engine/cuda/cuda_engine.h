#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/cuda/cuda_buffers.h"
#include "engine/cuda/cuda_forward_pass.h"
#include "engine/cuda/cuda_io.h"
#include "engine/cuda/cuda_model.h"
#include "engine/cuda/cuda_recorder.h"
#include "engine/cuda/cuda_split.h"
#include "engine/cuda/cuda_state.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/model/families/families.h"
#include "engine/model/model.h"
#include "engine/model/shapes.h"
#include "engine/options.h"
#include "engine/sequence/sequence_state.h"
#include "engine/session_memory.h"
#include "kernels/cuda/cuda_runtime_wrap.h"

namespace foretoken::cuda {

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
  /// In a split the host computes its experts in here; this returns with the last layers under way.
  void run_trunk(const TrunkInput& input, bool has_windows);
  /// The next run_trunk() over so many rows of windows replays what is recorded.
  [[nodiscard]] bool is_recorded(int num_rows) const;
  /// Before a pass or a cycle: experts and pages. REQUIRES: the stream is idle.
  void begin_pass(bool has_chunks);
  // The MTP layer in two steps, launched.

  /// Keys and values of `rows`, whose tokens are `ids` and whose preceding hiddens are `preceding`.
  void mtp_take_in(const CudaRows& rows, const int32_t* ids, const float* preceding);
  /// The rows of `outputs` through the whole layer, to `io.mtp_hidden`; see CudaForwardPass::keep_rows.
  void mtp_finish(const CudaRows& outputs, const int32_t* from_rows);

  /// The head over these rows: `io.logits`.
  void run_head(const DeviceRows& rows, int num_rows);
  /// The draft head over these rows: `io.draft_logits`.
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
  /// Rises when send_groups() has changed how large the launches of the draft head are: what was recorded of it before is
  /// out of date.
  [[nodiscard]] int num_draft_heads() const { return num_draft_heads_; }

  /// Asks for the numbers that distinct_experts() is made of.
  void fetch_buckets();
  /// U(n) of the last pass, once fetch_buckets() has happened.
  [[nodiscard]] double distinct_experts() const;

  [[nodiscard]] SessionMemory memory() const;
  [[nodiscard]] int64_t vocab_groups() const;
  /// Rows of the windows of all sequences.
  [[nodiscard]] int max_window_rows() const { return options.parallel * options.max_window; }

  const Model& model;
  const ModelConfig& config;
  const SessionOptions& options;
  const ModelShapes shapes;
  Stream stream;
  const std::shared_ptr<CudaModel> shared;  // with other sessions
  CudaWeights& weights;
  CudaState state;
  CudaBuffers buffers;
  CudaIo io;
  Recorder recorder;
  CudaForwardPass pass;
  const FamilyText<CudaForwardPass> text;
  std::unique_ptr<CudaSplit> split;  // nullptr: everything is on the device

  CudaForwardPass::Groups draft_groups;

 private:
  void check_memory() const;

  std::vector<int32_t> groups_;  // rising
  bool groups_changed_ = true;
  int num_draft_heads_ = 0;
  bool failed_ = false;
  PinnedBuffer staged_groups_, num_buckets_;
  std::optional<Blas> blas_;     // with options.cublas, if the model has matrices for it
  std::vector<Recorded> trunk_;  // [max_window_rows() + 1]
};

}  // namespace foretoken::cuda
