#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/base/simd_intrinsics.h"
#include "kernels/delta_net/delta_net.h"
#include "kernels/formats/weight_type.h"
#include "kernels/rows/row_buffer.h"

// Private: the per-ISA entry points of the float kernels, behind the dispatch in each operation's own file. Arguments
// as in the contract headers, cut down where a contract type has inline functions: those link as one copy for all
// instruction sets.
//
// Matrix products, attention and the delta net have AVX-512 forms. The other operations work on single rows of some
// kilobytes that lie in L1 (or are bound by memory: argmax), where wider registers bring nothing that a token would
// notice: AVX-512 machines run their AVX2 form.

namespace foretoken {

/// Largest head that the tiled attention has room for on its stack; the scalar form serves larger ones.
inline constexpr int kMaxTiledHeadDim = 1024;

// weights: the first output's row. y[r][i] = row i . x[r], i in [0, num_outputs).
void avx2_float_matmul_rows(WeightType type, const std::byte* weights, int64_t num_outputs, int64_t num_cols,
                            const RowView* x, int num_rows, float* const* y);
void FT_KERNEL(avx512_float_matmul_rows)(WeightType type, const std::byte* weights, int64_t num_outputs,
                                         int64_t num_cols, const RowView* x, int num_rows, float* const* y);

// REQUIRES: head_dim <= kMaxTiledHeadDim.
void avx2_attention_split(const KvSplit& kv, int head_dim, float scale, int64_t split, AttentionQuery* queries,
                          int num_queries);
void FT_KERNEL(avx512_attention_split)(const KvSplit& kv, int head_dim, float scale, int64_t split,
                                       AttentionQuery* queries, int num_queries);
void avx2_attention_merge(const AttentionQuery& part, int head_dim, AttentionQuery& whole);
void avx2_divide(float* x, int64_t n, float divisor);
void avx2_store_half(const float* from, int64_t n, uint16_t* to);

void avx2_delta_net(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                    int column_begin, int column_end, float* scratch);
void FT_KERNEL(avx512_delta_net)(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                                 int column_begin, int column_end, float* scratch);
void avx2_causal_conv(const float* weight, int taps, const float* const* u, int64_t begin, int64_t end, float* out);

void avx2_silu_mul(const float* gate, const float* up, int64_t n, float* out);
void avx2_sigmoid_gate(const float* gate, int64_t n, float* x);
void avx2_add(const float* y, int64_t n, float* x);
void avx2_add_scaled(float scale, const float* x, int64_t n, float* y);
void avx2_scale_row(float scale, const float* x, int64_t n, float* out);
[[nodiscard]] float avx2_largest_magnitude(const float* x, int64_t n);

float avx2_rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out);
float avx2_rms_norm_gated(const float* x, const float* weight, const float* z, int64_t n, float eps, float* out);
float avx2_l2_norm(const float* x, int64_t n, float eps, float* out);
[[nodiscard]] float avx2_float_dot(const float* a, const float* b, int64_t n);

void avx2_rope(const float* cos, const float* sin, int half_dim, float* x);
void avx2_rope_adjacent(const float* cos, const float* sin, int half_dim, float* x);
void avx2_softmax(const float* x, int64_t n, float* out);
[[nodiscard]] float avx2_softmax_share(const float* x, int64_t n, int64_t chosen);
int64_t avx2_argmax(const float* x, int64_t n);

}  // namespace foretoken
