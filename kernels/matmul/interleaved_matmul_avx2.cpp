#include "kernels/matmul/interleaved_matmul_body.h"

namespace foretoken {

void avx2_interleaved_matmul(const QuantMatmul& m) {
  interleaved_matmul<Lanes8</*kHasDot=*/false>>(m);
}

}  // namespace foretoken
