#pragma once

#include <functional>

#include "engine/cluster/cluster.h"

namespace foretoken {

/// Processes that mpirun has started together with this one, itself included; 1 without mpirun.
[[nodiscard]] int processes_of_mpirun();

/// The program under mpirun with several processes. On the first, `run_command` runs with program_cluster(); its result
/// is the exit code. The others follow it, and say nothing. Throws InputError where this build has no MPI.
[[nodiscard]] int run_in_cluster(int argc, const char* const* argv, const std::function<int()>& run_command);

/// Of the first process; nullptr alone.
[[nodiscard]] Cluster* program_cluster();

}  // namespace foretoken
