#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "engine/options.h"
#include "engine/sequence/float_rows.h"
#include "engine/sequence/kv_cache.h"
#include "engine/sequence/recurrent_state.h"
#include "engine/text/tokenizer.h"
#include "kernels/attention/rope.h"
#include "kernels/rows/row_buffer.h"
#include "kernels/threads/row_items.h"
#include "kernels/threads/thread_team.h"
#include "kernels/threads/work_profile.h"
#include "moe/moe.h"

namespace foretoken {

/// Work buffers of a pass over up to max_rows rows, used by one layer after the other. Shapes are [max_rows, ...].
struct PassBuffers {
  PassBuffers(const ModelConfig& config, int max_rows, int max_window, int64_t ctx_size, int num_threads);
  [[nodiscard]] size_t size_bytes() const;

  RowBuffer residual;  // [hidden_dim]
  RowBuffer normed;    // [hidden_dim] what a layer's matrices read
  FloatRows mixed;     // [hidden_dim] what attention or delta net adds to the residual
  // Attention.
  FloatRows q, k, v;   // [heads * head_dim], q with its gates between
  RowBuffer attended;  // [num_heads * head_dim]
  FloatRows queries;   // [num_heads * head_dim] after norm and rotation
  FloatRows partials;  // [max_window * num_heads * splits, head_dim]: splits computed apart
  // Delta net.
  RecurrentState::Slot wide;  // for passes wider than a window
  FloatRows z;                // [value_dim]
  FloatRows b, alpha;         // [num_value_heads]
  RowBuffer delta_out;        // [value_dim]
  FloatRows delta_scratch;    // [num_threads, state_size * columns]
  // Feed-forward.
  MoeScratch moe;
};

/// One pass of rows through layers: who computes, where the rows stand, and the operations that a model family is
/// written in. Every operation works on rows [0, num_rows) and gives each row the bits it would have alone.
class ForwardPass {
 public:
  /// `profile` may be nullptr.
  ForwardPass(const ModelConfig& config, const SessionOptions& options, ThreadTeam& team, const RopeTable& rope,
              PassBuffers& buffers, WorkProfile* profile);

  /// The next operations work on `num_rows` rows at positions [position, position + num_rows). is_mtp: of the MTP layer
  /// (for the profile).
  void begin(int num_rows, int64_t position, bool is_mtp = false);
  [[nodiscard]] int num_rows() const { return num_rows_; }

  /// residual[r] = row ids[r] of `embed`.
  void embed(const MatrixView& embed, std::span<const TokenId> ids);

  /// normed = rms_norm(residual) * weight, in the forms that the listed matrices read.
  void norm(const float* weight, unsigned blocks);
  /// residual += mixed, then norm().
  void add_and_norm(const float* weight, unsigned blocks);
  /// to = rms_norm(residual) * weight, in the forms of `blocks`.
  void norm_to(const float* weight, unsigned blocks, RowBuffer& to);

  /// mixed = attention of `normed` over the layer's cache, whose rows at this pass's positions are written first.
  void attention(const AttentionWeights& weights, KvCache& cache, int cache_layer);
  /// The first half of attention(): keys and values of `normed` into the cache.
  void store_keys_and_values(const AttentionWeights& weights, KvCache& cache, int cache_layer);
  /// The second half: mixed = attention of `normed`, whose keys and values are in the cache.
  void attend_stored(const AttentionWeights& weights, const KvCache& cache, int cache_layer);

  /// mixed = gated delta net of `normed`; brings the layer's state forward (see RecurrentState).
  void delta_net(const DeltaNetWeights& weights, RecurrentState& state, int recurrent_idx, bool in_slot);

  /// residual += feed-forward part of `normed`.
  void feed_forward(const MoeWeights& weights);

  /// One or more matrices over the same rows, in one parallel loop: output[r] = matrix . input[r].
  struct Projection {
    const MatrixView& matrix;
    FloatRows& output;
  };
  void project(Work work, const RowBuffer& input, std::initializer_list<Projection> projections);

  /// Calls body(row, thread_idx) for each row.
  template <class Body>
  void for_rows(Body&& body, Work work = Work::kRows) {
    profiled_rows(team_, profile_, num_rows_, config_.hidden_dim, [&](int64_t r, int thread_idx) {
      body(r, thread_idx);
      return WorkDone{is_mtp_ ? Work::kMtpLayer : work, 0};
    });
  }

  /// A parallel loop whose body returns WorkDone; `items` as in profiled_for.
  template <class Items, class Body>
  void for_items(const Items& items, Body&& body) {
    profiled_for(team_, profile_, items, [&](int64_t item, int thread_idx) {
      const WorkDone done = body(item, thread_idx);
      return WorkDone{is_mtp_ ? Work::kMtpLayer : done.work, done.bytes};
    });
  }

  /// Distinct experts read since the last call, mean over the layers that have experts, in units of top-k.
  [[nodiscard]] double take_distinct_experts();

  [[nodiscard]] PassBuffers& buffers() { return buffers_; }

 private:
  void store_row(const AttentionWeights& weights, KvCache& cache, int cache_layer, int64_t r);
  void rotate_queries(const AttentionWeights& weights, int64_t r);
  void attend_and_output(const AttentionWeights& weights, const KvCache& cache, int cache_layer);
  void attend(const KvCache& cache, int cache_layer);
  void attend_by_rows(const KvCache& cache, int cache_layer);
  void attend_by_splits(const KvCache& cache, int cache_layer, int64_t num_splits);

  const ModelConfig& config_;
  const Isa isa_;
  const MoeVerify verify_;
  ThreadTeam& team_;
  const RopeTable& rope_;
  PassBuffers& buffers_;
  WorkProfile* const profile_;
  int num_rows_ = 0;
  bool is_mtp_ = false;
  int64_t position_ = 0;
  int max_window_ = 1;
  int64_t distinct_experts_ = 0;
  int64_t expert_layers_ = 0;
  std::vector<RowView> inputs_;
  std::vector<RowItems::Matrix> projected_;
  RowItems items_;
  std::vector<std::vector<float>> attention_scratch_;  // by thread
};

/// Quantised forms that a matrix's input needs, as bits: 1 for blocks of 32, 2 for blocks of 256.
[[nodiscard]] unsigned block_bits(std::initializer_list<const MatrixView*> matrices);

/// Makes the forms of `blocks` for row r.
void quantise_forms(Isa isa, RowBuffer& rows, int64_t r, unsigned blocks);

/// The trunk of one family over the rows whose embeddings are in `residual`; leaves residual complete (before the final
/// norm).
void run_qwen35_trunk(ForwardPass& pass, const ModelWeights& weights, KvCache& cache, RecurrentState& state,
                      bool in_slot);
void run_qwen3moe_trunk(ForwardPass& pass, const ModelWeights& weights, KvCache& cache);

}  // namespace foretoken
