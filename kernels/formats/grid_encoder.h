#pragma once

#include <cstdint>

#include "kernels/formats/weight_type.h"

namespace foretoken {

/// encode_row's share for IQ1, IQ2 and IQ3: 256 values to one block. Each run takes the one of its scales that gives the
/// least squared error; its values are rounded to the grid's levels, and eight (or four) of them to the nearest point.
/// REQUIRES: `type` is one with a grid.
void encode_grid_block(WeightType type, const float* x, uint8_t* p);

}  // namespace foretoken
