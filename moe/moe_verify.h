#pragma once

#include <cstdint>

namespace foretoken {

/// Which core computes the routed experts. Same bits; grouped reads each expert once a window, per-token once for each
/// (row, expert).
enum class MoeVerify : uint8_t { kGrouped, kPerToken };

}  // namespace foretoken
