#pragma once

#include <memory>

#include "engine/cluster/watchdog.h"
#include "engine/transport.h"

namespace foretoken {

/// Transport over MPI: between the processes that mpirun has started. Only in builds with MPI.
///
/// A follower that waits for rank 0's next call looks for it often for a moment and then a few thousand times a second,
/// so that an idle server leaves its machines idle; everything else waits as MPI does.
///
/// Once for a process. The constructor starts MPI for calls from one thread at a time, the destructor ends it, on all
/// ranks at the same time. `activity` stays.
[[nodiscard]] std::unique_ptr<Transport> start_mpi(Activity& activity);

}  // namespace foretoken
