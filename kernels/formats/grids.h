#pragma once

#include <bit>
#include <cstdint>

// The grids of IQ1, IQ2 and IQ3 in the host's memory; grid_points.h says what they are.

namespace foretoken {

/// A table of points: byte i of a word is coordinate i.
template <class Word, int kCount>
struct Grid {
  Word point[kCount];
};

/// Signs of a group of which seven bits are stored: the eighth makes their number even.
inline uint32_t with_eighth_sign(uint32_t signs) {
  return signs | static_cast<uint32_t>(std::popcount(signs) & 1) << 7;
}

extern const Grid<uint64_t, 256> kIq2XxsGrid;  // magnitudes 8, 25, 43
extern const Grid<uint64_t, 512> kIq2XsGrid;
extern const Grid<uint64_t, 1024> kIq2SGrid;
extern const Grid<uint64_t, 2048> kIq1Grid;    // 8 (g + 1) of g = -1, 0, 1
extern const Grid<uint32_t, 256> kIq3XxsGrid;  // half the magnitudes: 2, 6 .. 26, 31
extern const Grid<uint32_t, 512> kIq3SGrid;    // magnitudes 1, 3 .. 15

}  // namespace foretoken
