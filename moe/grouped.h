#pragma once

#include "moe/moe.h"

namespace foretoken {

/// The group-by-expert core: the window's rows in buckets, each used expert read once. Fills scratch.partials_ and
/// scratch.shared_.
void grouped_experts(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, int num_rows,
                     MoeScratch& scratch);

/// The per-token core beside it, for ever: row after row, each (row, expert) read on its own. The shared expert is a
/// dense part and is read once in both.
void per_token_experts(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, int num_rows,
                       MoeScratch& scratch);

}  // namespace foretoken
