#include "kernels/attention/attention_tiles.h"

namespace foretoken {

void FT_KERNEL(avx512_attention_split)(const KvSplit& kv, int head_dim, float scale, int64_t split,
                                       AttentionQuery* queries, int num_queries) {
  attention_split_with<F32x16>(kv, head_dim, scale, split, queries, num_queries);
}

}  // namespace foretoken
