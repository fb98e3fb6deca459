#include "kernels/delta_net_body.h"
#include "kernels/delta_net_tiles.h"

namespace foretoken {

void avx2_delta_net(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                    int column_begin, int column_end, float* scratch) {
  delta_net_with<F32x8>(state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
}

void avx2_causal_conv(const float* weight, int taps, const float* const* u, int64_t begin, int64_t end, float* out) {
  causal_conv_any(weight, taps, u, begin, end, out);
}

}  // namespace foretoken
