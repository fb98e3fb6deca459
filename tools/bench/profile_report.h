#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "kernels/threads/work_profile.h"
#include "mtp/statistics.h"

namespace foretoken {

/// Where the time of a generation's cycles went: a line for each kind of work with ms a cycle, MB, GB/s and share; then
/// the loops' synchronisation and what lies outside the loops (sampling, bookkeeping). `profile` covers the same cycles
/// as `statistics`.
[[nodiscard]] std::string describe_profile(const WorkProfile& profile, const DecodeStatistics& statistics);

/// The same as JSON: {"cycle_ms", "loops_ms", "synchronisation_ms", "work": {kind: {"ms", "bytes"}}}, all a cycle.
[[nodiscard]] nlohmann::ordered_json profile_json(const WorkProfile& profile, const DecodeStatistics& statistics);

}  // namespace foretoken
