#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/attention/attention.h"

namespace foretoken {

/// Bytes that decoding must read from memory, by kind: the floor under every time, since decoding is bound by memory.
/// Weights count as in the file (interleaving moves bytes and adds none). Norm weights and other small vectors are
/// among the projections.
struct PassBytes {
  double routed_experts = 0;
  double shared_and_routers = 0;  // shared expert and routers, or the dense feed-forward
  double delta_net_projections = 0;
  double delta_net_state = 0;  // read and written
  double attention_projections = 0;
  double kv = 0;
  double head = 0;

  [[nodiscard]] double total() const {
    return routed_experts + shared_and_routers + delta_net_projections + delta_net_state + attention_projections + kv +
           head;
  }
};

class ByteModel {
 public:
  /// From shapes and types alone: the weights need not be in memory (see Model::outline).
  ByteModel(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config);

  /// One pass of the trunk over a window with `distinct_experts` = U(n) (1 for a single token) at a context of kv_len
  /// positions. All that is not a routed expert is read once, whatever the window's width.
  [[nodiscard]] PassBytes trunk_pass(double distinct_experts, double kv_len, KvType kv_type) const;

  /// One pass of the MTP layer without its head.
  [[nodiscard]] double mtp_layer_pass(double distinct_experts, double kv_len, KvType kv_type) const;

  /// Multiplications and additions of the trunk's matrices for one prompt token, without the head, which a prompt needs
  /// at its end alone.
  [[nodiscard]] double prompt_operations() const { return prompt_operations_; }

  /// The head as drafts read it: draft_vocab rows (0: all).
  [[nodiscard]] double draft_head(int64_t draft_vocab) const;

  /// One draft: MTP layer and draft head.
  [[nodiscard]] double draft_step(int64_t draft_vocab, double kv_len, KvType kv_type) const {
    return mtp_layer_pass(1, kv_len, kv_type) + draft_head(draft_vocab);
  }

 private:
  [[nodiscard]] static double kv_bytes(int64_t values, double kv_len, KvType kv_type);

  const ModelConfig config_;
  int64_t kv_values_ = 0, mtp_kv_values_ = 0;  // keys and values of one position
  PassBytes trunk_;                            // one token, kv 0
  double prompt_operations_ = 0;
  double mtp_routed_ = 0;  // top-k experts
  double mtp_dense_ = 0;   // the rest of the MTP layer
  double mtp_head_ = 0;    // full head that drafts would read
};

/// U(n) if neighbouring tokens route independently: num_experts/top_k * (1 - (1 - top_k/num_experts)^n). 1 for dense
/// models.
[[nodiscard]] double independent_overlap(const ModelConfig& config, int num_rows);

/// U(n) as published for Qwen3-30B-A3B (45% of a token's experts repeat at the next token, 80% within eight), at most
/// independent_overlap(). 1 for dense models.
[[nodiscard]] double published_overlap(const ModelConfig& config, int num_rows);

/// Acceptance length with k drafts as published for a Qwen3.6-35B-A3B run, k = 1..4: 1.88 2.63 3.14 3.57; beyond, each
/// further draft is taken as accepted 8 times of 10 where the one before it was.
[[nodiscard]] double published_acceptance_length(int k);

/// What memory allows at k drafts a window: acceptance length * bytes of one token / (bytes of a window + k draft
/// steps).
[[nodiscard]] double ideal_speedup(const ByteModel& bytes, int k, double acceptance_length, double distinct_experts,
                                   int64_t draft_vocab, double kv_len, KvType kv_type);

}  // namespace foretoken
