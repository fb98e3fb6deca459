#pragma once

#include <cstdint>
#include <vector>

#include "engine/cuda/cuda_arena.h"
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

/// Work memory of a pass over up to pass_rows(options) rows, used by one layer after the other; see PassBuffers.
struct CudaBuffers {
  CudaBuffers(const ModelConfig& config, const CudaWeights& weights, const SessionOptions& options);
  CudaBuffers(const CudaBuffers&) = delete;
  CudaBuffers& operator=(const CudaBuffers&) = delete;

  float* residual = nullptr;    // [hidden_dim]
  DeviceRows normed;            // [hidden_dim]
  float* mixed = nullptr;       // [hidden_dim]
  const float* rope = nullptr;  // [ctx_size][cos rope_dim/2 | sin rope_dim/2]
  // Attention.
  float *q = nullptr, *k = nullptr, *v = nullptr, *queries = nullptr;
  float* parts = nullptr;  // of the rows of all windows
  DeviceRows attended;
  // Delta net.
  float *raw = nullptr, *z = nullptr, *b = nullptr, *alpha = nullptr;
  DeltaSlot chunk;  // of prompt chunks
  DeviceRows delta_out;
  // Feed-forward.
  float *router_logits = nullptr, *weights = nullptr, *shared_weight = nullptr;
  int32_t* experts = nullptr;
  int32_t *bucket_experts = nullptr, *bucket_begins = nullptr, *bucket_slots = nullptr;
  int32_t* num_buckets = nullptr;  // [layers + 1] of each layer's last pass; the MTP layer's is the last
  DeviceRows inner, shared_inner;  // [max_rows * top_k, expert_dim], [max_rows, shared_dim]
  float* up = nullptr;             // gate and up of different types: up's rows before they meet
  float* slots = nullptr;          // [max_rows * top_k, hidden_dim] what each slot adds
  float* shared = nullptr;         // [max_rows, hidden_dim]
  // MTP layer.
  DeviceRows join;                // [2 * hidden_dim] normed embedding, normed hidden
  float* mtp_residual = nullptr;  // [hidden_dim] of the rows that go through the whole layer
  BlasWork blas;                  // its library is set later, if its workspace is wanted (not nullptr)

  DeviceArena memory;
};

/// The rows that launches are made for.
struct CudaRows {
  int max_rows = 0;         // launches have room for so many
  DevicePass pass;          // whose they are and where they stand
  bool has_windows = true;  // among its spans
  bool has_chunks = false;
  bool exact = true;  // there are max_rows of them; otherwise only the device knows how many
};

/// The operations that a model is written in, as launches on one stream; the counterpart of ForwardPass. Nothing here
/// waits or allocates, so all of it can be recorded in a graph.
///
/// What a layer's part computes is added to the residual by the norm that follows (launches are what a window's time
/// goes to): `pending_` says what that is.
class CudaForwardPass {
 public:
  CudaForwardPass(const ModelConfig& config, const SessionOptions& options, const Stream& stream, CudaBuffers& buffers,
                  const CudaState& state)
      : config_(config), options_(options), stream_(stream), buffers_(buffers), state_(state) {}

  /// The trunk over the tokens `ids` (in device memory), up to `hidden` after the final norm, in all its forms.
  void trunk(const CudaWeights& weights, const CudaRows& rows, const int32_t* ids, const DeviceRows& hidden);

  // The same in steps, for a split: begin_trunk, then the layers in order, each by one of layers() and the pair of
  // layer_to_router() and device_experts(); end_trunk.
  void begin_trunk(const CudaWeights& weights, const CudaRows& rows, const int32_t* ids);
  /// Layers [begin, end), whole.
  void layers(const CudaWeights& weights, int begin, int end);
  /// One layer up to the choice of its experts: buffers.normed and buffers.experts.
  void layer_to_router(const CudaWeights& weights, int layer_idx);
  /// The rest of it but for slots of experts that are not on the device: they have to be in buffers.slots before the
  /// next step.
  void device_experts(const CudaWeights& weights, int layer_idx);
  void end_trunk(const CudaWeights& weights, const DeviceRows& hidden);

  // The MTP layer, as Engine::mtp_forward, in two steps.

  /// Keys and values of `rows`, whose tokens are `ids` and whose preceding hiddens are `hidden`.
  void mtp_take_in(const CudaMtp& weights, const CudaRows& rows, const int32_t* ids, const float* hidden);
  /// Of the rows taken in, those that go through the whole layer, to `to`: row r is row from_rows[r] of them (in device
  /// memory), or row r where from_rows is nullptr.
  void mtp_outputs(const CudaMtp& weights, const CudaRows& outputs, const int32_t* from_rows, const DeviceRows& to);

  /// Brings the recurrent states of the pass's spans up to their committed ends: spans of no rows, as chunks.
  void settle(const CudaWeights& weights, const DevicePass& spans);

  /// logits[r] [stride] = matrix . x[r], for num_rows rows.
  void head(const DeviceMatrix& matrix, const DeviceRows& x, int num_rows, float* logits);
  /// The same for groups of rows of the matrix; see MatmulDesc.
  struct Groups {
    const int32_t* groups = nullptr;
    const int32_t* count = nullptr;
    int64_t capacity = 0;
  };
  void draft_head(const DeviceMatrix& matrix, const Groups& groups, const DeviceRows& x, int num_rows, float* logits);

 private:
  enum class Pending { kNothing, kMixed, kExperts, kDense };

  void begin(const CudaRows& rows, float* residual);
  [[nodiscard]] const int32_t* device_num_rows() const { return rows_.exact ? nullptr : &rows_.pass.counts->num_rows; }
  void embed(const DeviceMatrix& matrix, const int32_t* ids);
  /// The pending addition, then to = rms_norm(residual) * weight, in the forms that `to` has.
  void norm(const float* weight, const DeviceRows& to);
  /// y = matrix . x for all rows; with `up`, of the same type and shape, silu(matrix . x) * (up . x).
  void project(const DeviceMatrix& matrix, const DeviceRows& x, float* y, const DeviceMatrix& up = {});
  void store_keys_and_values(const CudaAttention& weights, const DeviceKv& kv);
  void attend_stored(const CudaAttention& weights, const DeviceKv& kv);
  /// What keys, values and queries are prepared with, whichever of them.
  [[nodiscard]] PrepareAttentionDesc preparation(const DeviceKv& kv) const;
  void attend(const CudaAttention& weights, const DeviceKv& kv);
  void delta_net(const CudaDeltaNet& weights, const CudaState::Recurrent& state);
  /// Convolution and recurrence alone.
  void advance(const CudaDeltaNet& weights, const CudaState::Recurrent& state);

  /// A layer before its feed-forward part.
  void mix(const CudaWeights& weights, int layer_idx);
  void feed_forward(const CudaMoe& weights, int layer_idx);
  void route(const CudaMoe& weights);
  void routed_experts(const CudaMoe& weights, int layer_idx);
  [[nodiscard]] GroupDesc group_by_expert(const CudaMoe& weights, int first_row, int num_rows, int32_t* num_buckets);
  void run_buckets(const CudaMoe& weights, const GroupDesc& group, int first_row);
  void shared_expert(const CudaMoe& weights);
  void quantise(const DeviceRows& rows, int num_rows);

  const ModelConfig& config_;
  const SessionOptions& options_;
  const Stream& stream_;
  CudaBuffers& buffers_;
  const CudaState& state_;
  CudaRows rows_;
  float* residual_ = nullptr;
  Pending pending_ = Pending::kNothing;
  ExpertSums sums_;  // what is pending
};

/// Forms (RowMemory::kBy32, kBy256) that a matrix's input needs; 0 for no matrix.
[[nodiscard]] unsigned input_forms(const DeviceMatrix& matrix);
[[nodiscard]] unsigned input_forms(const CudaMoe& weights);

/// Throws InputError if the kernels do not have the model's shapes.
void check_shapes(const Model& model);

}  // namespace foretoken::cuda
