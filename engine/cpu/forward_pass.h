#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "engine/cpu/pass_peers.h"
#include "engine/model/model_config.h"
#include "engine/model/shapes.h"
#include "engine/model/weights.h"
#include "engine/options.h"
#include "engine/row_faults.h"
#include "engine/sequence/float_rows.h"
#include "engine/sequence/kv_pages.h"
#include "engine/sequence/recurrent_state.h"
#include "engine/sequence/rope_tables.h"
#include "engine/sequence/sequence_state.h"
#include "engine/text/tokenizer.h"
#include "kernels/delta_net/delta_net.h"
#include "kernels/rows/row_buffer.h"
#include "kernels/threads/row_items.h"
#include "kernels/threads/thread_team.h"
#include "moe/moe.h"
#include "moe/work.h"

namespace foretoken {

/// Work buffers of a pass over up to max_rows rows, used by one layer after the other: the widths are the largest of
/// all layers. Shapes are [max_rows, ...].
struct PassBuffers {
  PassBuffers(const ModelShapes& shapes, int max_rows, int max_window, int64_t ctx_size, int num_threads);
  [[nodiscard]] size_t size_bytes() const;

  RowBuffer residual;  // [hidden_dim]
  RowBuffer normed;    // [hidden_dim] what a layer's matrices read
  FloatRows mixed;     // [hidden_dim] what attention or delta net adds to the residual
  // Attention.
  int num_heads = 0;                            // the most query heads of a layer
  FloatRows q, k, v;                            // [heads * head_dim], q with its gates between
  RowBuffer attended;                           // [num_heads * head_dim]
  FloatRows queries;                            // [num_heads * head_dim] after norm and rotation
  FloatRows partials;                           // [partial_queries, head_dim]: splits computed apart
  std::vector<AttentionQuery> partial_queries;  // [max_window * num_heads * splits of a whole context]
  // Delta net.
  RecurrentState::Bank chunk;  // what a window would leave in its sequence's bank: of prompt chunks
  FloatRows z;                 // [value_dim]
  FloatRows b, alpha;          // [num_value_heads]
  RowBuffer delta_out;         // [value_dim]
  FloatRows delta_scratch;     // [num_threads, state_size * columns]
  // Feed-forward.
  MoeScratch moe;
  // MTP layer.
  RowBuffer joined;  // [2 * hidden_dim] normed embedding, normed hidden
};

/// One pass of rows through layers: who computes, where the rows stand, and the operations that a model family is
/// written in. Every operation works on rows [0, num_rows) of all spans and gives each row the bits it would have
/// alone.
class ForwardPass {
 public:
  using Matrix = MatrixView;
  using Ids = std::span<const TokenId>;          // [num_rows]
  using Hidden = std::span<const float* const>;  // [num_rows] of [hidden_dim] each
  using Rows = RowBuffer;

  /// `profile` may be nullptr, and so may `peers`: the processes that have the other shares of the weights.
  ///
  /// Numbers that are not finite are noted where they are stored or would be lost (the sum of squares of every norm,
  /// the rows of the KV cache, what a sigmoid, an exponential or a softmax is made of); everywhere else they go on into
  /// the next such place. An infinity that is lost elsewhere would be our own bug.
  ForwardPass(const ModelConfig& config, const SessionOptions& options, ThreadTeam& team, const RopeTables& ropes,
              KvPages& kv, RecurrentState& recurrent, PassBuffers& buffers, WorkProfile* profile,
              PassPeers* peers = nullptr);

  /// The next operations work on the rows of these spans. Row r is row fault_rows[r] of `faults`, or r itself where
  /// fault_rows is empty; both stay where they are during the pass. is_mtp: of the MTP layer.
  void begin(std::span<const Span> spans, RowFaults& faults, std::span<const int> fault_rows = {}, bool is_mtp = false);
  [[nodiscard]] int num_rows() const { return num_rows_; }
  /// The residual comes from another process, which has computed the layers before this one.
  void continue_at(int layer);

  /// The pass of the MTP layer goes on with these of its rows alone: rows `from`, rising, move to the front, and have
  /// `spans`.
  void keep_rows(std::span<const Span> spans, std::span<const int> from);

  /// residual[r] = row ids[r] of `embed`.
  void embed(const MatrixView& embed, Ids ids);
  /// mixed = join . [rms_norm(residual) * embed_norm; rms_norm(hidden) * hidden_norm], residual = 0.
  void join(const MtpWeights& mtp, Hidden hidden);

  /// normed = rms_norm(residual) * weight, in the forms that the listed matrices read.
  void norm(const float* weight, unsigned blocks);
  /// residual += mixed, then norm().
  void add_and_norm(const float* weight, unsigned blocks);
  /// norm() of rows that keep_rows() has moved; the others have been normed before.
  void norm_moved(const float* weight, unsigned blocks);
  /// to = rms_norm(residual) * weight, in the forms of `blocks`.
  void norm_to(const float* weight, unsigned blocks, RowBuffer& to);

  /// mixed = attention of `normed` over the layer's keys and values, those at this pass's positions stored first.
  void attention(const AttentionWeights& weights, int kv_layer);
  /// The first half of attention(): stores the keys and values of `normed`.
  void store_keys_and_values(const AttentionWeights& weights, int kv_layer);
  /// The second half: mixed = attention of `normed`, whose keys and values are stored.
  void attend_stored(const AttentionWeights& weights, int kv_layer);

  /// mixed = gated delta net of `normed`; brings the layer's states forward (see RecurrentState).
  void delta_net(const DeltaNetWeights& weights, int recurrent_idx);

  /// Brings a sequence's recurrent states up to its committed end: nothing is left to replay.
  void settle(SequenceState& sequence);

  // residual += the feed-forward part of `normed`. The last operation of a layer.
  void experts(const MoeWeights& weights, int layer_idx);
  void dense(const DenseWeights& weights);

  /// Forms of `normed` that a layer's part reads; see norm().
  [[nodiscard]] static unsigned inputs_of(const AttentionWeights& weights);
  [[nodiscard]] static unsigned inputs_of(const DeltaNetWeights& weights);
  [[nodiscard]] static unsigned inputs_of(const MoeWeights& weights);
  [[nodiscard]] static unsigned inputs_of(const DenseWeights& weights);
  [[nodiscard]] static unsigned inputs_of(const MatrixView& matrix);

  /// One or more matrices over the same rows, in one parallel loop: output[r] = matrix . input[r].
  struct Projection {
    /// column: of a row of `to`, where the matrix's first output goes.
    Projection(const MatrixView& of, FloatRows& to, int64_t column = 0) : matrix(of), rows(&to), first_column(column) {}
    /// pointers[r]: where row r goes.
    Projection(const MatrixView& of, std::vector<float*>& to) : matrix(of), pointers(&to) {}

    [[nodiscard]] float* output(int r) const { return rows != nullptr ? rows->row(r) + first_column : (*pointers)[r]; }

    const MatrixView& matrix;
    FloatRows* rows = nullptr;
    int64_t first_column = 0;
    std::vector<float*>* pointers = nullptr;
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

  /// Row r has something that is not finite.
  void note(int64_t r, FaultKind kind) { note(r, RowFault{layer_, kind}); }
  /// What the residual was last added: the next norm tells whether it is finite.
  void added(FaultKind kind) { added_ = {layer_, kind}; }

  /// Distinct experts read since the last call, mean over the layers that have experts, in units of top-k.
  [[nodiscard]] double take_distinct_experts();

  [[nodiscard]] PassBuffers& buffers() { return buffers_; }

 private:
  // Throws Interrupted if somebody asked for it.
  void check_stop() const;
  // mixed = matrix . input: by all processes together, where there are several.
  void project_to_hidden(Work work, const RowBuffer& input, const MatrixView& matrix);
  // Where rows of all heads have this process's mixer column `local`.
  [[nodiscard]] int64_t mixer_column(int64_t local) const {
    return peers_ == nullptr ? local : peers_->mixer_column(layer_, local);
  }
  MoeScratch& begin_feed_forward();

  /// A part of the attention of one span and key-value head: a block of rows over all their splits, or all rows over
  /// one split (`first_partial` is where its results start in PassBuffers::partials).
  struct AttendItem {
    int span = 0;
    int kv_head = 0;
    int row_begin = 0, row_end = 0;
    int64_t split = -1;  // -1: all
    int64_t first_partial = 0;
  };
  /// A query whose splits were computed apart.
  struct MergeItem {
    int row = 0, head = 0;
    int64_t num_splits = 0;
    int64_t first_partial = 0, partials_per_split = 0;
  };

  void note(int64_t r, const RowFault& fault) { faults_->note(fault_rows_.empty() ? r : fault_rows_[r], fault); }
  void norm_row(int64_t r, const float* weight, unsigned blocks, RowBuffer& to);
  void reserve_attention(const SessionOptions& options);
  // For a layer of this shape; kept from layer to layer.
  void plan_attention(const AttentionShape& shape);
  void plan_rows(int span_idx);
  void plan_splits(int span_idx, int64_t num_splits, int64_t first_partial);
  void store_row(const AttentionWeights& weights, int kv_layer, int64_t r);
  void rotate_queries(const AttentionWeights& weights, int64_t r);
  void attend_and_output(const AttentionWeights& weights, int kv_layer);
  void attend(const AttentionShape& shape, int kv_layer);
  WorkDone attend_item(const AttendItem& item, int kv_layer, int thread_idx);
  void merge_splits(const MergeItem& item);
  void convolve_head(const DeltaNetWeights& weights, const Span& span, RecurrentState::Layer& layer, int64_t head);
  void advance_head(const DeltaNetWeights& weights, const Span& span, RecurrentState::Layer& layer, int64_t head,
                    int thread_idx);
  /// Row r of `bank` as the recurrence of one value head takes it.
  [[nodiscard]] static DeltaRow delta_row(const DeltaNetShape& shape, const RecurrentState::Bank& bank, int r,
                                          int64_t head, float* out);
  /// One value head's state through `rows`, of which the first num_committed stay in it.
  void advance_state(RecurrentState::Layer& layer, int64_t head, const std::vector<DeltaRow>& rows, int num_committed,
                     int thread_idx);
  /// Where row r of a pass keeps what the delta net needs of it later, and its row there.
  struct BankRow {
    RecurrentState::Bank* bank;
    int row;
  };
  [[nodiscard]] BankRow bank_row(const Span& span, RecurrentState::Layer& layer, int r);
  [[nodiscard]] const Span& span_of(int64_t r) const { return spans_[row_spans_[r]]; }
  [[nodiscard]] int64_t position_of(int64_t r) const {
    const Span& span = span_of(r);
    return span.position + r - span.first_row;
  }

  const ModelConfig& config_;
  const Isa isa_;
  const MoeVerify verify_;
  const KvType kv_type_;
  ThreadTeam& team_;
  const RopeTables& ropes_;
  KvPages& kv_;
  RecurrentState& recurrent_;
  PassBuffers& buffers_;
  WorkProfile* const profile_;
  PassPeers* const peers_;  // nullptr: alone
  const std::atomic<bool>* const stop_;
  int num_rows_ = 0;
  bool is_mtp_ = false;
  RowFaults* faults_ = nullptr;
  std::span<const int> fault_rows_;
  int layer_ = 0;
  RowFault added_;           // what the residual was last added, and what a norm's fault is put down to
  bool rows_moved_ = false;  // by keep_rows(), since begin()
  int max_window_ = 1;
  std::vector<Span> spans_;
  std::vector<int> row_spans_;  // [num_rows]
  AttentionShape planned_;      // that the items are for
  int64_t first_attended_ = 0;  // column of `attended` that this process's first head has
  std::vector<AttendItem> attend_items_;
  std::vector<MergeItem> merge_items_;
  std::vector<float*> raw_rows_;  // [num_rows] where the delta net's projections go
  double distinct_experts_ = 0;   // in units of each layer's top-k, summed
  int expert_layers_ = 0;
  std::vector<RowView> inputs_;
  std::vector<RowItems::Matrix> projected_;
  RowItems items_;
  std::vector<std::vector<float>> attention_scratch_;  // by thread
};

/// Quantised forms that a matrix's input needs, as bits: 1 for blocks of 32, 2 for blocks of 256.
[[nodiscard]] unsigned block_bits(std::initializer_list<const MatrixView*> matrices);

/// Makes the forms of `blocks` for row r.
void quantise_forms(Isa isa, RowBuffer& rows, int64_t r, unsigned blocks);

}  // namespace foretoken
