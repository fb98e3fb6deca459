#include "kernels/formats/interleave.h"

#include <cstring>

#include "kernels/base/error.h"
#include "kernels/formats/grid_levels.h"
#include "kernels/formats/interleave_layout.h"

namespace foretoken {

namespace {

// Where the half scales of an interleaved block of sixteen rows stand: every step-th of `count` halves from byte
// `begin` on.
struct Scales {
  int begin;
  int count;
  int step;
};

Scales scales_of(WeightType type) {
  if (odd_bytes(type).count == 2) return {0, kInterleave, 1};
  // Word 20 of Q2_K, word 0 of the others; IQ4_XS has no half but the first in it.
  if (type == WeightType::kQ2_K) return {20 * 4 * kInterleave, 2 * kInterleave, 1};
  return {0, 2 * kInterleave, type == WeightType::kIQ4_XS ? 2 : 1};
}

// Words of a block before and after its odd bytes.
struct Words {
  int before;
  int all;
};

Words words_of(WeightType type, OddBytes odd) {
  return {odd.begin / 4, (interleaved_block_bytes(type) - odd.count) / 4};
}

// Room for a block of levels, in steps that keep rows apart in the cache's sets.
constexpr int kLevelsBytes = 144;

using Words4 = uint32_t __attribute__((vector_size(16)));

Words4 load_words(const std::byte* from) {
  Words4 words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

// `count` words of each of sixteen rows, row_bytes apart, word by word: to[word][row]. Four words of four rows at a
// time in registers: word by word it took half of a load's time, 0.95 s for 3.3 GB.
void transpose_words(const std::byte* from, size_t row_bytes, int count, std::byte* to) {
  static_assert(kInterleave % 4 == 0);
  int w = 0;
  for (; w + 4 <= count; w += 4) {
    for (int r = 0; r < kInterleave; r += 4) {
      const std::byte* source = from + static_cast<size_t>(r) * row_bytes + 4 * w;
      const Words4 a = load_words(source), b = load_words(source + row_bytes), c = load_words(source + 2 * row_bytes),
                   d = load_words(source + 3 * row_bytes);
      const Words4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                   ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Words4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                   cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const Words4 columns[4] = {
          __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
          __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(to + 4 * (kInterleave * (w + i) + r), &columns[i], sizeof columns[i]);
    }
  }
  for (; w < count; ++w) {
    for (int r = 0; r < kInterleave; ++r)
      std::memcpy(to + 4 * (kInterleave * w + r), from + static_cast<size_t>(r) * row_bytes + 4 * w, 4);
  }
}

}  // namespace

bool can_interleave(WeightType type, int64_t num_rows, int64_t num_cols) {
  const WeightTypeInfo& info = weight_type_info(type);
  return !info.is_float() && num_rows > 0 && num_rows % kInterleave == 0 && num_cols > 0 &&
         num_cols % info.block_size == 0;
}

void interleave_rows(const MatrixView& from, int64_t row_begin, int64_t row_end, std::byte* to) {
  FT_CHECK(from.layout == Layout::kRows && can_interleave(from.type, from.num_rows, from.num_cols));
  FT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= from.num_rows);
  FT_CHECK(row_begin % kInterleave == 0 && row_end % kInterleave == 0);
  const WeightTypeInfo& info = weight_type_info(from.type);
  const OddBytes odd = odd_bytes(from.type);
  const Words words = words_of(from.type, odd);
  const size_t row_bytes = from.row_bytes();
  const auto block_bytes = static_cast<size_t>(interleaved_block_bytes(from.type));
  const int64_t num_blocks = from.num_cols / info.block_size;
  const bool levels = has_levels(from.type);
  for (int64_t row = row_begin; row < row_end; row += kInterleave) {
    for (int64_t b = 0; b < num_blocks; ++b) {
      // Sixteen streams are read forward, one block is written.
      std::byte* const block =
          to + (static_cast<size_t>(row * num_blocks) + static_cast<size_t>(b) * kInterleave) * block_bytes;
      std::byte* const first_word = block + odd.count * kInterleave;
      const std::byte* source =
          from.data + static_cast<size_t>(row) * row_bytes + static_cast<size_t>(b * info.block_bytes);
      size_t stride = row_bytes;
      alignas(16) std::byte of_levels[kInterleave * kLevelsBytes];
      if (levels) {
        for (int r = 0; r < kInterleave; ++r) {
          block_to_levels(from.type, source + static_cast<size_t>(r) * row_bytes, of_levels + r * kLevelsBytes);
        }
        source = of_levels;
        stride = kLevelsBytes;
      }
      for (int r = 0; r < kInterleave && odd.count > 0; ++r) {
        std::memcpy(block + r * odd.count, source + static_cast<size_t>(r) * stride + odd.begin,
                    static_cast<size_t>(odd.count));
      }
      transpose_words(source, stride, words.before, first_word);
      transpose_words(source + 4 * words.before + odd.count, stride, words.all - words.before,
                      first_word + 4 * kInterleave * words.before);
    }
  }
}

bool interleaved_rows_are_finite(const MatrixView& from, int64_t row_begin, int64_t row_end) {
  FT_CHECK(from.layout == Layout::kInterleaved && 0 <= row_begin && row_begin <= row_end && row_end <= from.num_rows);
  FT_CHECK(row_begin % kInterleave == 0 && row_end % kInterleave == 0);
  if (from.type == WeightType::kNVFP4) return true;  // as block_is_finite
  const Scales scales = scales_of(from.type);
  const auto block_bytes = static_cast<size_t>(interleaved_block_bytes(from.type)) * kInterleave;
  const std::byte* const end = from.data + static_cast<size_t>(row_end) * from.row_bytes();
  bool finite = true;
  for (const std::byte* p = from.data + static_cast<size_t>(row_begin) * from.row_bytes(); p < end; p += block_bytes) {
    if (from.type == WeightType::kMXFP4) {
      for (int r = 0; r < kInterleave; ++r) finite &= p[r] != std::byte{255};  // E8M0's only NaN
      continue;
    }
    uint16_t halves[2 * kInterleave];
    std::memcpy(halves, p + scales.begin, static_cast<size_t>(scales.count) * 2);
    for (int i = 0; i < scales.count; i += scales.step) finite &= (halves[i] & 0x7c00) != 0x7c00;
  }
  return finite;
}

void extract_row(const MatrixView& from, int64_t row, std::byte* to) {
  FT_CHECK(from.layout == Layout::kInterleaved && 0 <= row && row < from.num_rows);
  const WeightTypeInfo& info = weight_type_info(from.type);
  const OddBytes odd = odd_bytes(from.type);
  const Words words = words_of(from.type, odd);
  const int64_t lane = row % kInterleave, num_blocks = from.num_cols / info.block_size;
  const bool levels = has_levels(from.type);
  const std::byte* block = from.data + static_cast<size_t>(row - lane) * from.row_bytes();
  for (int64_t b = 0; b < num_blocks; ++b) {
    std::byte of_levels[kLevelsBytes];
    std::byte* const out = levels ? of_levels : to;
    std::memcpy(out + odd.begin, block + lane * odd.count, static_cast<size_t>(odd.count));
    const std::byte* word = block + odd.count * kInterleave + 4 * lane;
    for (int w = 0; w < words.all; ++w) {
      std::memcpy(out + 4 * w + (w >= words.before ? odd.count : 0), word, 4);
      word += 4 * kInterleave;
    }
    if (levels) block_from_levels(from.type, of_levels, to);
    block += interleaved_block_bytes(from.type) * kInterleave;
    to += info.block_bytes;
  }
}

}  // namespace foretoken
