#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/rank_plan.h"
#include "kernels/attention/attention.h"

namespace foretoken {

/// Where the bytes of one rank's KV page or recurrent state stand in the whole model's, which saved sequences have.
struct ShareLayout {
  struct Piece {
    size_t whole_offset, own_offset, size_bytes;
  };
  std::vector<Piece> pieces;
  size_t own_bytes = 0;

  void to_whole(std::span<const std::byte> own, std::span<std::byte> whole) const;
  void from_whole(std::span<const std::byte> whole, std::span<std::byte> own) const;
};

/// As KvPages lays a page out. with_mtp: the MTP layer has keys and values in it.
[[nodiscard]] ShareLayout page_layout(const RankPlan& plan, int rank, KvType type, bool with_mtp);
[[nodiscard]] size_t whole_page_bytes(const RankPlan& plan, KvType type, bool with_mtp);
/// As RecurrentState::read() has it.
[[nodiscard]] ShareLayout state_layout(const RankPlan& plan, int rank);
[[nodiscard]] size_t whole_state_bytes(const RankPlan& plan);

}  // namespace foretoken
