#include "kernels/formats/weight_quantiser.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/half.h"
#include "kernels/formats/pack_block.h"
#include "kernels/formats/quant_formats.h"
#include "kernels/formats/weight_codec.h"

namespace foretoken {

namespace {

// Rounding to nearest even of |x| < 2^22, without a call. Contraction and fast math are off in all of this program.
float round_small(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

/// A scale as a block stores it.
float stored_half(float d) {
  return half_to_float(float_to_half(std::clamp(d, -65504.0f, 65504.0f)));
}

/// The integers [low, high] that weights can be.
struct IntegerLevels {
  float low, high;
  [[nodiscard]] float round(float x) const { return round_small(std::clamp(x, low, high)); }
  [[nodiscard]] float span() const { return -low; }  // steps from 0 to the far end
};

/// Integers out of a table, rising.
template <size_t kCount>
struct TableLevels {
  std::array<float, kCount> values;
  float low, high;

  explicit TableLevels(const std::array<float, kCount>& from) : values(from), low(from[0]), high(from[kCount - 1]) {}
  [[nodiscard]] float round(float x) const {
    float found = values[0];
    for (size_t i = 1; i < kCount; ++i) found = x > (values[i - 1] + values[i]) / 2 ? values[i] : found;
    return found;
  }
  [[nodiscard]] float span() const { return static_cast<float>(kCount) / 2; }
};

const TableLevels<16>& iq4_levels() {
  static const TableLevels<16> levels = [] {
    std::array<float, 16> values;
    std::copy(std::begin(kIq4Table), std::end(kIq4Table), values.begin());
    return TableLevels<16>(values);
  }();
  return levels;
}

const TableLevels<15>& mxfp4_levels() {
  static const TableLevels<15> levels = [] {
    std::array<float, 15> values;  // 0 is there twice
    std::copy(std::begin(kMxfp4Table), std::begin(kMxfp4Table) + 8, values.begin() + 7);
    for (size_t i = 0; i < 7; ++i) values[i] = -values[14 - i];
    return TableLevels<15>(values);
  }();
  return levels;
}

float extreme(const float* x, int n) {
  float found = 0;
  for (int i = 0; i < n; ++i) found = std::fabs(x[i]) > std::fabs(found) ? x[i] : found;
  return found;
}

/// 0 where a scale is so small that all it leads to is 0.
float inverse_of(float scale) {
  const float inverse = 1 / scale;
  return std::isfinite(inverse) ? inverse : 0.0f;
}

/// Sum of squared errors of x = scale * level - min.
template <class Levels>
float error_of(const float* x, int n, float scale, float min, const Levels& levels) {
  const float inverse = inverse_of(scale);
  float error = 0;
  for (int i = 0; i < n; ++i) {
    const float difference = x[i] + min - scale * levels.round((x[i] + min) * inverse);
    error += difference * difference;
  }
  return error;
}

template <class Levels>
void put_levels(const float* x, int n, float scale, float min, const Levels& levels, int8_t* q) {
  const float inverse = inverse_of(scale);
  for (int i = 0; i < n; ++i) q[i] = static_cast<int8_t>(levels.round((x[i] + min) * inverse));
}

/// The scale for x = scale * level. Candidates map the extreme value near either end of the levels; of the integers
/// that each leads to, the best scale is sum(x * level) / sum(level^2), and its error is sum(x^2) - gain.
template <class Levels>
float fit_scale(const float* x, int n, const Levels& levels) {
  const float peak = extreme(x, n);
  if (peak == 0) return 0;
  const float step = std::min(0.05f, 0.4f / levels.span());
  float best_gain = 0, best_scale = 0;
  for (const float end : {levels.low, levels.high}) {
    for (int k = -6; k <= 9; ++k) {
      const float inverse = end * (1 + static_cast<float>(k) * step) / peak;
      float products = 0, squares = 0;
      for (int i = 0; i < n; ++i) {
        const float level = levels.round(x[i] * inverse);
        products += x[i] * level;
        squares += level * level;
      }
      if (squares > 0 && products * products > best_gain * squares) {
        best_gain = products * products / squares;
        best_scale = products / squares;
      }
    }
  }
  return best_scale;
}

struct Range {
  float scale = 0, min = 0;
};

/// Scale and min for x = scale * q - min, q in 0..max_q, min >= 0 unless `any_min`. Candidates spread the values over a
/// little less or more than all integers; of the integers that each leads to, least squares gives scale and min.
Range fit_range(const float* x, int n, int max_q, bool any_min) {
  const IntegerLevels levels{0, static_cast<float>(max_q)};
  const auto [lowest, highest] = std::minmax_element(x, x + n);
  const float low = any_min ? *lowest : std::min(*lowest, 0.0f), width = *highest - low;
  if (!(width > 0)) return {0, -low};
  const auto count = static_cast<float>(n);
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i];
  Range best{width / levels.high, -low};
  float best_error = error_of(x, n, best.scale, best.min, levels);
  const auto refine = [&](float inverse, float min) {
    float q_sum = 0, q_squares = 0, products = 0;
    for (int i = 0; i < n; ++i) {
      const float q = levels.round((x[i] + min) * inverse);
      q_sum += q;
      q_squares += q * q;
      products += x[i] * q;
    }
    const float determinant = count * q_squares - q_sum * q_sum;
    if (!(determinant > 0)) return;
    Range range{(count * products - q_sum * sum) / determinant, (q_sum * products - q_squares * sum) / determinant};
    if (!any_min && range.min < 0) range = {products / q_squares, 0};
    if (!(range.scale > 0)) return;
    const float error = error_of(x, n, range.scale, range.min, levels);
    if (error < best_error) {
      best_error = error;
      best = range;
    }
  };
  for (int k = -5; k <= 6; ++k) refine((levels.high + 0.2f * static_cast<float>(k)) / width, -low);
  refine(1 / best.scale, best.min);
  return best;
}

/// Blocks of 32 with one scale.
template <class Levels>
void quantise_one_scale(const float* x, const Levels& levels, QuantBlock& block) {
  block.d = stored_half(fit_scale(x, 32, levels));
  put_levels(x, 32, block.d, 0, levels, block.q);
}

void quantise_one_range(const float* x, int max_q, QuantBlock& block) {
  const Range range = fit_range(x, 32, max_q, /*any_min=*/true);
  block.d = stored_half(range.scale);
  block.dmin = -stored_half(-range.min);
  put_levels(x, 32, block.d, block.dmin, IntegerLevels{0, static_cast<float>(max_q)}, block.q);
}

void quantise_q8_0(const float* x, QuantBlock& block) {
  block.d = stored_half(std::fabs(extreme(x, 32)) / 127);
  put_levels(x, 32, block.d, 0, IntegerLevels{-127, 127}, block.q);
}

/// The power of two is the whole scale, so the three that may be best are tried.
void quantise_mxfp4(const float* x, QuantBlock& block) {
  const float peak = std::fabs(extreme(x, 32));
  const int middle = peak == 0 ? 0 : std::ilogb(peak) - 2 + 127;
  const auto scale_of = [](int e) { return std::ldexp(1.0f, std::clamp(e, 0, 254) - 128); };
  block.d = scale_of(middle);  // also where squares of errors are beyond floats
  float best = std::numeric_limits<float>::infinity();
  for (int e = middle - 1; e <= middle + 1; ++e) {
    const float d = scale_of(e);
    const float error = error_of(x, 32, d, 0, mxfp4_levels());
    if (error >= best) continue;
    best = error;
    block.d = d;
  }
  put_levels(x, 32, block.d, 0, mxfp4_levels(), block.q);
}

/// The multiple of `unit` that is nearest to `value`, or one beyond [low, high] where that is outside of it.
int nearest_code(float value, float unit, int low, int high) {
  if (unit == 0) return 0;
  return static_cast<int>(
      std::clamp(std::nearbyint(value / unit), static_cast<float>(low - 1), static_cast<float>(high + 1)));
}

/// Blocks of 256 whose runs have scales of their own: d times an integer of [low_code, high_code].
template <class Levels>
void quantise_scales(const float* x, int run, int low_code, int high_code, const Levels& levels, QuantBlock& block) {
  float scales[16];
  const int num_runs = 256 / run;
  for (int r = 0; r < num_runs; ++r) scales[r] = fit_scale(x + r * run, run, levels);
  block.d = stored_half(extreme(scales, num_runs) / static_cast<float>(low_code));
  for (int r = 0; r < num_runs; ++r) {
    const float* values = x + r * run;
    const int middle = nearest_code(scales[r], block.d, low_code, high_code);
    int best_code = std::clamp(middle, low_code, high_code);  // also where squares of errors are beyond floats
    float best = std::numeric_limits<float>::infinity();
    for (int code = middle - 1; code <= middle + 1; ++code) {
      const int allowed = std::clamp(code, low_code, high_code);
      const float error = error_of(values, run, block.d * static_cast<float>(allowed), 0, levels);
      if (error >= best) continue;
      best = error;
      best_code = allowed;
    }
    for (int s = r * run / 16; s < (r + 1) * run / 16; ++s) block.scale[s] = static_cast<int16_t>(best_code);
    put_levels(values, run, block.d * static_cast<float>(best_code), 0, levels, block.q + r * run);
  }
}

/// Blocks of 256 whose runs have scales and mins of their own: d and dmin times integers up to max_code.
void quantise_ranges(const float* x, int run, int max_code, int max_q, QuantBlock& block) {
  const IntegerLevels levels{0, static_cast<float>(max_q)};
  Range ranges[16], most;
  const int num_runs = 256 / run;
  for (int r = 0; r < num_runs; ++r) {
    ranges[r] = fit_range(x + r * run, run, max_q, /*any_min=*/false);
    most.scale = std::max(most.scale, ranges[r].scale);
    most.min = std::max(most.min, ranges[r].min);
  }
  block.d = stored_half(most.scale / static_cast<float>(max_code));
  block.dmin = stored_half(most.min / static_cast<float>(max_code));
  const auto code_of = [&](float value, float unit, int offset) {
    return std::clamp(nearest_code(value, unit, 0, max_code) + offset, 0, max_code);
  };
  for (int r = 0; r < num_runs; ++r) {
    const float* values = x + r * run;
    int scale = code_of(ranges[r].scale, block.d, 0), min = code_of(ranges[r].min, block.dmin, 0);
    float best = std::numeric_limits<float>::infinity();
    for (int scale_offset = -1; scale_offset <= 1; ++scale_offset) {
      for (int min_offset = -1; min_offset <= 1; ++min_offset) {
        const int scale_code = code_of(ranges[r].scale, block.d, scale_offset),
                  min_code = code_of(ranges[r].min, block.dmin, min_offset);
        const float error = error_of(values, run, block.d * static_cast<float>(scale_code),
                                     block.dmin * static_cast<float>(min_code), levels);
        if (error >= best) continue;
        best = error;
        scale = scale_code;
        min = min_code;
      }
    }
    for (int s = r * run / 16; s < (r + 1) * run / 16; ++s) {
      block.scale[s] = static_cast<int16_t>(scale);
      block.min[s] = static_cast<int16_t>(min);
    }
    put_levels(values, run, block.d * static_cast<float>(scale), block.dmin * static_cast<float>(min), levels,
               block.q + r * run);
  }
}

void quantise_block(WeightType type, const float* x, QuantBlock& block) {
  switch (type) {
    case WeightType::kQ4_0:
      return quantise_one_scale(x, IntegerLevels{-8, 7}, block);
    case WeightType::kQ5_0:
      return quantise_one_scale(x, IntegerLevels{-16, 15}, block);
    case WeightType::kIQ4_NL:
      return quantise_one_scale(x, iq4_levels(), block);
    case WeightType::kQ4_1:
      return quantise_one_range(x, 15, block);
    case WeightType::kQ5_1:
      return quantise_one_range(x, 31, block);
    case WeightType::kQ8_0:
      return quantise_q8_0(x, block);
    case WeightType::kMXFP4:
      return quantise_mxfp4(x, block);
    case WeightType::kQ2_K:
      return quantise_ranges(x, 16, 15, 3, block);
    case WeightType::kQ4_K:
      return quantise_ranges(x, 32, 63, 15, block);
    case WeightType::kQ5_K:
      return quantise_ranges(x, 32, 63, 31, block);
    case WeightType::kQ3_K:
      return quantise_scales(x, 16, -32, 31, IntegerLevels{-4, 3}, block);
    case WeightType::kQ6_K:
      return quantise_scales(x, 16, -128, 127, IntegerLevels{-32, 31}, block);
    case WeightType::kIQ4_XS:
      return quantise_scales(x, 32, -32, 31, iq4_levels(), block);
    default:
      FT_CHECK(false);
  }
}

}  // namespace

bool can_quantise(WeightType type) {
  return weight_type_info(type).is_float() || can_pack(type);
}

void quantise_weights(WeightType type, const float* values, int64_t num_values, std::byte* blocks) {
  const WeightTypeInfo& info = weight_type_info(type);
  FT_CHECK(can_quantise(type) && num_values % info.block_size == 0);
  if (info.is_float()) return encode_row(type, values, num_values, blocks);
  QuantBlock block;
  for (int64_t b = 0; b < num_values / info.block_size; ++b) {
    block = {};
    quantise_block(type, values + b * info.block_size, block);
    pack_block(type, block, blocks + b * info.block_bytes);
  }
}

}  // namespace foretoken
