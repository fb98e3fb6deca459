#include "kernels/rows/row_buffer.h"

#include "kernels/base/error.h"
#include "kernels/matmul/quant_matmul.h"

namespace foretoken {

namespace {

// Rows of int8 start at multiples of 64 bytes whatever num_cols is.
int64_t q_stride(int64_t num_cols) {
  return (num_cols + 63) / 64 * 64;
}

size_t bytes(int64_t count, size_t size) {
  return static_cast<size_t>(count) * size;
}

}  // namespace

void quantise_row(Isa isa, const float* values, int64_t num_cols, int block, int8_t* q, float* d, int16_t* sums) {
  FT_CHECK(block == 32 || block == 256);
  FT_CHECK(num_cols >= 0 && num_cols % block == 0);
  switch (isa) {
    case Isa::kScalar:
      return scalar_quantise_row(values, num_cols, block, q, d, sums);
#if defined(__x86_64__)
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
      return avx2_quantise_row(values, num_cols, block, q, d, sums);
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
      return avx512_quantise_row(values, num_cols, block, q, d, sums);
#else
    default:
      break;
#endif
  }
  check_failed(__FILE__, __LINE__, "the instruction set is compiled in", std::string(isa_name(isa)));
}

RowBuffer::RowBuffer(int64_t max_rows, int64_t num_cols)
    : max_rows_(max_rows),
      num_cols_(num_cols),
      most_cols_(num_cols),
      values_(bytes(max_rows * num_cols, sizeof(float)), "activation rows") {
  FT_CHECK(max_rows >= 0 && num_cols >= 0);
  // Rows of fewer columns may have forms that these have not.
  if (num_cols >= 32) {
    q32_ = AlignedBuffer(bytes(max_rows * q_stride(num_cols), 1), "quantised rows");
    d32_ = AlignedBuffer(bytes(max_rows * (num_cols / 32), sizeof(float)), "quantised rows");
    sums32_ = AlignedBuffer(bytes(max_rows * (num_cols / 16), sizeof(int16_t)), "quantised rows");
  }
  if (num_cols >= 256) {
    q256_ = AlignedBuffer(bytes(max_rows * q_stride(num_cols), 1), "quantised rows");
    d256_ = AlignedBuffer(bytes(max_rows * (num_cols / 256), sizeof(float)), "quantised rows");
    sums256_ = AlignedBuffer(bytes(max_rows * (num_cols / 16), sizeof(int16_t)), "quantised rows");
  }
}

void RowBuffer::set_num_cols(int64_t num_cols) {
  FT_CHECK(num_cols > 0 && num_cols <= most_cols_);
  num_cols_ = num_cols;
}

void RowBuffer::quantise(Isa isa, int64_t r, int block) {
  if (block == 0) return;
  FT_CHECK(0 <= r && r < max_rows_);
  FT_CHECK(block == 32 || block == 256);
  FT_CHECK_EQ(num_cols_ % block, 0);
  const bool small = block == 32;
  AlignedBuffer& q = small ? q32_ : q256_;
  AlignedBuffer& d = small ? d32_ : d256_;
  AlignedBuffer& sums = small ? sums32_ : sums256_;
  quantise_row(isa, row(r), num_cols_, block, q.data<int8_t>() + r * q_stride(num_cols_),
               d.data<float>() + r * (num_cols_ / block), sums.data<int16_t>() + r * (num_cols_ / 16));
}

RowView RowBuffer::view(int64_t r) const {
  FT_CHECK(0 <= r && r < max_rows_);
  RowView view;
  view.values = row(r);
  if (num_cols_ % 32 == 0) {
    view.by32 = {q32_.data<int8_t>() + r * q_stride(num_cols_), d32_.data<float>() + r * (num_cols_ / 32),
                 sums32_.data<int16_t>() + r * (num_cols_ / 16)};
  }
  if (num_cols_ % 256 == 0) {
    view.by256 = {q256_.data<int8_t>() + r * q_stride(num_cols_), d256_.data<float>() + r * (num_cols_ / 256),
                  sums256_.data<int16_t>() + r * (num_cols_ / 16)};
  }
  return view;
}

size_t RowBuffer::size_bytes() const {
  size_t total = 0;
  for (const AlignedBuffer* buffer : {&values_, &q32_, &q256_, &d32_, &d256_, &sums32_, &sums256_}) {
    total += buffer->size_bytes();
  }
  return total;
}

}  // namespace foretoken
