#pragma once

#include <cstdint>
#include <initializer_list>

#include "engine/cuda/cuda_buffers.h"
#include "engine/cuda/cuda_recorder.h"
#include "engine/cuda/cuda_state.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/options.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/cuda/cuda_pass.h"
#include "kernels/delta_net/delta_net_cuda.h"
#include "kernels/matmul/matmul_cuda.h"
#include "kernels/rows/rms_norm_cuda.h"
#include "kernels/select/router_cuda.h"

namespace foretoken::cuda {

class CudaSplit;

/// The rows that launches are made for.
struct CudaRows {
  int max_rows = 0;         // launches have room for so many
  DevicePass pass;          // whose they are and where they stand
  bool has_windows = true;  // among its spans
  bool has_chunks = false;
  bool exact = true;  // there are max_rows of them; otherwise only the device knows how many
};

/// The operations that a model family is written in, as launches on one stream; the counterpart of ForwardPass, where
/// their words are explained. Nothing here waits or allocates, so all of it can be recorded in a graph, beside which the
/// host has a step for each layer with experts of its own.
///
/// What a layer's part computes is added to the residual by the norm that follows (launches are what a window's time
/// goes to): `pending_` says what that is.
class CudaForwardPass {
 public:
  using Matrix = DeviceMatrix;
  using Ids = const int32_t*;   // [max_rows], in device memory as all that follows
  using Hidden = const float*;  // [max_rows, hidden_dim]
  using Rows = DeviceRows;

  CudaForwardPass(const ModelConfig& config, const SessionOptions& options, const Stream& stream, CudaBuffers& buffers,
                  const CudaState& state, Recorder& recorder)
      : config_(config), options_(options), stream_(stream), buffers_(buffers), state_(state), recorder_(recorder) {}

  /// Who computes the experts that are not on the device; nullptr: all are.
  void set_split(CudaSplit* split) { split_ = split; }

  /// The next operations work on these rows.
  void begin(const CudaRows& rows);
  /// The pass of the MTP layer goes on with these of its rows alone: row r is row from[r] (in device memory), or row r
  /// where `from` is nullptr.
  void keep_rows(const CudaRows& rows, const int32_t* from);

  void embed(const DeviceMatrix& matrix, Ids ids);
  void join(const CudaMtp& mtp, Hidden hidden);
  void norm(const float* weight, unsigned forms) { norm_to(weight, forms, buffers_.normed); }
  void add_and_norm(const float* weight, unsigned forms) { norm(weight, forms); }  // norms add what is pending
  void norm_moved(const float* weight, unsigned forms);
  void norm_to(const float* weight, unsigned forms, const DeviceRows& to);
  void attention(const CudaAttention& weights, int kv_layer);
  void store_keys_and_values(const CudaAttention& weights, int kv_layer);
  void attend_stored(const CudaAttention& weights, int kv_layer);
  void delta_net(const CudaDeltaNet& weights, int recurrent_idx);
  void experts(const CudaMoe& weights, int layer_idx);
  void dense(const CudaDense& weights);

  template <class Part>
  [[nodiscard]] static unsigned inputs_of(const Part& weights) {
    return input_forms(weights);
  }

  /// Brings the recurrent states of the pass's spans up to their committed ends: spans of no rows, as chunks.
  void settle(const CudaWeights& weights, const DevicePass& spans);

  /// logits[r] [stride] = matrix . x[r], for num_rows rows.
  void head(const DeviceMatrix& matrix, const DeviceRows& x, int num_rows, float* logits);
  /// The same for groups of rows of the matrix; see MatmulDesc.
  struct Groups {
    const int32_t* groups = nullptr;
    const int32_t* count = nullptr;
    int64_t capacity = 0;  // values of a row: room for all groups
    int64_t launched = 0;  // values that a launch has blocks for: of all groups that there are, and some more
  };
  void draft_head(const DeviceMatrix& matrix, const Groups& groups, const DeviceRows& x, int num_rows, float* logits);

 private:
  enum class Pending { kNothing, kMixed, kExperts, kDense };

  [[nodiscard]] const int32_t* device_num_rows() const { return rows_.exact ? nullptr : &rows_.pass.counts->num_rows; }
  /// y = matrix . x for all rows; with `up`, of the same type and shape, silu(matrix . x) * (up . x).
  void project(const DeviceMatrix& matrix, const DeviceRows& x, float* y, const DeviceMatrix& up = {});
  /// The same of several matrices, each into rows of its own, in as few launches as their types allow.
  void project_together(std::initializer_list<MatmulOutput> outputs, const DeviceRows& x);
  [[nodiscard]] MatmulDesc projection(const DeviceMatrix& matrix, const DeviceRows& x, float* y) const;
  /// What keys, values and queries are prepared with, whichever of them.
  [[nodiscard]] PrepareAttentionDesc preparation(const CudaAttention& weights, int kv_layer, bool queries,
                                                 bool keys_and_values) const;
  void attend(const CudaAttention& weights, int kv_layer);
  /// Convolution and recurrence alone.
  void advance(const CudaDeltaNet& weights, const CudaState::Recurrent& state);

  /// Choices of all rows, and the buckets that they make, if experts are grouped and some are here.
  void route(const CudaMoe& weights, int layer_idx);
  void routed_experts(const CudaMoe& weights, int layer_idx);
  /// The slots of rows [first_row, + num_rows) by expert. Slots count from first_row's.
  [[nodiscard]] GroupDesc grouping(const CudaMoe& weights, int layer_idx, int first_row, int num_rows) const;
  /// with_shared: the shared expert is one more bucket; its rows follow those of the slots.
  void run_buckets(const CudaMoe& weights, const GroupDesc& group, int first_row, bool with_shared);
  /// Whether the shared expert can be a bucket beside the others: of their types and shapes.
  [[nodiscard]] bool joins_buckets(const CudaMoe& weights) const;
  /// buffers.shared = the shared expert, or a dense part, of `normed`.
  void shared_or_dense(const CudaDense& weights);
  void quantise(const DeviceRows& rows, int num_rows);

  const ModelConfig& config_;
  const SessionOptions& options_;
  const Stream& stream_;
  CudaBuffers& buffers_;
  const CudaState& state_;
  Recorder& recorder_;
  CudaSplit* split_ = nullptr;
  CudaRows rows_;
  float* residual_ = nullptr;
  bool rows_moved_ = false;  // by keep_rows(), since begin()
  Pending pending_ = Pending::kNothing;
  ExpertSums sums_;  // what is pending
};

/// Throws InputError if the kernels do not have the model's shapes.
void check_shapes(const Model& model, const ModelShapes& shapes);

}  // namespace foretoken::cuda
