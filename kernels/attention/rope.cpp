#include "kernels/attention/rope.h"

#include <cmath>

#include "kernels/attention/rope_body.h"
#include "kernels/base/error.h"
#include "kernels/base/float_isa.h"

namespace foretoken {

RopeTable::RopeTable(int rope_dim, double base, int64_t num_positions) : rope_dim_(rope_dim) {
  FT_CHECK(rope_dim > 0 && rope_dim % 2 == 0);
  FT_CHECK(num_positions >= 0);
  const int half_dim = rope_dim / 2;
  values_.resize(static_cast<size_t>(num_positions) * static_cast<size_t>(rope_dim));
  for (int i = 0; i < half_dim; ++i) {
    const double frequency = std::pow(base, -2.0 * i / rope_dim);
    for (int64_t position = 0; position < num_positions; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      float* row = &values_[static_cast<size_t>(position * rope_dim)];
      row[i] = static_cast<float>(std::cos(angle));
      row[i + half_dim] = static_cast<float>(std::sin(angle));
    }
  }
}

void rope(Isa isa, const RopeTable& table, int64_t position, float* x) {
  const float* cos = table.cos(position);
  const float* sin = table.sin(position);
  const int half_dim = table.rope_dim() / 2;
  isa == Isa::kScalar ? rotate_pairs(cos, sin, half_dim, x) : avx2_rope(cos, sin, half_dim, x);
}

}  // namespace foretoken
