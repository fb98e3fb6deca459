#include <signal.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/tools/subprocess.h"

// The program under mpirun, all processes on this machine.

namespace foretoken {
namespace {

using test::Invocation;
using test::Outcome;
using test::RandomModel;
using test::TempFolder;

std::string mpirun_path() {
  std::istringstream folders(std::getenv("PATH") == nullptr ? "" : std::getenv("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (std::filesystem::exists(folder + "/mpirun")) return folder + "/mpirun";
  }
  return "";
}

/// One or more programs of one mpirun; each with how many processes it has, and words that stand before it.
struct Application {
  int num_processes = 2;
  std::vector<std::string> before;  // for mpirun (-wdir) or for the program (env NAME=value)
  std::vector<std::string> arguments;
};

Invocation mpirun(const std::vector<Application>& applications) {
  // A folder of its own for Open MPI: all mpirun of a user share one in /tmp, and one that ends can remove what one that
  // starts (of another test at the same time) has just found.
  static const TempFolder session_folder;
  Invocation invocation;
  invocation.program = mpirun_path();
  invocation.environment = {"OMPI_ALLOW_RUN_AS_ROOT=1",
                            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                            "OMPI_MCA_rmaps_base_oversubscribe=1",
                            "OMPI_MCA_mpi_yield_when_idle=1",
                            "OMPI_MCA_orte_tmpdir_base=" + session_folder.file(""),
                            "ASAN_OPTIONS=detect_leaks=0"};  // Open MPI leaves some of its memory to the end
  for (const Application& application : applications) {
    std::vector<std::string>& to = invocation.arguments;
    if (!to.empty()) to.push_back(":");
    to.insert(to.end(), {"-n", std::to_string(application.num_processes)});
    to.insert(to.end(), application.before.begin(), application.before.end());
    to.push_back(FORETOKEN_PROGRAM);
    to.insert(to.end(), application.arguments.begin(), application.arguments.end());
  }
  return invocation;
}

std::vector<std::string> with(std::vector<std::string> flags, const std::vector<std::string>& more) {
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

// Two processes need not measure their bandwidth then.
const std::vector<std::string> kEqual = {"--cluster-shares", "1:1"};

// False, with a line that says why, where there is nothing to test.
bool has_cluster(const std::vector<std::string>& decode) {
  if (mpirun_path().empty()) {
    WARN("not run: there is no mpirun here");
    return false;
  }
  const Outcome outcome = run(mpirun({{2, {}, with(decode, kEqual)}}));
  if (outcome.err.find("built without MPI") != std::string::npos) {
    CHECK(outcome.exit_code != 0);
    WARN("not run: this program was built without MPI");
    return false;
  }
  return true;
}

std::vector<std::string> decode_flags(const std::string& model, int num_tokens = 24) {
  return {"decode",       "-m",          model, "-p", "once upon a time", "-n", std::to_string(num_tokens),
          "--ignore-eos", "--print-ids", "-t",  "1"};
}

RandomModel program_model() {
  RandomModel spec = test::matrix_model("qwen35moe");
  return spec;
}

// The process of this rank among the children of mpirun.
pid_t process_of_rank(pid_t mpirun, int rank) {
  std::ifstream children("/proc/" + std::to_string(mpirun) + "/task/" + std::to_string(mpirun) + "/children");
  for (pid_t child; children >> child;) {
    std::ifstream environment("/proc/" + std::to_string(child) + "/environ");
    const std::string all{std::istreambuf_iterator<char>(environment), {}};
    if (all.find("OMPI_COMM_WORLD_RANK=" + std::to_string(rank) + '\0') != std::string::npos) return child;
  }
  return -1;
}

TEST_CASE("mpirun: processes that share rows, experts or layers give the text of one", "[cluster]") {
  const TempFolder folder;
  const std::string model = folder.file("model.gguf");
  program_model().write(model);
  Invocation alone;
  alone.arguments = decode_flags(model);
  const Outcome want = run(alone);
  REQUIRE(want.exit_code == 0);
  if (!has_cluster(decode_flags(model))) return;
  for (const std::string mode : {"rows", "experts", "layers"}) {
    for (const auto& [ranks, shares] : {std::pair(2, "1:1"), std::pair(2, "3:1"), std::pair(3, "auto")}) {
      for (const std::string drafts : {"0", "3"}) {
        INFO(mode << " over " << ranks << ", shares " << shares << ", --mtp " << drafts);
        const Outcome got = run(
            mpirun({{ranks,
                     {},
                     with(decode_flags(model), {"--cluster", mode, "--cluster-shares", shares, "--mtp", drafts})}}));
        CHECK(got.err.find("cluster: " + mode) != std::string::npos);
        CHECK(got.exit_code == 0);
        CHECK(got.out == want.out);
      }
    }
  }
}

TEST_CASE("mpirun: text that goes to a file is the text of one process to the last byte", "[cluster]") {
  const std::vector<std::string> decode = {"decode", "-m", test::kDemoModel, "-p", "def main():", "-n", "24",
                                           "-t",     "1"};
  if (!has_cluster(decode)) return;
  const Outcome alone = test::run(decode), together = run(mpirun({{2, {}, with(decode, kEqual)}}));
  CHECK(!alone.out.empty());
  CHECK(together.out == alone.out);
}

TEST_CASE("mpirun: eval and bench find what they find in one process", "[cluster]") {
  const TempFolder folder;
  const std::string text =
      test::write_file(folder, "text.txt", "def main():\n    for i in range(10):\n        print(i)\n");
  if (!has_cluster(decode_flags(test::kDemoModel))) return;
  const auto json_of = [](const Outcome& outcome) {
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    return nlohmann::json::parse(outcome.out);
  };
  const std::vector<std::string> eval = {"eval", "-m", test::kDemoModel, "-f", text, "--mtp", "2", "--json", "-",
                                         "-t",   "1"};
  const auto alone = json_of(test::run(eval)), together = json_of(test::run(mpirun({{2, {}, with(eval, kEqual)}})));
  for (const char* key : {"perplexity", "nats_per_token", "tokens_counted", "draft_agreement_by_position"}) {
    INFO(key);
    CHECK(together.at(key) == alone.at(key));
  }
  const std::vector<std::string> bench = {"bench", "-m", test::kDemoModel, "--arms", "off,mtp:3", "--rounds", "1",
                                          "-n",    "16", "--json",         "-",      "-t",        "1"};
  const auto one = json_of(test::run(bench)), two = json_of(test::run(mpirun({{2, {}, with(bench, kEqual)}})));
  CHECK(two.at("identical") == true);
  for (size_t arm = 0; arm < 2; ++arm)
    CHECK(two.at("arms").at(arm).at("ids_sha256") == one.at("arms").at(arm).at("ids_sha256"));
}

TEST_CASE("mpirun: another file, instruction set or command line is one line that names the host", "[cluster]") {
  const TempFolder folder, other;
  program_model().write(folder.file("model.gguf"));
  if (!has_cluster(decode_flags(folder.file("model.gguf")))) return;
  RandomModel changed = program_model();
  changed.seed = 99;
  changed.write(other.file("model.gguf"));
  const auto here = with(decode_flags("model.gguf"), kEqual);
  const auto folder_of = [](const std::string& file) { return std::filesystem::path(file).parent_path().string(); };
  const std::vector<std::string> first = {"-wdir", folder_of(folder.file("x"))};
  const std::vector<std::string> second = {"-wdir", folder_of(other.file("x"))};
  const auto check = [&](const std::vector<Application>& applications, const std::string& says) {
    const Outcome outcome = run(mpirun(applications));
    INFO(outcome.err);
    CHECK(outcome.exit_code != 0);
    CHECK(outcome.out.find_first_of("0123456789") == std::string::npos);
    CHECK(outcome.err.find(says) != std::string::npos);
  };
  check({{1, first, here}, {1, second, here}}, "(rank 1 of the cluster): its model is another one");
  const auto env = [&](const std::string& isa) { return with(first, {"env", "FORETOKEN_ISA=" + isa}); };
  check({{1, env("avx2"), here}, {1, env("scalar"), here}}, "(rank 1 of the cluster): computes with scalar");
  std::filesystem::remove(other.file("model.gguf"));
  check({{1, first, here}, {1, second, here}}, "(rank 1 of the cluster): model.gguf");
  check({{2, first, with(decode_flags("model.gguf"), {"--cluster-shares", "1:1:1"})}},
        "has 3 numbers; mpirun has started 2 processes");
  check({{2, first, {"inspect", "model.gguf"}}}, "runs in one process");
}

TEST_CASE("mpirun: help, the version and a missing command are answered once, as by one process", "[cluster]") {
  const TempFolder folder;
  program_model().write(folder.file("model.gguf"));
  if (!has_cluster(decode_flags(folder.file("model.gguf")))) return;
  const auto arguments = GENERATE(std::vector<std::string>{"--version"}, std::vector<std::string>{"--help"},
                                  std::vector<std::string>{"decode", "--help"}, std::vector<std::string>{});
  const Outcome alone = test::run(arguments), together = run(mpirun({{3, {}, arguments}}));
  INFO(together.err);
  CHECK(together.exit_code == alone.exit_code);
  CHECK(together.out == alone.out);
  CHECK(together.err.find(alone.err) != std::string::npos);
}

TEST_CASE("mpirun: a process that dies or stands still ends all, with one line that names the host", "[cluster]") {
  const TempFolder folder;
  const std::string model = folder.file("model.gguf");
  program_model().write(model);
  if (!has_cluster(decode_flags(model))) return;
  struct Fault {
    int rank, signal;
    std::string says;
  };
  const Fault fault = GENERATE(Fault{1, SIGKILL, "(rank 1 of the cluster) has died"},
                               Fault{0, SIGKILL, "(rank 0 of the cluster) has died"},
                               Fault{1, SIGSTOP, "(rank 1 of the cluster) has been silent for 6 seconds"});
  Invocation invocation = mpirun(
      {{2,
        {},
        with(with(decode_flags(model, 1000000), kEqual), {"-c", "4096", "--json", folder.file("result.json")})}});
  bool is_sent = false;
  invocation.on_output = [&](pid_t process, const std::string&) {
    if (is_sent) return;
    const pid_t to = process_of_rank(process, fault.rank);
    REQUIRE(to > 0);
    REQUIRE(::kill(to, fault.signal) == 0);
    is_sent = true;
  };
  const Outcome outcome = run(invocation);
  INFO(outcome.err);
  CHECK(is_sent);
  CHECK(outcome.exit_code != 0);
  const size_t at = outcome.err.find(fault.says);
  CHECK(at != std::string::npos);
  CHECK(outcome.err.find("of the cluster)", at + fault.says.size()) == std::string::npos);  // one line
  CHECK(!std::filesystem::exists(folder.file("result.json")));
}

}  // namespace
}  // namespace foretoken
