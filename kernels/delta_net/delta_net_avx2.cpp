#include "kernels/delta_net/delta_net_body.h"
#include "kernels/delta_net/delta_net_tiles.h"

namespace foretoken {

void avx2_delta_net(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                    int column_begin, int column_end, float* scratch) {
  delta_net_with<F32x8>(state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
}

namespace {

/// out[c] = fma over four taps, for eight channels. The compiler's own shuffles for weights that lie four a channel
/// took three times as long.
FT_INLINE void four_taps(const float* weight, const float* const* u, int64_t c, float* out) {
  const auto channels =
      [&](int first) {  // weights of channel c + first in the low half, of c + first + 4 in the high half
        const float* p = weight + (c + first) * 4;
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 16), 1);
      };
  const __m256 w0 = channels(0), w1 = channels(1), w2 = channels(2), w3 = channels(3);
  const __m256 low01 = _mm256_unpacklo_ps(w0, w1), high01 = _mm256_unpackhi_ps(w0, w1);
  const __m256 low23 = _mm256_unpacklo_ps(w2, w3), high23 = _mm256_unpackhi_ps(w2, w3);
  const F32x8 taps[4] = {{_mm256_shuffle_ps(low01, low23, 0x44)},
                         {_mm256_shuffle_ps(low01, low23, 0xee)},
                         {_mm256_shuffle_ps(high01, high23, 0x44)},
                         {_mm256_shuffle_ps(high01, high23, 0xee)}};
  F32x8 y = F32x8::zero();
  for (int j = 0; j < 4; ++j) y = fma(taps[j], F32x8::load(u[j] + c), y);
  y.store(out + c);
}

}  // namespace

void avx2_causal_conv(const float* weight, int taps, const float* const* u, int64_t begin, int64_t end, float* out) {
  if (taps != 4) return causal_conv_any(weight, taps, u, begin, end, out);
  const int64_t whole = begin + (end - begin) / 8 * 8;
  constexpr int64_t kChunk = 1024;  // of sums, from L1 again for silu
  for (int64_t chunk = begin; chunk < whole; chunk += kChunk) {
    const int64_t chunk_end = whole - chunk < kChunk ? whole : chunk + kChunk;
    for (int64_t c = chunk; c < chunk_end; c += 8) four_taps(weight, u, c, out);
#pragma GCC ivdep
    for (int64_t c = chunk; c < chunk_end; ++c) out[c] = math::silu(out[c]);
  }
  causal_conv_any(weight, taps, u, whole, end, out);
}

}  // namespace foretoken
