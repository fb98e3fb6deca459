#include "kernels/threads/work_profile.h"

namespace foretoken {

void WorkProfile::clear() {
  for (Thread& thread : by_thread_) thread.entries.fill({});
  loop_ns_ = 0;
}

double WorkProfile::ms(Work work) const {
  int64_t ns = 0;
  for (const Thread& thread : by_thread_) ns += thread.entries[static_cast<size_t>(work)].ns;
  return static_cast<double>(ns) * 1e-6 / num_threads();
}

int64_t WorkProfile::bytes(Work work) const {
  int64_t bytes = 0;
  for (const Thread& thread : by_thread_) bytes += thread.entries[static_cast<size_t>(work)].bytes;
  return bytes;
}

double WorkProfile::synchronisation_ms() const {
  double busy = 0;
  for (size_t w = 0; w < kMostWorkKinds; ++w) busy += ms(static_cast<Work>(w));
  return loops_ms() - busy;
}

}  // namespace foretoken
