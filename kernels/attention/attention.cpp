#include "kernels/attention/attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/attention/attention_body.h"
#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/float_isa.h"
#include "kernels/matmul/matmul.h"

namespace foretoken {

namespace {

float load_kv(const void* data, KvType type, int64_t i) {
  return type == KvType::kF16 ? half_to_float(static_cast<const uint16_t*>(data)[i])
                              : static_cast<const float*>(data)[i];
}

void scalar_attention_split(const KvSplit& kv, int head_dim, float scale, int64_t split, AttentionQuery* queries,
                            int num_queries, float* scratch) {
  float* scores = scratch;                    // [kAttentionSplit]
  float* values = scratch + kAttentionSplit;  // [head_dim]
  const int64_t begin = split * kAttentionSplit;
  for (AttentionQuery* query = queries; query != queries + num_queries; ++query) {
    const int64_t count = std::min<int64_t>(query->kv_len - begin, kAttentionSplit);
    if (count <= 0) continue;
    float largest = -__builtin_inff();
    for (int64_t j = 0; j < count; ++j) {
      float lanes[kFloatLanes] = {};
      for (int i = 0; i < head_dim; ++i) {
        float& lane = lanes[i % kFloatLanes];
        lane = math::fma(query->q[i], load_kv(kv.keys, kv.type, j * head_dim + i), lane);
      }
      for (int half = kFloatLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      scores[j] = scale * lanes[0];
      largest = scores[j] > largest ? scores[j] : largest;
    }
    largest += 0.0f;  // -0 becomes +0, so that the first of two zeros does not show
    float lanes[kFloatLanes] = {};
    for (int64_t j = 0; j < count; ++j) {
      scores[j] = math::exp(scores[j] - largest);
      lanes[j % kFloatLanes] += scores[j];
    }
    for (int half = kFloatLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    for (int i = 0; i < head_dim; ++i) {
      float sum = 0.0f;
      for (int64_t j = 0; j < count; ++j) {
        sum = math::fma(scores[j], load_kv(kv.values, kv.type, j * head_dim + i), sum);
      }
      values[i] = sum;
    }
    join_split(largest, lanes[0], values, head_dim, *query);
  }
}

}  // namespace

void attention_reset(AttentionQuery& query, int head_dim) {
  query.max = -__builtin_inff();
  query.sum = 0.0f;
  std::fill_n(query.out, head_dim, 0.0f);
}

void attention_split(Isa isa, const KvSplit& kv, int head_dim, float scale, int64_t split, AttentionQuery* queries,
                     int num_queries, float* scratch) {
  FT_CHECK(head_dim > 0 && split >= 0);
  if (head_dim > kMaxTiledHeadDim) isa = Isa::kScalar;
  switch (isa) {
    case Isa::kScalar:
      return scalar_attention_split(kv, head_dim, scale, split, queries, num_queries, scratch);
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
      return avx2_attention_split(kv, head_dim, scale, split, queries, num_queries);
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512_attention_split(kv, head_dim, scale, split, queries, num_queries);
  }
}

void attention_merge(Isa isa, const AttentionQuery& part, int head_dim, AttentionQuery& whole) {
  if (isa != Isa::kScalar) return avx2_attention_merge(part, head_dim, whole);
  join_split(part.max, part.sum, part.out, head_dim, whole);
}

void attention_finish(Isa isa, AttentionQuery& query, int head_dim) {
  if (isa != Isa::kScalar) return avx2_divide(query.out, head_dim, query.sum);
  divide_by(query.out, head_dim, query.sum);
}

void store_kv(Isa isa, const float* from, int64_t n, KvType type, void* to) {
  if (type == KvType::kF32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else if (isa == Isa::kScalar) {
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = float_to_half(from[i]);
  } else {
    avx2_store_half(from, n, static_cast<uint16_t*>(to));
  }
}

}  // namespace foretoken
