#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/isa.h"

// Common to the tests of the float kernels.

namespace foretoken::test {

/// Unit roundoff of float32: a correctly rounded operation is off by at most kUnit times its result.
inline constexpr double kUnit = 0x1p-24;

/// The instruction sets to hold against kScalar.
inline std::vector<Isa> fast_isas() {
  std::vector<Isa> isas = supported_isas();
  isas.erase(isas.begin());
  return isas;
}

/// Sizes with every tail of the 32 lanes, odd ones, and multiples.
inline std::vector<int64_t> sweep_sizes() {
  std::vector<int64_t> sizes;
  for (int64_t n = 1; n <= 100; ++n) sizes.push_back(n);
  for (int64_t n : {127, 128, 129, 255, 256, 257, 512, 1000, 1023, 1024, 1025, 2048, 2051}) sizes.push_back(n);
  return sizes;
}

/// `n` values at `offset` floats from an aligned start, with a guard after them that must not change.
class Floats {
 public:
  explicit Floats(int64_t n, int offset = 0)
      : offset_(offset), n_(n), values_(static_cast<size_t>(offset + n) + kGuard, kMark) {}
  float* data() { return values_.data() + offset_; }
  const float* data() const { return values_.data() + offset_; }
  float& operator[](int64_t i) { return data()[i]; }
  float operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return n_; }
  bool guard_is_intact() const {
    for (int i = 0; i < offset_; ++i) {
      if (values_[i] != kMark) return false;
    }
    for (size_t i = static_cast<size_t>(offset_ + n_); i < values_.size(); ++i) {
      if (values_[i] != kMark) return false;
    }
    return true;
  }
  /// The same bits in the same places.
  bool operator==(const Floats& other) const {
    return n_ == other.n_ && std::memcmp(data(), other.data(), static_cast<size_t>(n_) * sizeof(float)) == 0;
  }

 private:
  static constexpr size_t kGuard = 32;
  static constexpr float kMark = -12345.5f;
  int offset_;
  int64_t n_;
  std::vector<float> values_;
};

using Random = std::mt19937_64;

inline void fill_normal(Random& random, Floats& values, float deviation = 1.0f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  for (int64_t i = 0; i < values.size(); ++i) values[i] = normal(random);
}

inline Floats random_floats(Random& random, int64_t n, int offset = 0, float deviation = 1.0f) {
  Floats values(n, offset);
  fill_normal(random, values, deviation);
  return values;
}

inline bool same_bits(float a, float b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

/// Distance of `got` from `want` in units of the last place of `want` as a float (of the smallest denormal where it is
/// denormal).
inline double ulps(float got, double want) {
  if (std::isinf(got) || std::isinf(static_cast<float>(want))) {
    return got == static_cast<float>(want) ? 0.0 : HUGE_VAL;
  }
  int exponent = 0;
  std::frexp(want, &exponent);
  return std::fabs(got - want) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

}  // namespace foretoken::test
