#include "kernels/cuda/emulation/warp_traffic.h"

#include <algorithm>
#include <array>
#include <span>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace foretoken::cuda::emulation {

namespace {

constexpr size_t kSectorBytes = 32, kBankBytes = 4, kBanks = 32, kVectorBytes = 16;
constexpr int kWarp = 32;

struct LaneAccess {
  uint16_t thread;
  bool is_shared;
  uint32_t place;
  uint32_t visit;  // of this thread to this place
  size_t offset;
  size_t size_bytes;

  [[nodiscard]] auto instruction() const { return std::tuple(thread / kWarp, place, visit); }
};

struct Meter {
  bool on = false;
  std::map<std::string, WarpTraffic> kernels;
  WarpTraffic* kernel = nullptr;
  std::vector<LaneAccess> block;
  std::unordered_map<uint64_t, uint32_t> visits;     // by thread and place
  std::unordered_map<uint16_t, size_t> last_access;  // of each thread, in `block`
};

Meter& meter() {
  static Meter the_meter;
  return the_meter;
}

// Distinct aligned units of `grain` bytes that the accesses touch.
size_t count_units(std::span<const LaneAccess> accesses, size_t grain, std::vector<size_t>& units) {
  units.clear();
  for (const LaneAccess& access : accesses) {
    for (size_t unit = access.offset / grain; unit * grain < access.offset + access.size_bytes; ++unit)
      units.push_back(unit);
  }
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  return units.size();
}

void add_device(std::span<const LaneAccess> accesses, WarpTraffic& traffic, std::vector<size_t>& units) {
  ++traffic.device_instructions;
  traffic.device_bytes += count_units(accesses, 1, units);
  traffic.device_sectors += count_units(accesses, kSectorBytes, units);
}

void add_shared(std::span<const LaneAccess> accesses, WarpTraffic& traffic, std::vector<size_t>& units) {
  ++traffic.shared_instructions;
  size_t widest = kBankBytes;
  for (const LaneAccess& access : accesses) widest = std::max(widest, access.size_bytes);
  const size_t lanes_at_once = kWarp * kBankBytes / std::min(widest, kVectorBytes);
  // `accesses` is sorted by thread.
  for (size_t begin = 0; begin < accesses.size();) {
    const size_t group = accesses[begin].thread % kWarp / lanes_at_once;
    size_t end = begin;
    while (end < accesses.size() && accesses[end].thread % kWarp / lanes_at_once == group) ++end;
    count_units(accesses.subspan(begin, end - begin), kBankBytes, units);
    std::array<size_t, kBanks> words{};
    for (const size_t word : units) ++words[word % kBanks];
    traffic.shared_passes += *std::max_element(words.begin(), words.end());
    traffic.shared_least_passes += (units.size() + kBanks - 1) / kBanks;
    begin = end;
  }
}

}  // namespace

void measure_traffic(bool on) {
  meter().on = on;
  if (on) meter().kernels.clear();
}

const std::map<std::string, WarpTraffic>& traffic_by_kernel() {
  return meter().kernels;
}

bool measures_traffic() {
  return meter().on;
}

void begin_grid_traffic(const char* kernel) {
  Meter& m = meter();
  if (!m.on) return;
  m.kernel = &m.kernels[kernel];
  m.block.clear();
  m.visits.clear();
  m.last_access.clear();
}

void note_access(uint16_t thread, uint32_t place, size_t offset, size_t size_bytes, bool is_shared) {
  Meter& m = meter();
  if (m.kernel == nullptr) return;
  const auto last = m.last_access.find(thread);
  if (last != m.last_access.end()) {
    LaneAccess& before = m.block[last->second];
    const size_t together = before.size_bytes + size_bytes;
    // The vector that `before` would begin: as wide as its address allows.
    const size_t vector = before.offset % kVectorBytes == 0 ? kVectorBytes : before.offset % 8 == 0 ? 8 : 0;
    if (before.is_shared == is_shared && before.place != place && before.offset + before.size_bytes == offset &&
        together <= vector && size_bytes >= 4) {
      before.size_bytes = together;
      return;
    }
  }
  const uint32_t visit = m.visits[uint64_t{thread} << 32 | place]++;
  m.last_access[thread] = m.block.size();
  m.block.push_back({thread, is_shared, place, visit, offset, size_bytes});
}

void end_block_traffic() {
  Meter& m = meter();
  if (m.kernel == nullptr) return;
  std::sort(m.block.begin(), m.block.end(), [](const LaneAccess& a, const LaneAccess& b) {
    return std::tuple(a.instruction(), a.thread) < std::tuple(b.instruction(), b.thread);
  });
  std::vector<size_t> units;
  for (size_t begin = 0; begin < m.block.size();) {
    size_t end = begin;
    while (end < m.block.size() && m.block[end].instruction() == m.block[begin].instruction()) ++end;
    const std::span accesses(m.block.data() + begin, end - begin);
    (m.block[begin].is_shared ? add_shared : add_device)(accesses, *m.kernel, units);
    begin = end;
  }
  m.block.clear();
  m.visits.clear();
  m.last_access.clear();
}

}  // namespace foretoken::cuda::emulation
