#include "tools/cli/start_limit.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/cluster/process_state.h"
#include "engine/cluster/protocol.h"
#include "engine/cluster/signals_blocked.h"
#include "engine/part_file.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

/// A process that the same mpirun has started on this host, as /proc shows it.
struct JobProcess {
  pid_t process = 0;
  int rank = 0;
  std::string host;
  bool is_stopped = false;  // by a signal
};

constexpr std::chrono::milliseconds kLook{250};
// Between the one that speaks and the others, which end without a word if it does not.
constexpr std::chrono::seconds kLater{2};

std::string text_of(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// Of an environment as /proc has it: NAME=value, each ended by a zero.
std::optional<std::string> variable_in(const std::string& environment, std::string_view name) {
  for (size_t at = 0; at < environment.size();) {
    const std::string_view entry(environment.c_str() + at);
    if (entry.size() > name.size() && entry.starts_with(name) && entry[name.size()] == '=')
      return std::string(entry.substr(name.size() + 1));
    at += entry.size() + 1;
  }
  return std::nullopt;
}

// mpirun's number of the job; PMIx numbers those of one mpirun alike on all hosts.
std::optional<std::string> job_in(const std::string& environment) {
  return variable_in(environment, "PMIX_NAMESPACE");
}

/// Those of the job that this process is of, itself among them. Empty where mpirun has not started it.
std::vector<JobProcess> processes_of_job() {
  std::vector<JobProcess> found;
  const std::optional<std::string> job = job_in(text_of("/proc/self/environ"));
  if (!job) return found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t process = 0;
    const auto [end, bad] = std::from_chars(name.data(), name.data() + name.size(), process);
    if (bad != std::errc() || end != name.data() + name.size()) continue;
    const std::string environment = text_of(entry.path() / "environ");
    if (job_in(environment) != job) continue;
    const std::optional<std::string> rank = variable_in(environment, "PMIX_RANK");
    const char state = process_state(entry.path() / "stat");
    if (!rank || state == '\0' || state == 'Z' || state == 'X') continue;
    found.push_back({process, std::atoi(rank->c_str()), variable_in(environment, "PMIX_HOSTNAME").value_or(host_name()),
                     state == 'T'});
  }
  return found;
}

}  // namespace

void end_at_once(int exit_code) {
  std::fflush(nullptr);
  remove_part_files();
  ::_exit(exit_code);
}

StartLimit::StartLimit(int rank) : rank_(rank) {
  const SignalsBlocked blocked;  // the handler of one lets the thread speak first
  thread_ = std::thread([this] { wait(); });
}

StartLimit::~StartLimit() {
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool StartLimit::is_over_after(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, time, [this] { return is_over_; });
}

void StartLimit::wait() {
  // The second process speaks where it is the first one that does not come.
  const auto end = Clock::now() + kLimit + (rank_ == 0 ? std::chrono::seconds(0) : kLater);
  while (Clock::now() < end) {
    if (is_over_after(kLook)) return;
    look_for_stopped();
  }
  // Later still: it was this process that was stopped, and others have said so.
  const bool was_stopped = Clock::now() > end + kLater / 2;
  if (rank_ <= 1 && !was_stopped) {
    print_message(
        "foretoken: {} (rank {} of the cluster) has waited in vain for the other processes to start: one was stopped, "
        "or its host cannot be reached\n",
        host_name(), rank_);
  }
  end_at_once(kExitInput);
}

void StartLimit::look_for_stopped() {
  const std::vector<JobProcess> all = processes_of_job();
  std::map<pid_t, Clock::time_point> since;
  const JobProcess* lost = nullptr;
  for (const JobProcess& each : all) {
    if (each.rank < rank_) lower_ranks_.insert(each.rank);
    if (!each.is_stopped) continue;
    const auto before = stopped_since_.find(each.process);
    const Clock::time_point begin = before == stopped_since_.end() ? Clock::now() : before->second;
    since.emplace(each.process, begin);
    if (Clock::now() - begin > kStoppedLimit) lost = &each;
  }
  stopped_since_ = std::move(since);
  if (lost == nullptr) return;
  // A lower rank that has gone has spoken.
  const bool speaks = std::all_of(lower_ranks_.begin(), lower_ranks_.end(), [&](int rank) {
    return std::any_of(all.begin(), all.end(), [&](const JobProcess& p) { return p.is_stopped && p.rank == rank; });
  });
  if (!speaks) {
    if (is_over_after(kLater)) return;
    end_at_once(kExitInput);
  }
  print_message(
      "foretoken: {} (rank {} of the cluster) has been silent for {} seconds: it was stopped while it started\n",
      lost->host, lost->rank, kStoppedLimit.count());
  end_at_once(kExitInput);
}

}  // namespace foretoken
