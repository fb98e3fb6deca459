#pragma once

#include <cstdint>

#include "kernels/base/isa.h"

namespace foretoken {

enum class KvType : uint8_t { kF16, kF32 };

/// Bytes of one value of a key or value row.
[[nodiscard]] constexpr int kv_value_bytes(KvType type) {
  return type == KvType::kF16 ? 2 : 4;
}

/// Positions of one split: a constant of the build, never of the number of rows or threads. Splits start at multiples
/// of it.
inline constexpr int kAttentionSplit = 256;

/// One query: a head of one row, and what it has gathered so far.
struct AttentionQuery {
  const float* q;  // [head_dim], rotated
  int64_t kv_len;  // attends to positions [0, kv_len)
  // The running result over the splits seen so far, in rising order; start with attention_reset.
  float max;   // largest score
  float sum;   // sum of exp(score - max)
  float* out;  // [head_dim] sum of exp(score - max) * v; after attention_finish: the attended value
};

/// Keys and values of one head over one split: position j of the split at data + j * head_dim elements of `type`.
struct KvSplit {
  const void* keys;
  const void* values;
  KvType type;
  const void* next_keys = nullptr;  // of the split that is read next, to be asked for ahead of time; nullptr: none
};

/// Empties a query's running result (writes max, sum and out[0..head_dim)).
void attention_reset(AttentionQuery& query, int head_dim);

/// Adds split `split`, whose keys and values are `kv` (positions [split*kAttentionSplit, min((split+1)*kAttentionSplit,
/// kv_len))) to every query that reaches into it. For each query: score_j = scale * dot(q, k_j) (float dot of rule 2);
/// m = max score; p_j = exp(score_j - m); l = sum of p_j over kFloatLanes strided lanes (lane = j mod 32 within the
/// split, plain adds, folded as rule 2); o = sum of p_j * v_j by fma in rising position from 0. Then the running result
/// becomes, with M' = max(M, m), a = exp(M - M'), b = exp(m - M'): sum = fma(l, b, sum * a), out = fma(o, b, out * a),
/// max = M'. For the first split M is -infinity and a counts as 0. Each key and value of the split is read from memory
/// once for all queries. REQUIRES: called for splits 0, 1, 2 ... in rising order; scratch holds kAttentionSplit +
/// head_dim floats.
void attention_split(Isa isa, const KvSplit& kv, int head_dim, float scale, int64_t split, AttentionQuery* queries,
                     int num_queries, float* scratch);

/// Merges `part`, one split's result from an empty start, into `whole`, in the arithmetic of attention_split's last
/// step. Splits computed apart and merged in rising order give the bits of attention_split called for them in turn.
void attention_merge(Isa isa, const AttentionQuery& part, int head_dim, AttentionQuery& whole);

/// out[i] = out[i] / sum.
void attention_finish(Isa isa, AttentionQuery& query, int head_dim);

/// Stores a key or value row into the cache: float -> `type`, rounding to nearest even.
void store_kv(Isa isa, const float* from, int64_t n, KvType type, void* to);

}  // namespace foretoken
