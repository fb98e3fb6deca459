#include "tools/bench/profile_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "moe/work.h"

namespace foretoken {

namespace {

double cycles_ms(const DecodeStatistics& s) {
  return s.draft_ms + s.verify_ms + s.accept_ms + s.refresh_ms;
}

double cycles(const DecodeStatistics& s) {
  return static_cast<double>(std::max<int64_t>(1, s.verify_passes));
}

}  // namespace

std::string describe_profile(const WorkProfile& profile, const DecodeStatistics& s) {
  const double count = cycles(s), cycle = cycles_ms(s) / count;
  std::string text = fmt::format("{:<24}{:>10}{:>10}{:>9}{:>8}\n", "a cycle", "ms", "MB", "GB/s", "share");
  const auto line = [&](std::string_view name, double ms, double bytes) {
    text += fmt::format("{:<24}{:>10.3f}", name, ms);
    text += bytes > 0 ? fmt::format("{:>10.2f}{:>9.1f}", bytes * 1e-6, ms > 0 ? bytes / ms * 1e-6 : 0.0)
                      : fmt::format("{:>19}", "");
    text += fmt::format("{:>7.1f}%\n", cycle > 0 ? 100 * ms / cycle : 0.0);
  };
  for (size_t w = 0; w < static_cast<size_t>(Work::kNumKinds); ++w) {
    const Work work = static_cast<Work>(w);
    const double ms = profile.ms(work) / count;
    if (ms > 0) line(work_name(work), ms, static_cast<double>(profile.bytes(work)) / count);
  }
  line("synchronisation", profile.synchronisation_ms() / count, 0);
  line("outside the loops", cycle - profile.loops_ms() / count, 0);
  line("whole cycle", cycle, 0);
  return text;
}

nlohmann::ordered_json profile_json(const WorkProfile& profile, const DecodeStatistics& s) {
  const double count = cycles(s);
  nlohmann::ordered_json object;
  object["cycle_ms"] = cycles_ms(s) / count;
  object["loops_ms"] = profile.loops_ms() / count;
  object["synchronisation_ms"] = profile.synchronisation_ms() / count;
  for (size_t w = 0; w < static_cast<size_t>(Work::kNumKinds); ++w) {
    const Work work = static_cast<Work>(w);
    if (profile.ms(work) <= 0) continue;
    object["work"][std::string(work_name(work))] = {{"ms", profile.ms(work) / count},
                                                    {"bytes", static_cast<double>(profile.bytes(work)) / count}};
  }
  return object;
}

}  // namespace foretoken
