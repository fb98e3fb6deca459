#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>

#include <array>
#include <exception>
#include <new>

#ifdef FORETOKEN_HAVE_CUDA
#include "engine/cuda/cuda_backend.h"
#endif
#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "kernels/base/isa.h"
#include "kernels/cuda/cuda_device.h"
#include "tools/cli/cluster_program.h"
#include "tools/cli/interruption.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/terminal.h"
#include "tools/cli/version.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

constexpr std::array<Command, 11> kCommands = {{
    {"decode", run_decode, "continue a prompt"},
    {"chat", run_chat, "talk with a model at the terminal"},
    {"serve", run_serve, "answer requests over HTTP: OpenAI's, Anthropic's and llama.cpp's API"},
    {"bench", run_bench, "measure arms (MTP off, on, grouped, per-token) against each other"},
    {"eval", run_eval, "perplexity and logits of a text"},
    {"selfcheck", run_selfcheck, "check that no setting changes a bit, on your model and machine"},
    {"inspect", run_inspect, "what is in a GGUF file, what a token costs, what MTP can gain"},
    {"tokenize", run_tokenize, "text to token ids and back"},
    {"requantise", run_requantise, "write a model file again with other weight types"},
    {"repack", run_repack, "write a model file that loads in a fraction of the time"},
    {"synth", run_synth, "make a model file with real shapes and random weights"},
}};

std::string command_list() {
  std::string text = "Commands:\n";
  for (const Command& command : kCommands) text += fmt::format("  {:<10}  {}\n", command.name, command.summary);
  return text;
}

std::string help_text() {
  return fmt::format(
      "foretoken COMMAND [flags]\n\n"
      "Decodes Mixture-of-Experts models from GGUF files by multi-token prediction. Speed never changes the text.\n\n"
      "{}\nforetoken COMMAND --help lists a command's flags; foretoken --version names the build.\n"
      "Exit: 0 done, 1 the input or the machine could not serve it, 2 the command line is wrong, 3 a check came out "
      "false,\n"
      "130 interrupted.\n\n{}",
      command_list(), environment_help());
}

std::string version_text() {
  std::string compiled;
  for (Isa isa : compiled_isas()) compiled += fmt::format("{}{}", compiled.empty() ? "" : " ", isa_name(isa));
#ifdef FORETOKEN_HAVE_CUDA
  const cuda::DeviceQuery query = cuda::query_device();
  const std::string cuda = "built in; " + (query.device ? "runs on " + query.device->name : query.reason);
#else
  const std::string cuda = "not built in";
#endif
  return fmt::format("foretoken {} (commit {})\ninstruction sets: compiled in {}; chosen {}\nCUDA: {}\n", kVersion,
                     kCommit, compiled, isa_name(read_environment().isa.value_or(best_isa())), cuda);
}

int dispatch(int argc, const char* const* argv) {
  const std::string_view name = argc > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h" || name == "help") {
    ResultStream().write(help_text());
    return 0;
  }
  if (name == "--version" || name == "version") {
    ResultStream().write(version_text());
    return 0;
  }
  for (const Command& command : kCommands) {
    if (command.name == name) return command.run(argc - 1, argv + 1);
  }
  print_message("foretoken: {}\n{}",
                name.empty() ? "a command is missing" : fmt::format("{}: no such command", printable(name)),
                command_list());
  return kExitUsage;
}

/// A standard stream that the caller closed must not become the number of a file that is opened later: messages would
/// land in it. Reading and writing such a stream still fails, but for messages, which are lost.
void occupy_standard_streams() {
  constexpr std::array<int, 3> kModes = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int fd = 0; fd < 3; ++fd) {
    // The lowest free number is the stream's own, since those below it are taken.
    if (fcntl(fd, F_GETFD) < 0) [[maybe_unused]]
      const int opened = ::open("/dev/null", kModes[fd]);
  }
}

int report(int exit_code, std::string_view message) {
  print_message("foretoken: {}\n", printable(message, message.size() * 4));
  return exit_code;
}

}  // namespace

std::span<const Command> all_commands() {
  return kCommands;
}

int run_program(int argc, const char* const* argv) {
  occupy_standard_streams();
  set_quiet_interrupts(processes_of_mpirun() > 1);
  catch_signals();
  signal(SIGPIPE, SIG_IGN);  // a reader that goes away shows as a failed write
  signal(SIGXFSZ, SIG_IGN);  // and so does a file that may not grow
#ifdef FORETOKEN_HAVE_CUDA
  use_cuda_backend();
#endif
  try {
    const auto run = [&] { return dispatch(argc, argv); };
    return processes_of_mpirun() > 1 ? run_in_cluster(argc, argv, run) : run();
  } catch (const UsageError& error) {
    return report(kExitUsage, error.what());
  } catch (const InputError& error) {
    return report(kExitInput, error.what());
  } catch (const Interrupted& error) {
    return report(kExitInterrupted, error.what());
  } catch (const std::bad_alloc&) {
    return report(kExitInput, "out of memory; use a smaller --ctx-size or a smaller model, or close other programs");
  } catch (const std::exception& error) {
    return report(kExitInput, error.what());
  }
}

}  // namespace foretoken
