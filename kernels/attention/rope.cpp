#include "kernels/attention/rope.h"

#include <cmath>

#include "kernels/attention/rope_body.h"
#include "kernels/base/error.h"
#include "kernels/float_isa.h"

namespace foretoken {

namespace {

std::vector<double> plain_frequencies(int rope_dim, double base) {
  FT_CHECK(rope_dim > 0 && rope_dim % 2 == 0);
  std::vector<double> frequencies;
  for (int i = 0; i < rope_dim / 2; ++i) frequencies.push_back(std::pow(base, -2.0 * i / rope_dim));
  return frequencies;
}

}  // namespace

RopeTable::RopeTable(int rope_dim, double base, int64_t num_positions)
    : RopeTable(plain_frequencies(rope_dim, base), 1, RopePairs::kHalves, num_positions) {}

RopeTable::RopeTable(std::span<const double> frequencies, double magnitude, RopePairs pairs, int64_t num_positions)
    : rope_dim_(2 * static_cast<int>(frequencies.size())), pairs_(pairs) {
  FT_CHECK(!frequencies.empty() && num_positions >= 0);
  const size_t half_dim = frequencies.size();
  values_.resize(static_cast<size_t>(num_positions) * 2 * half_dim);
  for (size_t i = 0; i < half_dim; ++i) {
    for (int64_t position = 0; position < num_positions; ++position) {
      const double angle = static_cast<double>(position) * frequencies[i];
      float* row = &values_[static_cast<size_t>(position) * 2 * half_dim];
      row[i] = static_cast<float>(std::cos(angle) * magnitude);
      row[i + half_dim] = static_cast<float>(std::sin(angle) * magnitude);
    }
  }
}

void rope(Isa isa, const RopeTable& table, int64_t position, float* x) {
  const float* cos = table.cos(position);
  const float* sin = table.sin(position);
  const int half_dim = table.rope_dim() / 2;
  if (table.pairs() == RopePairs::kAdjacent) {
    isa == Isa::kScalar ? rotate_adjacent(cos, sin, half_dim, x) : avx2_rope_adjacent(cos, sin, half_dim, x);
  } else {
    isa == Isa::kScalar ? rotate_pairs(cos, sin, half_dim, x) : avx2_rope(cos, sin, half_dim, x);
  }
}

}  // namespace foretoken
