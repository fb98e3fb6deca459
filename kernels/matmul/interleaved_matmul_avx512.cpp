#include "kernels/matmul/interleaved_matmul_body.h"

namespace foretoken {

void FT_KERNEL(avx512_interleaved_matmul)(const QuantMatmul& m) {
  interleaved_matmul<Lanes16</*kHasDot=*/false>>(m);
}

}  // namespace foretoken
