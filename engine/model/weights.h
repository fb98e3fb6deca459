#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/formats/matrix.h"
#include "moe/moe.h"

namespace foretoken {

/// Softmax attention. With a gate, `q` holds query and gate rows interleaved by head: head h has rows [2h, 2h+1) x
/// head_dim of query, then [2h+1, 2h+2) x head_dim of gate.
struct AttentionWeights {
  MatrixView q;                   // [num_heads * head_dim * (gated ? 2 : 1), hidden_dim]
  MatrixView k, v;                // [num_kv_heads * head_dim, hidden_dim]
  MatrixView output;              // [hidden_dim, num_heads * head_dim]
  const float* q_norm = nullptr;  // [head_dim]
  const float* k_norm = nullptr;  // [head_dim]
};

/// Gated delta net. Value head i uses key head i mod num_key_heads.
struct DeltaNetWeights {
  MatrixView qkv;               // [conv_channels, hidden_dim]: all query heads, all key heads, all value heads
  MatrixView gate;              // [value_dim, hidden_dim]: z
  MatrixView beta, alpha;       // [num_value_heads, hidden_dim]
  MatrixView out;               // [hidden_dim, value_dim]
  const float* conv = nullptr;  // [conv_channels, conv_taps]
  const float* dt = nullptr;    // [num_value_heads]
  const float* a = nullptr;     // [num_value_heads], already -exp(A_log)
  const float* norm = nullptr;  // [state_size]
};

struct LayerWeights {
  const float* mix_norm = nullptr;  // [hidden_dim], before attention or delta net
  const float* ffn_norm = nullptr;  // [hidden_dim], before the feed-forward part
  bool recurrent = false;
  AttentionWeights attention;  // if !recurrent
  DeltaNetWeights delta_net;   // if recurrent
  MoeWeights moe;
};

/// The extra block that predicts one token further.
struct MtpWeights {
  MatrixView embed;                    // [vocab_size, hidden_dim], file layout
  const float* embed_norm = nullptr;   // [hidden_dim] (enorm)
  const float* hidden_norm = nullptr;  // [hidden_dim] (hnorm)
  MatrixView join;  // [hidden_dim, 2 * hidden_dim] (eh_proj): columns of the embedding, then of the hidden
  LayerWeights layer;
  const float* head_norm = nullptr;  // [hidden_dim] (shared_head_norm)
  MatrixView head;                   // [vocab_size, hidden_dim]
};

/// A head's rows are shared out over nodes of memory in units of as many: drafts read the lowest ids, by default as
/// many as this, and are to find them on all nodes.
inline constexpr int64_t kHeadUnitRows = 16384;

struct ModelWeights {
  MatrixView embed;                    // [vocab_size, hidden_dim], file layout, in the mapped file
  std::vector<LayerWeights> layers;    // the trunk's
  const float* output_norm = nullptr;  // [hidden_dim]
  MatrixView head;                     // [vocab_size, hidden_dim]
  MtpWeights mtp;                      // if the model has one

  size_t matrix_bytes = 0;  // of all matrices in memory, embeddings aside

  // What the views point into.
  std::vector<AlignedBuffer> buffers;
  std::vector<std::unique_ptr<float[]>> vectors;
};

}  // namespace foretoken
