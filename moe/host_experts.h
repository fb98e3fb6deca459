#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/moe.h"

namespace foretoken {

/// The host's part of a layer whose experts are split between host and device: computes scratch.partial(slot) for every
/// slot whose expert e has places[e] < 0 (the others are computed elsewhere) and lists these slots, bucket after
/// bucket. The experts of the rows stand in scratch.routing. REQUIRES: x has the forms that gate and up read.
void host_experts(Isa isa, ThreadTeam& team, MoeVerify verify, const MoeWeights& weights, const RowBuffer& x,
                  int num_rows, std::span<const int32_t> places, MoeScratch& scratch, std::vector<int32_t>& slots);

}  // namespace foretoken
