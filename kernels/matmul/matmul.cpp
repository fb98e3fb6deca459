#include "kernels/matmul/matmul.h"

#include "kernels/base/error.h"
#include "kernels/matmul/float_matmul.h"
#include "kernels/matmul/quant_matmul.h"

namespace foretoken {

namespace {

void quant_matmul_rows(Isa isa, const QuantMatmul& m) {
  switch (isa) {
    case Isa::kScalar:
      return scalar_quant_matmul(m);
#if defined(__x86_64__)
    // The file's own layout is the way of --no-repack and of odd shapes: one form for all wide registers.
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx2_quant_matmul(m);
#else
    default:
      break;
#endif
  }
  check_failed(__FILE__, __LINE__, "the instruction set is compiled in", std::string(isa_name(isa)));
}

void interleaved_matmul_rows(Isa isa, const QuantMatmul& m) {
  switch (isa) {
    case Isa::kScalar:
      return scalar_interleaved_matmul(m);
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2_interleaved_matmul(m);
    case Isa::kAvx2Vnni:
      return avx2vnni_interleaved_matmul(m);
    case Isa::kAvx512:
      return avx512_interleaved_matmul(m);
    case Isa::kAvx512Vnni:
      return avx512vnni_interleaved_matmul(m);
#else
    default:
      break;
#endif
  }
  check_failed(__FILE__, __LINE__, "the instruction set is compiled in", std::string(isa_name(isa)));
}

void unscaled_matmul_rows(Isa isa, const MatrixView& w, int64_t row_begin, int64_t row_end, const RowView* x,
                          int num_rows, float* const* y) {
  FT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= w.num_rows);
  FT_CHECK(num_rows >= 0);
  const WeightTypeInfo& info = weight_type_info(w.type);
  if (info.is_float()) {
    FT_CHECK(w.layout == Layout::kRows);
    return float_matmul_rows(isa, w, row_begin, row_end, x, num_rows, y);
  }
  FT_CHECK_EQ(w.num_cols % info.block_size, 0);
  for (int r = 0; r < num_rows; ++r) {
    FT_CHECK((info.activation_block == 32 ? x[r].by32 : x[r].by256).q != nullptr);
  }
  if (num_rows == 0 || row_begin == row_end) return;
  const QuantMatmul m{w.type,
                      w.data + static_cast<size_t>(row_begin) * w.row_bytes(),
                      row_end - row_begin,
                      w.num_cols / info.block_size,
                      x,
                      num_rows,
                      y};
  if (w.layout == Layout::kRows) return quant_matmul_rows(isa, m);
  FT_CHECK(row_begin % kInterleave == 0 && row_end % kInterleave == 0);
  interleaved_matmul_rows(isa, m);
}

}  // namespace

void matmul_rows(Isa isa, const MatrixView& w, int64_t row_begin, int64_t row_end, const RowView* x, int num_rows,
                 float* const* y) {
  unscaled_matmul_rows(isa, w, row_begin, row_end, x, num_rows, y);
  if (w.scale == 1.0f) return;
  for (int r = 0; r < num_rows; ++r) {
    for (int64_t i = 0; i < row_end - row_begin; ++i) y[r][i] *= w.scale;
  }
}

}  // namespace foretoken
