#include "kernels/matmul/float_matmul_body.h"

namespace foretoken {

void FT_KERNEL(avx512_float_matmul_rows)(WeightType type, const std::byte* weights, int64_t num_outputs,
                                         int64_t num_cols, const RowView* x, int num_rows, float* const* y) {
  matmul_rows_of_type<F32x16>(type, weights, num_outputs, num_cols, x, num_rows, y);
}

}  // namespace foretoken
