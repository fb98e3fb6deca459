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

struct BlockSums {
  int32_t isum = 0;
  int32_t msum = 0;
};

BlockSums block_sums(const QuantBlock& w, int block_size, const int8_t* a, const int16_t* sums) {
  BlockSums total;
  for (int s = 0; s < block_size / 16; ++s) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += w.q[16 * s + i] * a[16 * s + i];
    total.isum += w.scale[s] * sum;
    total.msum += w.min[s] * sums[s];
  }
  return total;
}

// Adds block b to the partial sums of one output.
void add_block(const QuantBlock& w, bool mins, BlockSums block, float d_a, float& partial) {
  partial = std::fma(static_cast<float>(block.isum), w.d * d_a, partial);
  if (mins) partial = std::fma(-static_cast<float>(block.msum), w.dmin * d_a, partial);
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
  const bool mins = has_mins(m.type);
  for (int begin = 0; begin < m.num_rows; begin += kRowsAtOnce) {
    const int count = m.num_rows - begin < kRowsAtOnce ? m.num_rows - begin : kRowsAtOnce;
    float partials[kRowsAtOnce][kPartialSums] = {};
    QuantBlock w;
    for (int64_t b = 0; b < m.num_blocks; ++b) {
      unpack_block(m.type, blocks + b * info.block_bytes, w);
      for (int r = 0; r < count; ++r) {
        const RowView& row = m.x[begin + r];
        const QuantisedRow& x = info.activation_block == 32 ? row.by32 : row.by256;
        const int64_t column = b * info.block_size;
        const BlockSums sums = block_sums(w, info.block_size, x.q + column, x.sums + column / 16);
        add_block(w, mins, sums, x.d[b], partials[r][b % kPartialSums]);
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
  std::vector<std::byte> row(matrix.row_bytes());
  for (int64_t o = 0; o < m.num_outputs; ++o) {
    extract_row(matrix, o, row.data());
    dot_rows(m, row.data(), o);
  }
}

}  // namespace foretoken
