#include "kernels/cuda/cuda_rows.h"

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_matrix.h"

namespace foretoken::cuda {

RowMemory::RowMemory(int64_t max_rows, int64_t num_cols, unsigned blocks) : max_rows_(max_rows) {
  size_t size_bytes = 0;
  const auto take = [&size_bytes](int64_t bytes) {
    const size_t at = size_bytes;
    size_bytes += static_cast<size_t>(round_up(bytes, 256));
    return at;
  };
  const auto take_form = [&](int block, QuantRows& form, size_t(&at)[3]) {
    FT_CHECK_EQ(num_cols % block, 0);
    form.num_blocks = num_cols / block;
    at[0] = take(max_rows * q_stride(block, form.num_blocks));
    at[1] = take(max_rows * form.num_blocks * static_cast<int64_t>(sizeof(float)));
    at[2] = take(max_rows * sums_stride(block, form.num_blocks) * static_cast<int64_t>(sizeof(int16_t)));
  };
  rows_.num_cols = num_cols;
  const size_t values = take(max_rows * num_cols * static_cast<int64_t>(sizeof(float)));
  size_t at32[3] = {}, at256[3] = {};
  if (blocks & kBy32) take_form(32, rows_.by32, at32);
  if (blocks & kBy256) take_form(256, rows_.by256, at256);
  memory_ = DeviceBuffer(size_bytes, "activation rows");
  const auto place = [&](QuantRows& form, const size_t(&at)[3]) {
    form.q = reinterpret_cast<int8_t*>(memory_.data() + at[0]);
    form.d = reinterpret_cast<float*>(memory_.data() + at[1]);
    form.sums = reinterpret_cast<int16_t*>(memory_.data() + at[2]);
  };
  rows_.values = reinterpret_cast<float*>(memory_.data() + values);
  if (blocks & kBy32) place(rows_.by32, at32);
  if (blocks & kBy256) place(rows_.by256, at256);
}

}  // namespace foretoken::cuda
