#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/tools/subprocess.h"
#include "tools/cli/terminal.h"

using namespace foretoken;
using namespace foretoken::test;

namespace {

/// What the program writes to standard error where that is a terminal.
std::string on_terminal(std::vector<std::string> arguments) {
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
  REQUIRE(terminal >= 0);
  REQUIRE(grantpt(terminal) == 0);
  REQUIRE(unlockpt(terminal) == 0);
  const std::string name = ptsname(terminal);
  arguments.insert(arguments.begin(), FORETOKEN_PROGRAM);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const int slave = open(name.c_str(), O_RDWR | O_NOCTTY);  // stays open until the child has it
  const pid_t child = fork();
  if (child == 0) {
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
    dup2(slave, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(slave);
  std::string text;
  std::array<char, 4096> part;
  for (ssize_t n; (n = read(terminal, part.data(), part.size())) > 0;) text.append(part.data(), static_cast<size_t>(n));
  int status = 0;
  waitpid(child, &status, 0);
  close(terminal);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  return text;
}

}  // namespace

TEST_CASE("A progress bar says how much, how fast and how long still", "[progress]") {
  CHECK(describe_progress("loading", Unit::kBytes, 1'200'000'000, 2'400'000'000, 1.5) ==
        "loading [############            ]  50%  1.20 GB of 2.40 GB, 800 MB/s, 2 s left");
  CHECK(describe_progress("reading the prompt", Unit::kTokens, 512, 2048, 4) ==
        "reading the prompt [######                  ]  25%  512 of 2048 tokens, 128 tok/s, 12 s left");
  CHECK(describe_progress("measuring", Unit::kRuns, 12, 48, 60, "round 1 of 3, mtp:2") ==
        "measuring [######                  ]  25%  12 of 48 runs, 5.0 s each, 3:00 min left, round 1 of 3, mtp:2");
  CHECK(describe_progress("checking", Unit::kCases, 1, 31, 250) ==
        "checking [                        ]   3%  1 of 31 cases, 250.0 s each, 2:05 h left");
  // Nothing to divide by, and nothing that has begun.
  CHECK(describe_progress("loading", Unit::kBytes, 0, 0, 0) == "loading [########################] 100%  0 B of 0 B");
  CHECK(describe_progress("loading", Unit::kBytes, 5, 10, 0.01).ends_with("5 B of 10 B"));
  CHECK(describe_progress("loading", Unit::kBytes, 0, 10, 100).ends_with("0 B of 10 B"));
}

TEST_CASE("What a person waits for is shown on a terminal, and wiped", "[program][progress]") {
  const TempFolder folder;
  const std::string model = folder.file("m.gguf");
  const std::string wipe = "\r\033[K";
  CHECK(on_terminal({"synth", model, "--hidden-dim", "256", "--layers", "4", "--type", "q8_0"})
            .find(wipe + "writing [") != std::string::npos);
  std::string ids;
  for (int i = 0; i < 600; ++i) ids += std::to_string(i % 250) + " ";
  const std::string prompt = write_file(folder, "ids.txt", ids);
  struct Case {
    std::vector<std::string> arguments;
    std::vector<std::string> bars;
  };
  const std::vector<Case> cases = {
      {{"decode", "-m", model, "--ids", prompt, "-n", "4"}, {"loading [", "reading the prompt [", "600 tokens"}},
      {{"eval", "-m", model, "--ids", prompt, "--prompt-chunk", "16"}, {"loading [", "evaluating [", "600 tokens"}},
      {{"bench", "-m", model, "-n", "8", "--rounds", "1", "--arms", "off,mtp:1"}, {"measuring [", "12 runs"}},
      {{"selfcheck", "-m", kDemoModel, "-p", "import os\n", "-n", "2", "-t", "1"}, {"checking [", " cases"}},
  };
  for (const Case& c : cases) {
    const std::string text = on_terminal(c.arguments);
    INFO(text);
    for (const std::string& bar : c.bars) CHECK(text.find(bar) != std::string::npos);
    // Whatever follows the last bar begins on a line of its own.
    const size_t last = text.rfind(" [");
    CHECK(text.find(wipe, last) != std::string::npos);
    // The same without a terminal: nothing.
    CHECK(run(c.arguments).err.find('\r') == std::string::npos);
  }
}
