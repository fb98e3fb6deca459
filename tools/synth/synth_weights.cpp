#include "tools/synth/synth_weights.h"

#include <cmath>
#include <cstring>

#include "kernels/formats/weight_codec.h"
#include "tools/synth/synth_random.h"

namespace foretoken::synth {

namespace {

constexpr double kPoolFrom = 1 << 22;  // weights; below, every value is drawn for itself

void fill_normal(uint64_t key, int64_t n, float deviation, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = deviation * normal(derive(key, static_cast<uint64_t>(i)));
}

size_t bytes_of(WeightType type, int64_t values) {
  const WeightTypeInfo& info = weight_type_info(type);
  return static_cast<size_t>(values / info.block_size * info.block_bytes);
}

double product(const std::vector<int64_t>& shape) {
  double product = 1;
  for (int64_t n : shape) product *= static_cast<double>(n);
  return product;
}

}  // namespace

PiecePool::PiecePool(WeightType type, int64_t piece_values, float deviation)
    : piece_bytes_(bytes_of(type, piece_values)), bytes_(kPieces * piece_bytes_) {
  const uint64_t key = derive(0, "piece pool");
  std::vector<float> values(static_cast<size_t>(piece_values));
  for (uint64_t piece = 0; piece < kPieces; ++piece) {
    fill_normal(derive(key, piece), piece_values, deviation, values.data());
    encode_row(type, values.data(), piece_values, bytes_.data() + piece * piece_bytes_);
  }
}

int64_t PiecePool::piece_values(WeightType type, int64_t row_values) {
  for (int64_t values : {256, 128, 64, 32}) {
    if (row_values % values == 0 && values % weight_type_info(type).block_size == 0) return values;
  }
  return 0;
}

uint64_t WeightWriter::key(std::string_view name) const {
  return derive(seed_, name);
}

void WeightWriter::add(const std::string& name, WeightType type, std::vector<int64_t> shape, GgufWriter::Fill fill) {
  ++num_tensors_;
  num_weights_ += product(shape);
  file_.add_tensor(name, type, std::move(shape), std::move(fill));
}

void WeightWriter::add_rows(const std::string& name, WeightType type, std::vector<int64_t> shape, RowFill fill) {
  const int64_t n = shape[0];
  add(name, type, std::move(shape),
      [type, n, fill = std::move(fill)](int64_t row_begin, int64_t row_end, std::byte* out) {
        std::vector<float> values(static_cast<size_t>(n));
        for (int64_t row = row_begin; row < row_end; ++row, out += bytes_of(type, n)) {
          fill(row, values.data());
          encode_row(type, values.data(), n, out);
        }
      });
}

void WeightWriter::add_vector(const std::string& name, int64_t n, float center, float spread) {
  add_rows(name, WeightType::kF32, {n}, [key = key(name), n, center, spread](int64_t, float* out) {
    fill_normal(key, n, spread, out);
    for (int64_t i = 0; i < n; ++i) out[i] += center;
  });
}

void WeightWriter::add_matrix(const std::string& name, WeightType type, std::vector<int64_t> shape, double scale,
                              IsZeroRow is_zero) {
  const int64_t n = shape[0];
  const float deviation = static_cast<float>(scale / std::sqrt(static_cast<double>(n)));
  const uint64_t matrix_key = key(name);
  const int64_t piece_values = PiecePool::piece_values(type, n);
  if (piece_values == 0 || product(shape) < kPoolFrom) {
    add_rows(name, type, std::move(shape), [=](int64_t row, float* out) {
      const bool zero = is_zero && is_zero(row);
      fill_normal(derive(matrix_key, static_cast<uint64_t>(row)), n, zero ? 0.0f : deviation, out);
    });
    return;
  }
  auto& pool = pools_[{type, piece_values, deviation}];
  if (pool == nullptr) pool = std::make_shared<PiecePool>(type, piece_values, deviation);
  add(name, type, std::move(shape), [=, pool = pool](int64_t row_begin, int64_t row_end, std::byte* out) {
    const std::vector<float> zeros(static_cast<size_t>(n));
    for (int64_t row = row_begin; row < row_end; ++row) {
      const uint64_t row_key = derive(matrix_key, static_cast<uint64_t>(row));
      if (is_zero && is_zero(row)) {
        encode_row(type, zeros.data(), n, out);
        out += bytes_of(type, n);
        continue;
      }
      for (int64_t piece = 0; piece < n / piece_values; ++piece, out += pool->piece_bytes()) {
        std::memcpy(out, pool->piece(derive(row_key, static_cast<uint64_t>(piece))), pool->piece_bytes());
      }
    }
  });
}

}  // namespace foretoken::synth
