#pragma once

#include <span>
#include <string_view>

namespace foretoken {

// Each command stands in its own file. argv[0] is the command's name, the rest its arguments. The result is the exit
// code: 0 done, 3 a check came out false, 130 interrupted. Throws UsageError (exit 2) and InputError (exit 1).
[[nodiscard]] int run_decode(int argc, const char* const* argv);
[[nodiscard]] int run_serve(int argc, const char* const* argv);
[[nodiscard]] int run_chat(int argc, const char* const* argv);
[[nodiscard]] int run_bench(int argc, const char* const* argv);
[[nodiscard]] int run_eval(int argc, const char* const* argv);
[[nodiscard]] int run_selfcheck(int argc, const char* const* argv);
[[nodiscard]] int run_inspect(int argc, const char* const* argv);
[[nodiscard]] int run_tokenize(int argc, const char* const* argv);
[[nodiscard]] int run_requantise(int argc, const char* const* argv);
[[nodiscard]] int run_synth(int argc, const char* const* argv);
[[nodiscard]] int run_repack(int argc, const char* const* argv);

// Exit codes beside 0; docs/commands.md has the list.
inline constexpr int kExitInput = 1;        // the input or the machine could not serve it
inline constexpr int kExitUsage = 2;        // the command line or the environment is wrong
inline constexpr int kExitCheckFailed = 3;  // a check that the command exists for came out false
inline constexpr int kExitInterrupted = 130;

struct Command {
  std::string_view name;
  int (*run)(int argc, const char* const* argv);
  std::string_view summary;
};

/// All commands, in the order of the help text.
[[nodiscard]] std::span<const Command> all_commands();

/// The whole program but for process set-up: dispatches to a command and turns exceptions into one line on stderr and
/// an exit code.
[[nodiscard]] int run_program(int argc, const char* const* argv);

}  // namespace foretoken
