#include "kernels/threads/thread_team.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "kernels/threads/control_group.h"

using namespace foretoken;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

TEST_CASE("A team ends while its members are still on their way to its last loop", "[thread_team]") {
  // A member that comes too late finds the loop over and the team at its end. If it then slept, it would be waited for for
  // ever; the alarm ends that.
  alarm(120);
  std::atomic<int> done{0};
  int wanted = 0;
  for (int i = 0; i < 6000; ++i) {
    const int threads = 2 + i % 3;
    ThreadTeam team(threads);
    for (int loop = 0; loop < 1 + i % 2; ++loop) team.parallel_for(threads, [&](int64_t, int) { ++done; });
    wanted += threads * (1 + i % 2);
  }
  alarm(0);
  CHECK(done == wanted);
}

TEST_CASE("Every item runs once, whatever the team's size", "[thread_team]") {
  for (int threads : {1, 2, 3, 8, 33}) {
    ThreadTeam team(threads);
    CHECK(team.num_threads() == threads);
    for (int64_t items : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<int> count(static_cast<size_t>(items), 0);  // plain: what bodies wrote must be visible after the loop
      std::vector<std::atomic<int>> by_thread(static_cast<size_t>(threads));
      team.parallel_for(items, [&](int64_t item, int thread_idx) {
        ++count[item];
        ++by_thread.at(thread_idx);
      });
      CAPTURE(threads, items);
      CHECK(std::all_of(count.begin(), count.end(), [](int c) { return c == 1; }));
    }
  }
}

TEST_CASE("A negative number of items is an empty loop", "[thread_team]") {
  ThreadTeam team(2);
  team.parallel_for(-3, [](int64_t, int) { FAIL("no item to run"); });
}

TEST_CASE("A worker that comes late runs only the loop that is open", "[thread_team]") {
  // Each loop's context dies with its iteration; a body called with an old one would see another stamp (and the
  // sanitizers a dead frame). Loops and gaps of changing length, some past the time that members spin, let workers come
  // at every moment.
  for (int threads : {2, 5}) {
    ThreadTeam team(threads);
    std::atomic<int64_t> wrong{0};
    volatile int sink = 0;
    uint32_t random = 1;
    const auto dawdle = [&](uint32_t most) {
      random = random * 1664525u + 1013904223u;
      for (uint32_t i = 0; i < (random >> 8) % most; ++i) sink = static_cast<int>(i);
    };
    for (int64_t loop = 0; loop < 20000; ++loop) {
      const int64_t items = 2 + loop % 3;
      std::vector<int64_t> stamp(static_cast<size_t>(items), -1);
      const uint32_t work = (random >> 8) % 400;
      team.parallel_for(items, [&stamp, &wrong, loop, items, work](int64_t item, int) {
        if (item >= items || stamp[item] != -1) ++wrong;
        volatile uint32_t spin = 0;
        while (spin < work) spin = spin + 1;
        stamp[item] = loop;
      });
      for (int64_t s : stamp) wrong += s != loop;
      dawdle(loop % 50 == 0 ? 200000 : 500);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("Sleeping members wake for the next loop", "[thread_team]") {
  ThreadTeam team(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // far past the time that members spin
    std::atomic<int> inside{0}, together{0};
    // Two items that each wait for the other: ends only if both members came.
    team.parallel_for(2, [&](int64_t, int) {
      ++inside;
      while (inside < 2) std::this_thread::yield();
      ++together;
    });
    CHECK(together == 2);
  }
}

TEST_CASE("The caller sleeps through a long item of another member", "[thread_team]") {
  ThreadTeam team(2);
  for (int round = 0; round < 3; ++round) {
    std::atomic<int> inside{0};
    bool slept[2] = {false, false};
    team.parallel_for(2, [&](int64_t item, int thread_idx) {
      ++inside;
      while (inside < 2) std::this_thread::yield();
      if (thread_idx == 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      slept[item] = true;
    });
    CHECK((slept[0] && slept[1]));
  }
}

TEST_CASE("Too many threads on busy cores still finish in reasonable time", "[thread_team]") {
  const int cores = available_cores();
  std::atomic<bool> stop{false};
  std::vector<std::thread> burners;
  for (int i = 0; i < cores; ++i) {
    burners.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  }
  const auto begin = Clock::now();
  std::atomic<int64_t> sum{0};
  {
    ThreadTeam team(4 * cores);
    for (int loop = 0; loop < 300; ++loop) team.parallel_for(16, [&](int64_t item, int) { sum += item; });
  }
  const double seconds = seconds_since(begin);
  stop = true;
  for (std::thread& burner : burners) burner.join();
  CHECK(sum == 300 * 120);
  INFO("300 loops took " << seconds << " s");
  // A scheduler's slice is 3 to 10 ms. A team that waits for every member needs several of them for each loop (300 x 4
  // x 4 ms = 5 s); one that does not waits for the rare member that lost its core inside an item. Limit with room for
  // loaded machines.
  CHECK(seconds < 60);
}

TEST_CASE("The default number of threads is a processor this process has", "[thread_team]") {
  const int cores = available_cores();
  CHECK(cores >= 1);
  CHECK(cores <= static_cast<int>(sysconf(_SC_NPROCESSORS_CONF)));
}

TEST_CASE("Control groups are found from the innermost outwards", "[thread_team]") {
  const std::filesystem::path root =
      std::filesystem::temp_directory_path() / ("foretoken_groups_" + std::to_string(getpid()));
  std::filesystem::create_directories(root / "proc/self");
  const auto write = [&](const char* name, const char* text) { std::ofstream(root / name) << text; };
  const auto paths = [&](const char* controller) {
    std::vector<std::string> found;
    for (const ControlGroupFolder& folder : control_group_folders(controller, root.string())) {
      found.push_back((folder.is_v2 ? "2 " : "1 ") + folder.path.substr(root.string().size()));
    }
    return found;
  };
  CHECK(paths("cpu").empty());

  write("proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
  write("proc/self/cgroup", "0::/user.slice/app\n");
  CHECK(paths("cpu") ==
        std::vector<std::string>{"2 /sys/fs/cgroup/user.slice/app", "2 /sys/fs/cgroup/user.slice", "2 /sys/fs/cgroup"});

  // Version 1 in a container: the mount shows the container's own group; the controllers share a mount.
  write("proc/self/mountinfo",
        "30 24 0:26 /docker/ab /cg/cpu rw - cgroup cgroup rw,cpuacct,cpu\n"
        "31 24 0:27 / /cg/memory rw shared:9 master:2 - cgroup cgroup rw,memory\n"
        "32 24 0:28 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n");
  write("proc/self/cgroup", "4:memory:/x\n3:cpuset:/\n2:cpuacct,cpu:/docker/ab/inner\n");
  CHECK(paths("cpu") == std::vector<std::string>{"1 /cg/cpu/inner", "1 /cg/cpu"});
  CHECK(paths("memory") == std::vector<std::string>{"1 /cg/memory/x", "1 /cg/memory"});

  write("proc/self/mountinfo", "30 24 0:26 / /cg rw - cgroup2 cgroup2 rw\n");
  write("proc/self/cgroup", "0::/../outside\n");
  CHECK(paths("cpu") == std::vector<std::string>{"2 /cg"});
  std::filesystem::remove_all(root);
}

TEST_CASE("Cost of a loop", "[thread_team][.speed]") {
  // Every member takes part: an item ends only when all have begun. `gap_us` is the caller's own work between two
  // loops.
  for (int threads : {1, 2, 3}) {
    for (int gap_us : {0, 5, 40, 200}) {
      ThreadTeam team(threads);
      std::vector<double> us;
      for (int round = 0; round < 9; ++round) {
        const int loops = 2000;
        double spent = 0;
        for (int i = 0; i < loops; ++i) {
          const auto gap_begin = Clock::now();
          while (seconds_since(gap_begin) < gap_us * 1e-6) {
          }
          const auto begin = Clock::now();
          std::atomic<int> inside{0};
          team.parallel_for(threads, [&](int64_t, int) {
            ++inside;
            for (int spins = 0; inside.load(std::memory_order_relaxed) < threads; ++spins) {
              if (spins > 1000) std::this_thread::yield();
            }
          });
          spent += seconds_since(begin);
        }
        us.push_back(spent / loops * 1e6);
      }
      std::sort(us.begin(), us.end());
      WARN(threads << " threads, " << gap_us << " us between loops: " << us[us.size() / 2] << " us a loop (best "
                   << us[0] << ")");
    }
  }
}
