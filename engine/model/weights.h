#pragma once

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "engine/model/rope_shape.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/formats/matrix.h"
#include "moe/moe.h"

namespace foretoken {

// A model's weights, described once for every memory that they can lie in: `Matrix` is MatrixView in the host's memory,
// DeviceMatrix in a GPU's. for_each() walks the weights of one or several such descriptions side by side: upload,
// placement and byte counts all use it, so what a family's file names to the loader (WeightLoader) is known to all.

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // of query, key and value
  bool gated = false;
  RopeShape rope;

  bool operator==(const AttentionShape&) const = default;

  [[nodiscard]] int64_t query_dim() const { return int64_t{num_heads} * head_dim; }
  [[nodiscard]] int64_t kv_dim() const { return int64_t{num_kv_heads} * head_dim; }
  /// Rows of the query matrix, gates included.
  [[nodiscard]] int64_t q_rows() const { return gated ? 2 * query_dim() : query_dim(); }
};

/// Softmax attention. With a gate, `q` holds query and gate rows interleaved by head: head h has rows [2h, 2h+1) x
/// head_dim of query, then [2h+1, 2h+2) x head_dim of gate.
template <class Matrix>
struct BasicAttentionWeights {
  AttentionShape shape;
  Matrix q;           // [num_heads * head_dim * (gated ? 2 : 1), hidden_dim]
  Matrix k, v;        // [num_kv_heads * head_dim, hidden_dim]
  Matrix output;      // [hidden_dim, num_heads * head_dim]
  VectorView q_norm;  // [head_dim]; empty: heads are not normed
  VectorView k_norm;  // [head_dim]
  // Added to what q, k and v compute; each may be empty.
  VectorView q_bias, k_bias, v_bias;  // as many values as the matrix has rows

  template <class Visit, class... Weights>
  static void for_each(Visit&& visit, Weights&... w) {
    constexpr WeightRole kRole = WeightRole::kAttention;
    visit(kRole, w.q...);
    visit(kRole, w.k...);
    visit(kRole, w.v...);
    visit(kRole, w.output...);
    visit(kRole, w.q_norm...);
    visit(kRole, w.k_norm...);
    visit(kRole, w.q_bias...);
    visit(kRole, w.k_bias...);
    visit(kRole, w.v_bias...);
  }
};

struct DeltaNetShape {
  int state_size = 0;  // of a key and of a value
  int num_key_heads = 0;
  int num_value_heads = 0;
  int conv_taps = 0;
  bool grouped_heads = false;  // the value heads of a key head follow each other; otherwise they take turns

  [[nodiscard]] int64_t key_head_of(int64_t value_head) const {
    return grouped_heads ? value_head / (num_value_heads / num_key_heads) : value_head % num_key_heads;
  }
  [[nodiscard]] int64_t key_dim() const { return int64_t{state_size} * num_key_heads; }
  [[nodiscard]] int64_t value_dim() const { return int64_t{state_size} * num_value_heads; }
  [[nodiscard]] int64_t conv_channels() const { return 2 * key_dim() + value_dim(); }
  /// Values that a layer remembers of a sequence: its states, and the inputs of the convolution before the next row.
  [[nodiscard]] int64_t state_values() const { return int64_t{num_value_heads} * state_size * state_size; }
  [[nodiscard]] int64_t history_values() const { return (conv_taps - 1) * conv_channels(); }
};

/// Gated delta net. Value head i uses key head DeltaNetShape::key_head_of(i).
template <class Matrix>
struct BasicDeltaNetWeights {
  DeltaNetShape shape;
  Matrix qkv;          // [conv_channels, hidden_dim]: all query heads, all key heads, all value heads
  Matrix gate;         // [value_dim, hidden_dim]: z
  Matrix beta, alpha;  // [num_value_heads, hidden_dim]
  Matrix out;          // [hidden_dim, value_dim]
  VectorView conv;     // [conv_channels, conv_taps]
  VectorView dt;       // [num_value_heads]
  VectorView a;        // [num_value_heads], already -exp(A_log)
  VectorView norm;     // [state_size]

  template <class Visit, class... Weights>
  static void for_each(Visit&& visit, Weights&... w) {
    constexpr WeightRole kRole = WeightRole::kDeltaNet;
    visit(kRole, w.qkv...);
    visit(kRole, w.gate...);
    visit(kRole, w.beta...);
    visit(kRole, w.alpha...);
    visit(kRole, w.out...);
    visit(kRole, w.conv...);
    visit(kRole, w.dt...);
    visit(kRole, w.a...);
    visit(kRole, w.norm...);
  }
};

/// A layer: what mixes a row with earlier ones, and the feed-forward part.
template <class Matrix>
struct BasicLayerWeights {
  using Attention = BasicAttentionWeights<Matrix>;
  using DeltaNet = BasicDeltaNetWeights<Matrix>;
  using Moe = BasicMoeWeights<Matrix>;
  using Dense = BasicDenseWeights<Matrix>;

  int layer_idx = 0;          // in the model; of the MTP layer: behind the trunk's
  int mixer_idx = 0;          // among the layers with a mixer of this kind: of its keys and values, or of its states
  bool is_elsewhere = false;  // another process has it: its parts are empty and take no memory

  VectorView mix_norm;  // [hidden_dim], before the mixer
  VectorView ffn_norm;  // [hidden_dim], before the feed-forward part
  std::variant<Attention, DeltaNet> mixer;
  std::variant<Moe, Dense> feed_forward;

  [[nodiscard]] bool is_recurrent() const { return std::holds_alternative<DeltaNet>(mixer); }
  /// REQUIRES: !is_recurrent().
  [[nodiscard]] Attention& attention() { return std::get<Attention>(mixer); }
  [[nodiscard]] const Attention& attention() const { return std::get<Attention>(mixer); }
  /// REQUIRES: is_recurrent().
  [[nodiscard]] DeltaNet& delta_net() { return std::get<DeltaNet>(mixer); }
  [[nodiscard]] const DeltaNet& delta_net() const { return std::get<DeltaNet>(mixer); }

  [[nodiscard]] bool is_dense() const { return std::holds_alternative<Dense>(feed_forward); }
  /// REQUIRES: !is_dense().
  [[nodiscard]] Moe& moe() { return std::get<Moe>(feed_forward); }
  [[nodiscard]] const Moe& moe() const { return std::get<Moe>(feed_forward); }
  /// REQUIRES: is_dense().
  [[nodiscard]] Dense& dense() { return std::get<Dense>(feed_forward); }
  [[nodiscard]] const Dense& dense() const { return std::get<Dense>(feed_forward); }

  /// The same kinds and shapes of parts as in `other`, whose weights may lie elsewhere; no weights yet.
  template <class Other>
  void take_shape(const BasicLayerWeights<Other>& other) {
    layer_idx = other.layer_idx;
    mixer_idx = other.mixer_idx;
    if (other.is_recurrent()) {
      mixer.template emplace<DeltaNet>().shape = other.delta_net().shape;
    } else {
      mixer.template emplace<Attention>().shape = other.attention().shape;
    }
    if (other.is_dense()) {
      feed_forward.template emplace<Dense>();
      return;
    }
    Moe& moe = feed_forward.template emplace<Moe>();
    moe.num_experts = moe.capacity = other.moe().num_experts;
    moe.top_k = other.moe().top_k;
  }

  /// REQUIRES: all have the same kinds of parts.
  template <class Visit, class First, class... Layers>
  static void for_each(Visit&& visit, First& first, Layers&... others) {
    visit(WeightRole::kNorm, first.mix_norm, others.mix_norm...);
    visit(WeightRole::kNorm, first.ffn_norm, others.ffn_norm...);
    if (first.is_recurrent()) {
      DeltaNet::for_each(visit, first.delta_net(), others.delta_net()...);
    } else {
      Attention::for_each(visit, first.attention(), others.attention()...);
    }
    if (first.is_dense()) {
      Dense::for_each(WeightRole::kDense, visit, first.dense(), others.dense()...);
    } else {
      Moe::for_each(visit, first.moe(), others.moe()...);
    }
  }
};

/// The extra block that predicts one token further.
template <class Matrix>
struct BasicMtpWeights {
  Matrix embed;            // [vocab_size, hidden_dim], file layout; the trunk's if the block has none
  VectorView embed_norm;   // [hidden_dim] (enorm)
  VectorView hidden_norm;  // [hidden_dim] (hnorm)
  Matrix join;             // [hidden_dim, 2 * hidden_dim] (eh_proj): columns of the embedding, then of the hidden
  BasicLayerWeights<Matrix> layer;
  VectorView head_norm;  // [hidden_dim] (shared_head_norm)
  Matrix head;           // [vocab_size, hidden_dim]; the trunk's if the block has none
  bool own_embed = false, own_head = false;

  /// The block without embedding and head.
  template <class Visit, class... Mtp>
  static void for_each(Visit&& visit, Mtp&... mtp) {
    visit(WeightRole::kMtp, mtp.embed_norm...);
    visit(WeightRole::kMtp, mtp.hidden_norm...);
    visit(WeightRole::kMtp, mtp.join...);
    BasicLayerWeights<Matrix>::for_each(visit, mtp.layer...);
    visit(WeightRole::kMtp, mtp.head_norm...);
  }
};

/// A head's rows are shared out over nodes of memory in units of as many: drafts read the lowest ids, by default as
/// many as this, and are to find them on all nodes.
inline constexpr int64_t kHeadUnitRows = 16384;

template <class Matrix>
struct BasicModelWeights {
  Matrix embed;                                   // [vocab_size, hidden_dim], file layout
  std::vector<BasicLayerWeights<Matrix>> layers;  // the trunk's
  VectorView output_norm;                         // [hidden_dim]
  Matrix head;                                    // [vocab_size, hidden_dim]
  bool tied_head = false;                         // the head is the embedding
  BasicMtpWeights<Matrix> mtp;                    // if the model has one
};

using AttentionWeights = BasicAttentionWeights<MatrixView>;
using DeltaNetWeights = BasicDeltaNetWeights<MatrixView>;
using LayerWeights = BasicLayerWeights<MatrixView>;
using MtpWeights = BasicMtpWeights<MatrixView>;

/// The weights in the host's memory; the embedding in the mapped file.
struct ModelWeights : BasicModelWeights<MatrixView> {
  size_t bytes_to_load = 0;  // memory that loading takes; known before it begins
  size_t matrix_bytes = 0;   // of all matrices in memory, embeddings aside

  // What the views point into.
  std::vector<AlignedBuffer> buffers;
  std::vector<std::unique_ptr<float[]>> vectors;
};

/// A visit for for_each() that treats kinds of weights in different ways: one callable for each.
template <class... Kinds>
struct WeightVisit : Kinds... {
  using Kinds::operator()...;
};
template <class... Kinds>
WeightVisit(Kinds...) -> WeightVisit<Kinds...>;

}  // namespace foretoken
