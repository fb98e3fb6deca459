#include "kernels/matmul/interleaved_matmul_body.h"

namespace foretoken {

void FT_KERNEL(avx2vnni_interleaved_matmul)(const QuantMatmul& m) {
  interleaved_matmul<Lanes8</*kHasDot=*/true>>(m);
}

}  // namespace foretoken
