#include "tools/cli/cluster_program.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "engine/cluster/watchdog.h"
#include "engine/part_file.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "tools/cli/command_line.h"
#include "tools/cli/interruption.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/start_limit.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/cli/version.h"
#include "tools/commands.h"
#ifdef FORETOKEN_HAVE_MPI
#include "engine/cluster/mpi_transport.h"
#include "engine/cluster/protocol.h"
#endif

namespace foretoken {

namespace {

Cluster* current = nullptr;

int number_in(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoi(text);
}

#ifdef FORETOKEN_HAVE_MPI

constexpr std::array<std::string_view, 5> kCommands = {"decode", "chat", "serve", "bench", "eval"};

using Clock = std::chrono::steady_clock;

// What mpirun does to the others when a process dies follows its death by less than this.
constexpr std::chrono::milliseconds kAfterDeath{300};

int rank_of_mpirun() {
  return std::max(number_in("OMPI_COMM_WORLD_RANK"), number_in("PMI_RANK"));
}

/// Why the first process ends of itself, for whoever finds meanwhile that another one is lost: there is one line.
class OwnError {
 public:
  void set(const std::string& message) {
    const std::lock_guard lock(mutex_);
    message_ = message + "; besides, ";
  }
  [[nodiscard]] std::string get() const {
    const std::lock_guard lock(mutex_);
    return message_;
  }

 private:
  mutable std::mutex mutex_;
  std::string message_;
};

OwnError own_error;

/// While one lives, a signal that ends this process at once ends the others without a word.
class OthersEndWithSignal {
 public:
  explicit OthersEndWithSignal(const Watchdog& watchdog) {
    watchdog_ = &watchdog;
    set_last_act([] { watchdog_->end_others_now(); });
  }
  ~OthersEndWithSignal() { set_last_act(nullptr); }
  OthersEndWithSignal(const OthersEndWithSignal&) = delete;
  OthersEndWithSignal& operator=(const OthersEndWithSignal&) = delete;

 private:
  static inline const Watchdog* watchdog_ = nullptr;
};

/// line: of the watchdog; empty where another process says it.
[[noreturn]] void end_on_loss(int rank, const std::string& line) {
  // After Ctrl-C mpirun ends all processes, in no order.
  const bool is_interrupted = time_since_signal() > kAfterDeath;
  if (line.empty() || (is_interrupted && rank != 0)) end_at_once(kExitInput);
  if (is_interrupted) {
    print_message("foretoken: interrupted\n");
    end_at_once(kExitInterrupted);
  }
  print_message("foretoken: {}{}\n", own_error.get(), line);
  end_at_once(kExitInput);
}

// Open MPI keeps each process on one core, as suits programs that have a process a core. One that is alone on its host
// has it for itself; several share the cores as they were dealt out.
void use_all_cores() {
  if (number_in("OMPI_COMM_WORLD_LOCAL_SIZE") != 1) return;
  cpu_set_t all;
  CPU_ZERO(&all);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) CPU_SET(cpu, &all);
  (void)sched_setaffinity(0, sizeof all, &all);
}

// All processes have the same command line; of it the followers need this alone.
int threads_in(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if ((argument == "-t" || argument == "--threads") && i + 1 < argc) return std::atoi(argv[i + 1]);
    if (argument.starts_with("--threads=")) return std::atoi(argument.substr(10).data());
  }
  return 0;
}

ClusterMember member_of(int argc, const char* const* argv) {
  const Environment environment = Environment::read();
  ClusterMember member;
  member.version = fmt::format("foretoken {} (commit {})", kVersion, kCommit);
  member.isa = environment.isa.value_or(best_isa());
  member.threads = threads_in(argc, argv);
  if (member.threads == 0) member.threads = environment.threads.value_or(0);
  if (!environment.numa.value_or(true)) member.nodes = NumaNodes();
  return member;
}

#endif

}  // namespace

Cluster* program_cluster() {
  return current;
}

int processes_of_mpirun() {
  return std::max({1, number_in("OMPI_COMM_WORLD_SIZE"), number_in("PMI_SIZE")});
}

#ifdef FORETOKEN_HAVE_MPI

int run_in_cluster(int argc, const char* const* argv, const std::function<int()>& run_command) {
  use_all_cores();
  const int rank = rank_of_mpirun();
  static Activity activity;
  std::optional<StartLimit> start_limit(rank);
  std::unique_ptr<Transport> transport = start_mpi(activity);
  FT_CHECK_EQ(transport->rank(), rank);
  std::optional<Watchdog> watchdog;
  try {
    watchdog.emplace(*transport, activity, [rank](const std::string& line) { end_on_loss(rank, line); });
  } catch (const InputError&) {
    if (rank > 0) return 0;  // rank 0 says it
    throw;
  }
  start_limit.reset();
  std::optional<OthersEndWithSignal> others_end;
  if (rank == 0) {
    delay_interrupts(kAfterDeath);
    others_end.emplace(*watchdog);
    set_quiet_interrupts(false);
  } else {
    only_note_signals();  // the first process hears of it too, and ends the others
  }
  // Goes before the watchdog does: the end of MPI waits for all ranks, one that stands still too.
  const std::unique_ptr<Transport> watched = std::move(transport);
  if (rank > 0) {
    try {
      follow(*watched, member_of(argc, argv), [] { activity.steps.fetch_add(1, std::memory_order_relaxed); });
    } catch (const InputError&) {  // the same
    }
    return 0;
  }
  Cluster cluster(*watched, member_of(argc, argv));
  try {
    const std::string_view name = argc > 1 ? argv[1] : "";
    const bool is_known = std::any_of(all_commands().begin(), all_commands().end(),
                                      [&](const Command& command) { return command.name == name; });
    // What is no command is answered as ever.
    if (is_known && std::find(kCommands.begin(), kCommands.end(), name) == kCommands.end())
      throw UsageError(fmt::format("{}: runs in one process; start it without mpirun", printable(name)));
    current = &cluster;
    const int result = run_command();
    current = nullptr;
    if (const std::string line = describe_traffic(cluster.traffic()); !line.empty()) print_message("{}", line);
    if (!interrupted()) return result;
    // mpirun ends all, and MPI's own end would wait for it.
    watchdog->end_others();
    end_at_once(result);
  } catch (const Interrupted& error) {
    print_message("foretoken: {}\n", error.what());
    watchdog->end_others();
    end_at_once(kExitInterrupted);
  } catch (const std::exception& error) {
    current = nullptr;
    own_error.set(error.what());
    throw;
  }
}

#else

int run_in_cluster(int, const char* const*, const std::function<int()>&) {
  if (number_in("OMPI_COMM_WORLD_RANK") > 0 || number_in("PMI_RANK") > 0) return kExitInput;  // the first one says it
  throw InputError(fmt::format(
      "mpirun has started {} processes, and this program was built without MPI (-DFORETOKEN_MPI=ON builds it in)",
      processes_of_mpirun()));
}

#endif

}  // namespace foretoken
