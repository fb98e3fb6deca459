#include "kernels/threads/numa.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/formats/matrix.h"
#include "kernels/threads/row_items.h"
#include "kernels/threads/thread_team.h"
#include "tests/engine/gguf/temp_files.h"

using namespace foretoken;

namespace {

// /sys/devices/system/node with what the machine of a test has.
class FakeSystem {
 public:
  explicit FakeSystem(std::initializer_list<std::pair<std::string, std::string>> cpu_lists) {
    const std::filesystem::path folder = root_.path("sys/devices/system/node");
    std::filesystem::create_directories(folder / "power");
    std::ofstream(folder / "online") << "0-1\n";
    for (const auto& [node, cpus] : cpu_lists) {
      std::filesystem::create_directories(folder / node);
      std::ofstream(folder / node / "cpulist") << cpus;
    }
  }
  [[nodiscard]] NumaNodes nodes(const std::vector<int>& cpus) const { return NumaNodes::of(cpus, root_.path("")); }

 private:
  TempFolder root_;
};

std::vector<int> cpus(int begin, int end) {
  std::vector<int> list(static_cast<size_t>(end - begin));
  std::iota(list.begin(), list.end(), begin);
  return list;
}

// A machine of `counts` processors by node, none of which need exist.
NumaNodes made_of(const std::vector<int>& counts) {
  std::vector<NumaNode> nodes;
  int begin = 0;
  for (const int count : counts) {
    nodes.push_back({static_cast<int>(nodes.size()), cpus(begin, begin + count)});
    begin += count;
  }
  return NumaNodes(nodes);
}

// No checks of Catch's here: members of a team call it, and Catch counts for one thread alone.
std::vector<int> running_on() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> list;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return list;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) list.push_back(cpu);
  }
  return list;
}

}  // namespace

TEST_CASE("Nodes are read with the processors that we may use", "[numa]") {
  SECTION("two nodes") {
    const FakeSystem system({{"node0", "0-7\n"}, {"node1", "8-15\n"}});
    const NumaNodes all = system.nodes(cpus(0, 16));
    REQUIRE(all.count() == 2);
    CHECK(all.nodes()[0].cpus == cpus(0, 8));
    CHECK(all.nodes()[1].cpus == cpus(8, 16));
    CHECK(all.members_by_node(16) == std::vector<int>{8, 8});
    CHECK(all.members_by_node(3) == std::vector<int>{2, 1});
    CHECK(all.members_by_node(1) == std::vector<int>{1, 0});
    CHECK(all.members_by_node(64) == std::vector<int>{32, 32});
    CHECK(system.nodes(cpus(4, 10)).members_by_node(6) == std::vector<int>{4, 2});
    // An affinity on one node: as if there were no other.
    CHECK(system.nodes(cpus(0, 8)).count() == 1);
    CHECK(system.nodes({9, 15}).count() == 1);
    CHECK(system.nodes({9, 15}).nodes().empty());
  }
  SECTION("four nodes, ten or more, listed in any order") {
    const FakeSystem four({{"node3", "6-7\n"}, {"node10", "2,3\n"}, {"node2", "4-5\n"}, {"node0", "0-1\n"}});
    const NumaNodes nodes = four.nodes(cpus(0, 8));
    REQUIRE(nodes.count() == 4);
    CHECK(nodes.nodes()[1].id == 2);
    CHECK(nodes.nodes()[3].id == 10);
    CHECK(nodes.nodes()[3].cpus == std::vector<int>{2, 3});
  }
  SECTION("a node of memory alone") {
    const FakeSystem system({{"node0", "0-3\n"}, {"node1", "\n"}, {"node2", "4-7\n"}, {"node3", ""}});
    const NumaNodes nodes = system.nodes(cpus(0, 8));
    REQUIRE(nodes.count() == 2);
    CHECK(nodes.nodes()[1].id == 2);
  }
  SECTION("siblings and clusters: lists with gaps") {
    const FakeSystem system({{"node0", "0-3,8-11\n"}, {"node1", "4-7,12,13-15\n"}});
    const NumaNodes nodes = system.nodes(cpus(0, 16));
    REQUIRE(nodes.count() == 2);
    CHECK(nodes.nodes()[0].cpus == std::vector<int>{0, 1, 2, 3, 8, 9, 10, 11});
    CHECK(nodes.nodes()[1].cpus == std::vector<int>{4, 5, 6, 7, 12, 13, 14, 15});
  }
}

TEST_CASE("What cannot be makes one node", "[numa]") {
  for (const char* bad : {"x", "0-", "-3", "3-0", "0,,1", "0-3,", ",4", "0-3 4-7", "4-7,2", "4-7,7", "6-7,4-5",
                          "4-99999999999", "0-1048576", "4-7;", "0x4-7", " 4-7"}) {
    INFO("node1: " << bad);
    CHECK(FakeSystem({{"node0", "0-3\n"}, {"node1", bad}}).nodes(cpus(0, 8)).count() == 1);
  }
  CHECK(FakeSystem({{"node0", "0-1\n"}, {"node1", "2-3\n"}, {"node2", "x"}}).nodes(cpus(0, 4)).count() == 1);
  CHECK(FakeSystem({{"node0", "0-4\n"}, {"node1", "4-7\n"}}).nodes(cpus(0, 8)).count() == 1);  // 4 on both
  CHECK(FakeSystem({{"node0", "0-3\n"}, {"node1", "5-7\n"}}).nodes(cpus(0, 8)).count() == 1);  // 4 on none
  CHECK(FakeSystem({{"node0", "0-3\n"}, {"node1", "5-7\n"}}).nodes({0, 5}).count() == 2);      // not ours to mind
  CHECK(FakeSystem({}).nodes(cpus(0, 8)).count() == 1);
  const FakeSystem single({std::pair<std::string, std::string>("node0", "0-7\n")});
  CHECK(single.nodes({}).count() == 1);
  CHECK(single.nodes(cpus(0, 8)).count() == 1);
  const TempFolder empty;
  CHECK(NumaNodes::of(cpus(0, 8), empty.path("none")).count() == 1);
}

TEST_CASE("Members are laid over the nodes in order", "[numa]") {
  for (const std::vector<int>& counts :
       std::vector<std::vector<int>>{{1, 1}, {8, 8}, {2, 2, 2, 2}, {5, 1, 3}, {12, 4}}) {
    const NumaNodes nodes = made_of(counts);
    const int all = std::accumulate(counts.begin(), counts.end(), 0);
    CHECK(nodes.members_by_node(all) == counts);
    for (int members = 1; members <= 2 * all; ++members) {
      CHECK(nodes.node_of_member(0, members) == 0);
      for (int i = 1; i < members; ++i) {
        CHECK(nodes.node_of_member(i, members) >= nodes.node_of_member(i - 1, members));
        CHECK(nodes.node_of_member(i, members) < nodes.count());
      }
    }
  }
}

TEST_CASE("A matrix's rows are shared out over the nodes, and items read one share", "[numa]") {
  for (const NumaNodes& nodes : {NumaNodes(), made_of({8, 8}), made_of({1, 1, 1, 1}), made_of({5, 1, 3})}) {
    for (const int64_t num_rows : {int64_t{1}, int64_t{16}, int64_t{40}, int64_t{256}, int64_t{2048}, int64_t{5000}}) {
      for (const int64_t unit : {num_rows, int64_t{16}, int64_t{64}, int64_t{512}}) {
        CAPTURE(nodes.count(), num_rows, unit);
        std::vector<int> owner(static_cast<size_t>(num_rows), -1);
        for (int node = 0; node < nodes.count(); ++node) {
          int64_t last = -1;
          for (const RowRange& rows : nodes.rows_of(node, num_rows, unit)) {
            REQUIRE(rows.begin < rows.end);
            CHECK(rows.begin > last);  // rising, neighbours joined
            CHECK(rows.begin % kInterleave == 0);
            last = rows.end;
            for (int64_t r = rows.begin; r < rows.end; ++r) {
              CHECK(owner[r] == -1);
              owner[r] = node;
            }
          }
        }
        CHECK(std::count(owner.begin(), owner.end(), -1) == 0);
      }
    }
    CHECK(nodes.rows_of(0, 4096, 16).size() <= (nodes.count() == 1 ? 1 : 256));

    // What was put on a node is what its items read: each matrix alone, as each expert is.
    const std::vector<RowItems::Matrix> matrices = {{512, 48}, {48, 16}, {2048, 112}, {40, 64}, {16, 16}};
    RowItems items;
    items.plan(nodes, matrices);
    REQUIRE(items.node_ends().size() == static_cast<size_t>(nodes.count()));
    int64_t item = 0;
    std::vector<int64_t> seen(matrices.size(), 0);
    for (int node = 0; node < nodes.count(); ++node) {
      std::vector<std::vector<RowRange>> read(matrices.size());
      for (; item < items.node_ends()[node]; ++item) {
        const RowItem at = items.find(item);
        CHECK(at.row_end - at.row_begin <= matrices[at.matrix].rows_per_item);
        ++seen[at.matrix];
        std::vector<RowRange>& ranges = read[at.matrix];
        if (ranges.empty()) ranges.push_back({at.row_begin, at.row_begin});
        CHECK(ranges.back().end == at.row_begin);
        ranges.back().end = at.row_end;
      }
      for (size_t m = 0; m < matrices.size(); ++m) {
        const std::vector<RowRange> put = nodes.rows_of(node, matrices[m].num_rows, matrices[m].num_rows);
        REQUIRE(read[m].size() == put.size());
        if (put.empty()) continue;
        CHECK(read[m][0].begin == put[0].begin);
        CHECK(read[m][0].end == put[0].end);
      }
    }
    CHECK(item == items.num_items());
    for (size_t m = 0; m < matrices.size(); ++m) CHECK(items.num_items_of(m) == seen[m]);
  }
}

TEST_CASE("Members begin with their own node's items", "[numa][thread_team]") {
  // Every member's first item waits for all members: nobody can have taken another's.
  struct Case {
    std::vector<int64_t> ends, first;
  };
  for (const Case& c : {Case{{2, 4}, {0, 1, 2, 3}}, Case{{2, 8}, {0, 1, 2, 5}}, Case{{10, 12}, {0, 5, 10, 11}}}) {
    ThreadTeam team(4, made_of({2, 2}));
    REQUIRE(team.nodes().count() == 2);
    CHECK(team.node_of(1) == 0);
    CHECK(team.node_of(2) == 1);
    for (int round = 0; round < 20; ++round) {
      std::vector<int64_t> first(4, -1);
      std::atomic<int> inside{0};
      team.parallel_for(c.ends, [&](int64_t item, int thread_idx) {
        int64_t& mine = first[thread_idx];
        if (mine != -1) return;
        mine = item;
        ++inside;
        while (inside < 4) std::this_thread::yield();
      });
      CHECK(first == c.first);
    }
  }
}

TEST_CASE("Who is through with its own items helps its own node first", "[numa][thread_team]") {
  // Two items a member; all but `free` are held in their first until the rest is gone.
  for (const int free : {0, 1, 2, 3}) {
    ThreadTeam team(4, made_of({2, 2}));
    std::atomic<int> inside{0};
    std::vector<int64_t> ran;  // by `free`
    team.parallel_for(std::vector<int64_t>{4, 8}, [&](int64_t item, int thread_idx) {
      if (thread_idx == free) ran.push_back(item);
      if (item % 2 == 0) {
        ++inside;
        while (inside < 4) std::this_thread::yield();
      }
      if (thread_idx == free) {
        if (ran.size() == 5) ++inside;
      } else {
        while (inside < 5) std::this_thread::yield();
      }
    });
    const int mate = free ^ 1;
    INFO("member " << free);
    REQUIRE(ran.size() == 5);
    CHECK(ran[0] == 2 * free);
    CHECK(ran[1] == 2 * free + 1);
    CHECK(ran[2] == 2 * mate + 1);
  }
}

TEST_CASE("Every item runs once over any nodes and team", "[numa][thread_team]") {
  for (const std::vector<int>& counts : std::vector<std::vector<int>>{{1, 1}, {1, 1, 1, 1}, {5, 1, 3}, {12, 4}}) {
    const NumaNodes nodes = made_of(counts);
    for (const int threads : {1, 2, 3, 5, 9}) {
      ThreadTeam team(threads, nodes);
      CHECK(team.nodes().count() == (threads == 1 ? 1 : nodes.count()));
      for (const int64_t num_items : {0, 1, 2, 7, 100}) {
        // All on the last node, all on the first, and spread: also on nodes that have no member.
        for (const int64_t first : {int64_t{0}, num_items, num_items / 3}) {
          CAPTURE(counts, threads, num_items, first);
          std::vector<int64_t> ends(static_cast<size_t>(team.nodes().count()), first);
          ends.back() = num_items;
          std::vector<int> count(static_cast<size_t>(num_items), 0);
          team.parallel_for(ends, [&](int64_t item, int) { ++count[item]; });
          CHECK(std::all_of(count.begin(), count.end(), [](int c) { return c == 1; }));
          team.parallel_for(num_items, [&](int64_t item, int) { ++count[item]; });
          CHECK(std::all_of(count.begin(), count.end(), [](int c) { return c == 2; }));
        }
      }
    }
  }
}

TEST_CASE("Members stay on their node, and the caller gets its processors back", "[numa][thread_team]") {
  const std::vector<int> own = running_on();
  CHECK(allowed_cpus() == own);
  if (own.size() < 2) {
    WARN("skipped: one processor only");
    return;
  }
  const int cores = available_cores();
  const std::vector<int> first{own[0]}, rest(own.begin() + 1, own.end());
  const NumaNodes nodes({{0, first}, {1, rest}});
  const int threads = static_cast<int>(own.size());
  const auto check_pinned = [&](ThreadTeam& team) {
    std::vector<std::vector<int>> on(static_cast<size_t>(threads));
    std::atomic<int> inside{0};
    team.parallel_for(threads, [&](int64_t, int thread_idx) {
      on[thread_idx] = running_on();
      ++inside;
      while (inside < threads) std::this_thread::yield();
    });
    CHECK(on[0] == first);
    for (size_t i = 1; i < on.size(); ++i) CHECK(on[i] == rest);
  };
  {
    ThreadTeam team(threads, nodes);
    CHECK(running_on() == own);  // not before the first loop
    check_pinned(team);
    CHECK(running_on() == first);
    CHECK(allowed_cpus() == own);
    CHECK(available_cores() == cores);
    check_pinned(team);
    {
      ThreadTeam inner(threads, nodes);
      check_pinned(inner);
    }
    CHECK(running_on() == first);
    const ThreadPin elsewhere({1, rest});
    CHECK(running_on() == rest);
    CHECK(allowed_cpus() == own);
  }
  CHECK(running_on() == own);

  // Gone in the order of their making.
  auto older = std::make_unique<ThreadTeam>(threads, nodes);
  check_pinned(*older);
  auto younger = std::make_unique<ThreadTeam>(threads, nodes);
  check_pinned(*younger);
  older.reset();
  CHECK(allowed_cpus() == own);
  younger.reset();
  CHECK(running_on() == own);

  // One node, or one member: nobody is pinned.
  ThreadTeam plain(threads, NumaNodes()), alone(1, nodes);
  for (ThreadTeam* team : {&plain, &alone}) {
    std::atomic<int> pinned{0};
    team->parallel_for(2, [&](int64_t, int) { pinned += running_on() != own; });
    CHECK(pinned == 0);
    CHECK(running_on() == own);
  }
  // Processors that are not there are refused, and nothing is lost.
  ThreadTeam refused(2, NumaNodes({{0, {1 << 18}}, {1, {(1 << 18) + 1}}}));
  int64_t sum = 0;
  refused.parallel_for(1, [&](int64_t, int) { sum += 1; });
  CHECK(sum == 1);
  CHECK(running_on() == own);
}
