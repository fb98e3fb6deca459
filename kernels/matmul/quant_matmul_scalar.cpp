#include <cmath>

#include "kernels/formats/interleave.h"
#include "kernels/formats/matrix.h"
#include "kernels/formats/quant_formats.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/quant_matmul.h"

// The definition: every other kernel gives these bits.

namespace foretoken {

namespace {

// Rows that share one unpacking of a block.
constexpr int kRowsAtOnce = 16;

// Adds part `part` of a block of weights, which is block b of the row, to the partial sum of one output.
void add_part(WeightType type, const QuantBlock& w, int part, const QuantisedRow& x, int64_t b, float& partial) {
  const int size = weight_type_info(type).activation_block, first_run = part * size / 16;
  const int8_t* const a = x.q + b * size;
  const int16_t* const sums = x.sums + b * size / 16;
  int32_t isum = 0, msum = 0, run_sums[16];
  for (int s = 0; s < size / 16; ++s) {
    run_sums[s] = 0;
    for (int i = 0; i < 16; ++i) run_sums[s] += w.q[16 * (first_run + s) + i] * a[16 * s + i];
    isum += w.scale[first_run + s] * run_sums[s];
    msum += w.min[first_run + s] * sums[s];
  }
  if (type == WeightType::kNVFP4) {
    const float first = static_cast<float>(run_sums[0]) * w.run_d[first_run];
    const float both = std::fma(static_cast<float>(run_sums[1]), w.run_d[first_run + 1], first);
    partial = std::fma(both, x.d[b], partial);
    return;
  }
  partial = std::fma(static_cast<float>(isum), w.d * x.d[b], partial);
  if (has_mins(type)) partial = std::fma(-static_cast<float>(msum), w.dmin * x.d[b], partial);
}

float fold(float (&partials)[kPartialSums]) {
  for (int half = kPartialSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) partials[i] += partials[i + half];
  }
  return partials[0];
}

// Output o from its blocks in the file's layout.
void dot_rows(const QuantMatmul& m, const std::byte* blocks, int64_t o) {
  const WeightTypeInfo& info = weight_type_info(m.type);
  const int num_parts = info.num_parts();
  for (int begin = 0; begin < m.num_rows; begin += kRowsAtOnce) {
    const int count = m.num_rows - begin < kRowsAtOnce ? m.num_rows - begin : kRowsAtOnce;
    float partials[kRowsAtOnce][kPartialSums] = {};
    QuantBlock w;
    for (int64_t f = 0; f < m.num_blocks; ++f) {
      unpack_block(m.type, blocks + f * info.block_bytes, w);
      for (int part = 0; part < num_parts; ++part) {
        const int64_t b = f * num_parts + part;
        for (int r = 0; r < count; ++r) {
          const RowView& row = m.x[begin + r];
          const QuantisedRow& x = info.activation_block == 32 ? row.by32 : row.by256;
          add_part(m.type, w, part, x, b, partials[r][b % kPartialSums]);
        }
      }
    }
    for (int r = 0; r < count; ++r) m.y[begin + r][o] = fold(partials[r]);
  }
}

}  // namespace

void scalar_quant_matmul(const QuantMatmul& m) {
  const int64_t row_bytes = m.num_blocks * weight_type_info(m.type).block_bytes;
  for (int64_t o = 0; o < m.num_outputs; ++o) dot_rows(m, m.weights + o * row_bytes, o);
}

void scalar_interleaved_matmul(const QuantMatmul& m) {
  const WeightTypeInfo& info = weight_type_info(m.type);
  const MatrixView matrix{m.weights, m.num_outputs, m.num_blocks * info.block_size, m.type, Layout::kInterleaved};
  std::vector<std::byte> row(static_cast<size_t>(m.num_blocks * info.block_bytes));
  for (int64_t o = 0; o < m.num_outputs; ++o) {
    extract_row(matrix, o, row.data());
    dot_rows(m, row.data(), o);
  }
}

}  // namespace foretoken
