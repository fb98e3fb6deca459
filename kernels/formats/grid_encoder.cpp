#include "kernels/formats/grid_encoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/formats/block_bytes.h"
#include "kernels/formats/grid_points.h"
#include "kernels/formats/grids.h"

namespace foretoken {

namespace {

/// Finds the point nearest to values that were rounded to levels.
template <class Word, int kCount, int kLevels>
class NearestPoints {
 public:
  static constexpr int kCoordinates = static_cast<int>(sizeof(Word));

  NearestPoints(const Grid<Word, kCount>& grid, const uint8_t (&levels)[kLevels]) : grid_(grid), levels_(levels) {
    for (int l = 0; l + 1 < kLevels; ++l) limits_[l] = 0.5f * static_cast<float>(levels[l] + levels[l + 1]);
    int num_codes = 1;
    for (int i = 0; i < kCoordinates; ++i) num_codes *= kLevels;
    nearest_.resize(num_codes);
    for (int code = 0; code < num_codes; ++code) {
      uint8_t wanted[kCoordinates];
      for (int i = 0, left = code; i < kCoordinates; ++i, left /= kLevels) wanted[i] = levels[left % kLevels];
      int best = std::numeric_limits<int>::max();
      for (int point = 0; point < kCount; ++point) {
        int distance = 0;
        for (int i = 0; i < kCoordinates; ++i) {
          const int difference = coordinate(point, i) - wanted[i];
          distance += difference * difference;
        }
        if (distance < best) {
          best = distance;
          nearest_[code] = static_cast<uint16_t>(point);
        }
      }
    }
  }

  [[nodiscard]] int coordinate(int point, int i) const { return static_cast<int>(grid_.point[point] >> (8 * i) & 255); }

  /// The point for kCoordinates values in the levels' units.
  [[nodiscard]] int find(const float* values) const {
    int code = 0;
    for (int i = kCoordinates - 1; i >= 0; --i) {
      int level = 0;
      for (int l = 0; l + 1 < kLevels; ++l) level += values[i] > limits_[l] ? 1 : 0;
      code = code * kLevels + level;
    }
    return nearest_[code];
  }

 private:
  const Grid<Word, kCount>& grid_;
  const uint8_t (&levels_)[kLevels];
  float limits_[kLevels];
  std::vector<uint16_t> nearest_;  // [code]
};

template <class Word, int kCount, int kLevels>
NearestPoints(const Grid<Word, kCount>&, const uint8_t (&)[kLevels]) -> NearestPoints<Word, kCount, kLevels>;

/// Eight values: one index, or two of four values each.
struct Group {
  int index[2];
  uint32_t signs;
  bool minus;  // IQ1: 1/8 is taken away instead of added
};

// The half for a scale, which must not be an infinity.
uint16_t half_of(float d) {
  return float_to_half(std::clamp(d, -65504.0f, 65504.0f));
}

float largest(const float* x, int n) {
  float found = 0;
  for (int i = 0; i < n; ++i) found = std::max(found, std::fabs(x[i]));
  return found;
}

float over(float x, float scale) {
  return scale == 0 ? 0.0f : x / scale;
}

/// Magnitudes and signs of eight values; returns the squared error. even_signs: the number of signs has to be even.
template <class Points>
double take_magnitudes(const Points& points, const float* x, float scale, bool even_signs, Group& group) {
  float magnitudes[8];
  group = {};
  int smallest = 0;
  for (int i = 0; i < 8; ++i) {
    magnitudes[i] = std::fabs(over(x[i], scale));
    group.signs |= (x[i] < 0 ? 1u : 0u) << i;
    if (magnitudes[i] < magnitudes[smallest]) smallest = i;
  }
  if (even_signs && std::popcount(group.signs) % 2 != 0) group.signs ^= 1u << smallest;
  double error = 0;
  for (int begin = 0; begin < 8; begin += Points::kCoordinates) {
    const int point = points.find(magnitudes + begin);
    group.index[begin / Points::kCoordinates] = point;
    for (int i = 0; i < Points::kCoordinates; ++i) {
      const auto magnitude = static_cast<float>(points.coordinate(point, i));
      const float value = (group.signs >> (begin + i) & 1) != 0 ? -magnitude : magnitude;
      error += std::pow(double{value} * scale - x[begin + i], 2);
    }
  }
  return error;
}

/// take_magnitudes() as best_scale() asks for it. `points` has to stay.
template <class Points>
auto by_magnitudes(const Points& points, bool even_signs) {
  return [&points, even_signs](const float* values, float scale, Group& group) {
    return take_magnitudes(points, values, scale, even_signs, group);
  };
}

/// The same for 8g + delta; values are taken in units of the table's 8 (g + 1).
template <class Points>
double take_ternary(const Points& points, const float* x, float scale, bool minus, Group& group) {
  const float delta = minus ? -1.0f : 1.0f;
  float shifted[8];
  for (int i = 0; i < 8; ++i) shifted[i] = over(x[i], scale) - delta + 8;
  group = {};
  group.minus = minus;
  group.index[0] = points.find(shifted);
  double error = 0;
  for (int i = 0; i < 8; ++i) {
    const float value = static_cast<float>(points.coordinate(group.index[0], i)) - 8 + delta;
    error += std::pow(double{value} * scale - x[i], 2);
  }
  return error;
}

/// A run: its groups with the best of the scales d (2s + 1). take(values, scale, group) gives a group's error.
template <class Take>
double best_scale(const float* x, int num_groups, float d, int num_scales, const Take& take, int& s, Group* groups) {
  double best = std::numeric_limits<double>::infinity();
  s = 0;
  for (int candidate = 0; candidate < num_scales; ++candidate) {
    Group found[4];
    double error = 0;
    for (int l = 0; l < num_groups; ++l) {
      error += take(x + 8 * l, d * static_cast<float>(2 * candidate + 1), found[l]);
    }
    if (candidate == 0 || error < best) {
      best = error;
      s = candidate;
      std::copy(found, found + num_groups, groups);
    }
  }
  return best;
}

void put_group_signs(const Group* groups, int s, uint8_t* p) {
  uint32_t word = static_cast<uint32_t>(s) << 28;
  for (int l = 0; l < 4; ++l) word |= (groups[l].signs & 127u) << (7 * l);
  put_u16(p, word);
  put_u16(p + 2, word >> 16);
}

void or_into(uint8_t& byte, int bits) {
  byte = static_cast<uint8_t>(byte | bits);
}

// d so that the largest value meets the highest level at the largest scale; the integers count in d / share.
uint16_t half_for(const float* x, int highest, int largest_scale, int share) {
  return half_of(largest(x, 256) * static_cast<float>(share) / static_cast<float>(highest * largest_scale));
}

float unit_of(uint16_t half, int share) {
  return half_to_float(half) / static_cast<float>(share);
}

void encode_iq2_xxs(const float* x, uint8_t* p) {
  static const NearestPoints points(kIq2XxsGrid, kIq2Levels);
  const uint16_t half = half_for(x, 43, 31, 8);
  put_u16(p, half);
  const auto take = by_magnitudes(points, /*even_signs=*/true);
  for (int r = 0; r < 8; ++r) {
    int s;
    Group groups[4];
    best_scale(x + 32 * r, 4, unit_of(half, 8), 16, take, s, groups);
    for (int l = 0; l < 4; ++l) p[2 + 8 * r + l] = static_cast<uint8_t>(groups[l].index[0]);
    put_group_signs(groups, s, p + 6 + 8 * r);
  }
}

void encode_iq2_xs(const float* x, uint8_t* p) {
  static const NearestPoints points(kIq2XsGrid, kIq2Levels);
  const uint16_t half = half_for(x, 43, 31, 8);
  put_u16(p, half);
  const auto take = by_magnitudes(points, /*even_signs=*/true);
  for (int run = 0; run < 16; ++run) {
    int s;
    Group groups[4];
    best_scale(x + 16 * run, 2, unit_of(half, 8), 16, take, s, groups);
    for (int l = 0; l < 2; ++l) {
      put_u16(p + 2 + 4 * run + 2 * l, static_cast<uint32_t>(groups[l].index[0]) | (groups[l].signs & 127u) << 9);
    }
    or_into(p[66 + run / 2], s << (4 * (run % 2)));
  }
}

void encode_iq2_s(const float* x, uint8_t* p) {
  static const NearestPoints points(kIq2SGrid, kIq2Levels);
  const uint16_t half = half_for(x, 43, 31, 8);
  put_u16(p, half);
  const auto take = by_magnitudes(points, /*even_signs=*/false);
  for (int run = 0; run < 16; ++run) {
    int s;
    Group groups[4];
    best_scale(x + 16 * run, 2, unit_of(half, 8), 16, take, s, groups);
    for (int l = 0; l < 2; ++l) {
      const int at = 2 * run + l, index = groups[l].index[0];
      p[2 + at] = static_cast<uint8_t>(index);
      p[34 + at] = static_cast<uint8_t>(groups[l].signs);
      or_into(p[66 + at / 4], index >> 8 << (2 * (at % 4)));
    }
    or_into(p[74 + run / 2], s << (4 * (run % 2)));
  }
}

void encode_iq3_xxs(const float* x, uint8_t* p) {
  static const NearestPoints points(kIq3XxsGrid, kIq3XxsLevels);
  const uint16_t half = half_for(x, 31, 31, 2);
  put_u16(p, half);
  const auto take = by_magnitudes(points, /*even_signs=*/true);
  for (int r = 0; r < 8; ++r) {
    int s;
    Group groups[4];
    best_scale(x + 32 * r, 4, unit_of(half, 2), 16, take, s, groups);
    for (int j = 0; j < 8; ++j) p[2 + 8 * r + j] = static_cast<uint8_t>(groups[j / 2].index[j % 2]);
    put_group_signs(groups, s, p + 66 + 4 * r);
  }
}

void encode_iq3_s(const float* x, uint8_t* p) {
  static const NearestPoints points(kIq3SGrid, kIq3SLevels);
  const uint16_t half = half_for(x, 15, 31, 1);
  put_u16(p, half);
  const auto take = by_magnitudes(points, /*even_signs=*/false);
  for (int r = 0; r < 8; ++r) {
    int s;
    Group groups[4];
    best_scale(x + 32 * r, 4, unit_of(half, 1), 16, take, s, groups);
    for (int j = 0; j < 8; ++j) {
      const int index = groups[j / 2].index[j % 2];
      p[2 + 8 * r + j] = static_cast<uint8_t>(index);
      or_into(p[66 + r], index >> 8 << j);
    }
    for (int l = 0; l < 4; ++l) p[74 + 4 * r + l] = static_cast<uint8_t>(groups[l].signs);
    or_into(p[106 + r / 2], s << (4 * (r % 2)));
  }
}

const auto& ternary_points() {
  static const NearestPoints points(kIq1Grid, kIq1Levels);
  return points;
}

void encode_iq1_s(const float* x, uint8_t* p) {
  const auto& points = ternary_points();
  const uint16_t half = half_for(x, 9, 15, 8);
  put_u16(p, half);
  for (int r = 0; r < 8; ++r) {
    int s[2];
    Group groups[2][4];
    double error[2];
    for (const bool minus : {false, true}) {  // one for the whole run
      const auto take = [&](const float* values, float scale, Group& group) {
        return take_ternary(points, values, scale, minus, group);
      };
      error[minus] = best_scale(x + 32 * r, 4, unit_of(half, 8), 8, take, s[minus], groups[minus]);
    }
    const bool minus = error[1] < error[0];
    uint32_t high = static_cast<uint32_t>(s[minus]) << 12 | (minus ? 0x8000u : 0u);
    for (int l = 0; l < 4; ++l) {
      const int index = groups[minus][l].index[0];
      p[2 + 4 * r + l] = static_cast<uint8_t>(index);
      high |= static_cast<uint32_t>(index >> 8) << (3 * l);
    }
    put_u16(p + 34 + 2 * r, high);
  }
}

void encode_iq1_m(const float* x, uint8_t* p) {
  const auto& points = ternary_points();
  const uint16_t half = half_for(x, 9, 15, 8);
  const auto take = [&](const float* values, float scale, Group& group) {
    Group minus;
    const double error = take_ternary(points, values, scale, /*minus=*/false, group);
    const double other = take_ternary(points, values, scale, /*minus=*/true, minus);
    if (other < error) group = minus;
    return std::min(error, other);
  };
  uint32_t words[4] = {};
  for (int run = 0; run < 16; ++run) {
    int s;
    Group groups[4];
    best_scale(x + 16 * run, 2, unit_of(half, 8), 8, take, s, groups);
    for (int l = 0; l < 2; ++l) {
      const int index = groups[l].index[0];
      p[2 * run + l] = static_cast<uint8_t>(index);
      or_into(p[32 + run], (index >> 8 | (groups[l].minus ? 8 : 0)) << (4 * l));
    }
    words[run / 4] |= static_cast<uint32_t>(s) << (3 * (run % 4));
  }
  for (int i = 0; i < 4; ++i) put_u16(p + 48 + 2 * i, words[i] | (half >> (4 * i) & 15u) << 12);
}

}  // namespace

void encode_grid_block(WeightType type, const float* x, uint8_t* p) {
  std::memset(p, 0, static_cast<size_t>(weight_type_info(type).block_bytes));
  switch (type) {
    case WeightType::kIQ3_S:
      return encode_iq3_s(x, p);
    case WeightType::kIQ3_XXS:
      return encode_iq3_xxs(x, p);
    case WeightType::kIQ2_S:
      return encode_iq2_s(x, p);
    case WeightType::kIQ2_XS:
      return encode_iq2_xs(x, p);
    case WeightType::kIQ2_XXS:
      return encode_iq2_xxs(x, p);
    case WeightType::kIQ1_S:
      return encode_iq1_s(x, p);
    case WeightType::kIQ1_M:
      return encode_iq1_m(x, p);
    default:
      FT_CHECK(false);
  }
}

}  // namespace foretoken
