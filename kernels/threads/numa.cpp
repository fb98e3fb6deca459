#include "kernels/threads/numa.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>

#if defined(__linux__)
#include <sched.h>
#endif

#include "kernels/base/error.h"
#include "kernels/formats/matrix.h"
#include "kernels/threads/control_group.h"

namespace foretoken {

namespace {

// No machine has as many; a bound against files that are not what they seem.
constexpr int kMaxCpus = 1 << 20;

std::optional<int> parse_number(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (number < 0 || number >= kMaxCpus) return std::nullopt;
  return number;
}

// "0-3,8-11", or "" for none; nothing if it is no such list, rising.
std::optional<std::vector<int>> parse_cpu_list(std::string_view text) {
  std::vector<int> cpus;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view range = text.substr(0, comma);
    const size_t dash = range.find('-');
    const auto first = parse_number(range.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : parse_number(range.substr(dash + 1));
    if (!first || !last || *last < *first || (!cpus.empty() && *first <= cpus.back())) return std::nullopt;
    for (int cpu = *first; cpu <= *last; ++cpu) cpus.push_back(cpu);
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
    if (text.empty()) return std::nullopt;
  }
  return cpus;
}

// All nodes; nothing if a file is not as it should be.
std::optional<std::vector<NumaNode>> read_nodes(const std::string& root) {
  std::vector<NumaNode> nodes;
  std::error_code error;
  for (std::filesystem::directory_iterator at(root + "/sys/devices/system/node", error), end; !error && at != end;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (!name.starts_with("node")) continue;
    const auto id = parse_number(std::string_view(name).substr(4));
    if (!id) continue;
    auto cpus = parse_cpu_list(read_first_line(at->path().string() + "/cpulist"));
    if (!cpus) return std::nullopt;
    nodes.push_back({*id, *std::move(cpus)});
  }
  if (error) return std::nullopt;
  std::sort(nodes.begin(), nodes.end(), [](const NumaNode& a, const NumaNode& b) { return a.id < b.id; });
  return nodes;
}

// Empty: the system does not tell.
std::vector<int> current_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  // The kernel refuses a mask smaller than its own; ask with a larger one until it fits.
  for (int size = 1024; size <= kMaxCpus && cpus.empty(); size *= 2) {
    cpu_set_t* const set = CPU_ALLOC(static_cast<size_t>(size));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(size));
    if (sched_getaffinity(0, bytes, set) == 0) {
      for (int cpu = 0; cpu < size; ++cpu) {
        if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) cpus.push_back(cpu);
      }
    }
    CPU_FREE(set);
  }
#endif
  return cpus;
}

void run_on(const std::vector<int>& cpus) {
#if defined(__linux__)
  if (cpus.empty()) return;
  const auto size = static_cast<size_t>(cpus.back()) + 1;
  cpu_set_t* const set = CPU_ALLOC(size);
  if (set == nullptr) return;
  const size_t bytes = CPU_ALLOC_SIZE(size);
  CPU_ZERO_S(bytes, set);
  for (const int cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
  (void)sched_setaffinity(0, bytes, set);
  CPU_FREE(set);
#else
  (void)cpus;
#endif
}

// What this thread may run on without its pins, and how many of those there are.
struct OwnCpus {
  std::vector<int> cpus;
  int num_pins = 0;
};
thread_local OwnCpus own_cpus;

}  // namespace

int64_t count_rows(std::span<const RowRange> ranges) {
  int64_t count = 0;
  for (const RowRange& range : ranges) count += range.count();
  return count;
}

void append_rows(std::vector<RowRange>& ranges, const RowRange& range) {
  if (range.begin == range.end) return;
  if (!ranges.empty() && ranges.back().end == range.begin) {
    ranges.back().end = range.end;
  } else {
    ranges.push_back(range);
  }
}

NumaNodes::NumaNodes(std::vector<NumaNode> nodes) {
  if (nodes.size() <= 1) return;
  nodes_ = std::move(nodes);
  ends_.clear();
  for (const NumaNode& node : nodes_) {
    FT_CHECK(!node.cpus.empty());
    ends_.push_back((ends_.empty() ? 0 : ends_.back()) + static_cast<int>(node.cpus.size()));
  }
}

NumaNodes NumaNodes::of(const std::vector<int>& cpus, const std::string& root) {
  auto nodes = read_nodes(root);
  if (!nodes) return {};
  std::vector<int> found;
  for (NumaNode& node : *nodes) {
    std::erase_if(node.cpus, [&](int cpu) { return !std::binary_search(cpus.begin(), cpus.end(), cpu); });
    found.insert(found.end(), node.cpus.begin(), node.cpus.end());
  }
  std::sort(found.begin(), found.end());
  if (found != cpus) return {};
  std::erase_if(*nodes, [](const NumaNode& node) { return node.cpus.empty(); });
  return NumaNodes(*std::move(nodes));
}

NumaNodes NumaNodes::of_machine() {
  return of(allowed_cpus());
}

int NumaNodes::node_of_member(int idx, int num_members) const {
  FT_CHECK(0 <= idx && idx < num_members);
  const auto place = static_cast<int>(int64_t{idx} * ends_.back() / num_members);
  return static_cast<int>(std::upper_bound(ends_.begin(), ends_.end(), place) - ends_.begin());
}

std::vector<int> NumaNodes::members_by_node(int num_members) const {
  std::vector<int> members(ends_.size(), 0);
  for (int i = 0; i < num_members; ++i) ++members[node_of_member(i, num_members)];
  return members;
}

int64_t NumaNodes::share_begin(int64_t num_rows, int node) const {
  if (node == 0) return 0;
  if (node == count()) return num_rows;
  return num_rows * ends_[static_cast<size_t>(node) - 1] / ends_.back() / kInterleave * kInterleave;
}

std::vector<RowRange> NumaNodes::rows_of(int node, int64_t num_rows, int64_t unit_rows) const {
  FT_CHECK(unit_rows > 0);
  std::vector<RowRange> ranges;
  for (int64_t unit = 0; unit < num_rows; unit += unit_rows) {
    const int64_t rows = std::min(unit_rows, num_rows - unit);
    const RowRange share{unit + share_begin(rows, node), unit + share_begin(rows, node + 1)};
    if (share.begin == share.end) continue;
    if (!ranges.empty() && ranges.back().end == share.begin) {
      ranges.back().end = share.end;
    } else {
      ranges.push_back(share);
    }
  }
  return ranges;
}

std::vector<int> allowed_cpus() {
  return own_cpus.num_pins > 0 ? own_cpus.cpus : current_cpus();
}

ThreadPin::ThreadPin(const NumaNode& node) : before_(current_cpus()) {
  if (own_cpus.num_pins++ == 0) own_cpus.cpus = before_;
  run_on(node.cpus);
}

ThreadPin::~ThreadPin() {
  run_on(--own_cpus.num_pins == 0 ? own_cpus.cpus : before_);
}

}  // namespace foretoken
