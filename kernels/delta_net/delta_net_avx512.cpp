#include "kernels/delta_net/delta_net_tiles.h"

namespace foretoken {

void FT_KERNEL(avx512_delta_net)(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                                 int column_begin, int column_end, float* scratch) {
  delta_net_with<F32x16>(state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
}

}  // namespace foretoken
