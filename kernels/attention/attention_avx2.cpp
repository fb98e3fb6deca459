#include "kernels/attention/attention_tiles.h"

namespace foretoken {

void avx2_attention_split(const KvSplit& kv, int head_dim, float scale, int64_t split, AttentionQuery* queries,
                          int num_queries) {
  attention_split_with<F32x8>(kv, head_dim, scale, split, queries, num_queries);
}

void avx2_attention_merge(const AttentionQuery& part, int head_dim, AttentionQuery& whole) {
  join_split(part.max, part.sum, part.out, head_dim, whole);
}

void avx2_divide(float* x, int64_t n, float divisor) {
  divide_by(x, n, divisor);
}

void avx2_store_half(const float* from, int64_t n, uint16_t* to) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) F32x8::load(from + i).store_half(to + i);
  if (i < n) {
    float tail[kLanes];
    uint16_t rounded[8];
    copy_tail(from + i, n - i, 0.0f, tail);
    F32x8::load(tail).store_half(rounded);
    for (int j = 0; i < n; ++i, ++j) to[i] = rounded[j];
  }
}

}  // namespace foretoken
