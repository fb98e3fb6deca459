// Man page and completions are made from --help; here --help is read a second way and compared with what came out.
#include <sys/stat.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/subprocess.h"
#include "tools/commands.h"

using foretoken::all_commands;
using foretoken::Command;
using foretoken::test::Invocation;
using foretoken::test::Outcome;
using foretoken::test::read_all;
using foretoken::test::run;
using foretoken::test::TempFolder;
using foretoken::test::write_file;

namespace {

Outcome generate(const std::string& of_program, const std::string& folder) {
  Invocation invocation;
  invocation.program = FORETOKEN_HELP_PAGES;
  invocation.arguments = {of_program, "1.2.3", folder};
  return run(invocation);
}

/// The pages of the program under test.
struct Pages {
  Pages() {
    const Outcome outcome = generate(FORETOKEN_PROGRAM, folder.file(""));
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    man = read_all(folder.file("foretoken.1"));
    zsh = read_all(folder.file("_foretoken"));
  }

  /// What bash offers for the last of `words`, sorted. The shell stands in the folder of the pages.
  [[nodiscard]] std::vector<std::string> complete(const std::vector<std::string>& words) const {
    Invocation invocation;
    invocation.program = "/bin/bash";
    invocation.arguments = {"-c",
                            "cd \"$1\"; source ./foretoken.bash; shift; complete -p foretoken >/dev/null || exit 9;"
                            "COMP_WORDS=(foretoken \"$@\"); COMP_CWORD=$#; _foretoken;"
                            "[[ ${#COMPREPLY[@]} == 0 ]] || printf '%s\\n' \"${COMPREPLY[@]}\"",
                            "bash", folder.file("")};
    invocation.arguments.insert(invocation.arguments.end(), words.begin(), words.end());
    const Outcome outcome = run(invocation);
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    REQUIRE(outcome.err.empty());
    std::vector<std::string> offered;
    std::istringstream lines(outcome.out);
    for (std::string line; std::getline(lines, line);) offered.push_back(line);
    std::sort(offered.begin(), offered.end());
    return offered;
  }

  TempFolder folder;
  std::string man, zsh;
};

/// The flags of a --help text in all their spellings, sorted.
std::vector<std::string> flags_of(const std::string& help) {
  static const std::regex kFlag(R"(^  (?:(-\w), )?(--[\w-]+).*)");
  std::vector<std::string> flags;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, kFlag)) continue;
    if (match[1].matched) flags.push_back(match[1]);
    flags.push_back(match[2]);
  }
  std::sort(flags.begin(), flags.end());
  return flags;
}

/// As roff writes a flag.
std::string roff(const std::string& flag) {
  return std::regex_replace(flag, std::regex("-"), "\\-");
}

/// From `begin` to `end`, without them.
std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t at = text.find(begin);
  if (at == std::string::npos) return "";
  const size_t after = at + begin.size();
  return text.substr(after, text.find(end, after) - after);
}

std::string upper(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) { return static_cast<char>(c - 'a' + 'A'); });
  return out;
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("Every command and every flag of --help is in man page and completions", "[help_pages]") {
  const Pages pages;
  Words names = {"--help", "--version"};
  for (const Command& command : all_commands()) {
    const std::string name(command.name);
    INFO(name);
    names.push_back(name);
    const Words flags = flags_of(run({name, "--help"}).out);
    REQUIRE(flags.size() > 1);

    CHECK(pages.complete({name, "-"}) == flags);
    const std::string section = between(pages.man, "\n.SH " + upper(name) + "\n", "\n.SH ");
    const std::string branch = between(pages.zsh, "\n    " + name + ")\n", "\n      ;;\n");
    for (const std::string& flag : flags) {
      INFO(flag);
      CHECK(section.find("\\fB" + roff(flag) + "\\fR") != std::string::npos);
      // '--chat[...' or '(-n --n-predict)--n-predict=[...'
      CHECK(std::regex_search(branch, std::regex("\n? *'(\\([^)]*\\))?" + flag + "=?\\[")));
    }
    CHECK(pages.zsh.find("\n    '" + name + ":") != std::string::npos);
    CHECK(pages.man.find("\n.TP\n\\fB" + name + "\\fR\n" + std::string(command.summary.substr(0, 6))) !=
          std::string::npos);
  }
  std::sort(names.begin(), names.end());
  CHECK(pages.complete({""}) == names);
  for (const char* variable : {"FORETOKEN_MOE_VERIFY", "FORETOKEN_ISA", "FORETOKEN_THREADS", "FORETOKEN_NUMA",
                               "FORETOKEN_CUDA_DEPENDENT_LAUNCH"}) {
    CHECK(between(pages.man, "\n.SH ENVIRONMENT\n", "\n.SH ").find(variable) != std::string::npos);
  }
  CHECK(pages.man.find("foretoken 1.2.3") != std::string::npos);
}

TEST_CASE("Completion knows which values a flag takes", "[help_pages]") {
  const Pages pages;
  write_file(pages.folder, "a model.gguf", "");
  write_file(pages.folder, "notes.txt", "");
  std::filesystem::create_directory(pages.folder.file("more"));

  CHECK(pages.complete({"decode", "--device", ""}) == Words{"cpu", "cuda", "split"});
  CHECK(pages.complete({"decode", "--device", "c"}) == Words{"cpu", "cuda"});
  // The equal sign is a word of its own, unless the shell was told otherwise.
  CHECK(pages.complete({"decode", "--device", "="}) == Words{"cpu", "cuda", "split"});
  CHECK(pages.complete({"decode", "--device", "=", "s"}) == Words{"split"});
  CHECK(pages.complete({"decode", "--device=s"}) == Words{"--device=split"});
  CHECK(pages.complete({"inspect", "--gpu-cache", ""}) == Words{"auto"});
  CHECK(pages.complete({"synth", "--shape", "t"}) == Words{"tiny"});
  // A value that only the user knows, and files, which readline completes.
  CHECK(pages.complete({"decode", "-n", ""}).empty());
  CHECK(pages.complete({"decode", "--prompt", "--m"}).empty());
  CHECK(pages.complete({"decode", "--json", "n"}).empty());
  CHECK(pages.complete({"synth", ""}).empty());
  // --mtp may stand alone.
  CHECK(pages.complete({"decode", "--mtp", "--mtp-"}) == Words{"--mtp-fixed"});
  CHECK(pages.complete({"decode", "--mtp", "="}).empty());

  const Words models = {"a model.gguf", "more"};
  CHECK(pages.complete({"decode", "-m", ""}) == models);
  CHECK(pages.complete({"decode", "--model", "=", ""}) == models);
  CHECK(pages.complete({"inspect", ""}) == models);
  CHECK(pages.complete({"inspect", "--j"}) == Words{"--json"});
  CHECK(pages.complete({"nonsense", ""}).empty());

  CHECK(pages.zsh.find("--device=[") != std::string::npos);
  CHECK(pages.zsh.find(":cpu|cuda|split:(cpu cuda split)'") != std::string::npos);
  CHECK(pages.zsh.find(":MODEL:_files -g \"*.gguf(-.)\"'") != std::string::npos);
  CHECK(pages.zsh.find("]::K: '") != std::string::npos);
}

TEST_CASE("A shell reads the zsh completion", "[help_pages]") {
  const Pages pages;
  Invocation invocation;
  invocation.program = "/bin/zsh";
  if (!std::filesystem::exists(invocation.program)) return;
  invocation.arguments = {"-fc", "autoload -Uz compinit; compinit -D -u; source $1; print $_comps[foretoken]", "zsh",
                          pages.folder.file("_foretoken")};
  const Outcome outcome = run(invocation);
  CHECK(outcome.err.empty());
  CHECK(outcome.out == "_foretoken\n");
}

TEST_CASE("A help text that is not understood makes no pages", "[help_pages]") {
  const TempFolder folder;
  const std::string head =
      "#!/bin/sh\n[ \"$1\" = go ] || { printf 'x COMMAND\\n\\nDoes.\\n\\nCommands:\\n  go  do it\\n'; exit; }\n";
  const auto outcome_of = [&](const std::string& script) {
    const std::string program = write_file(folder, "program", script);
    chmod(program.c_str(), 0755);
    return generate(program, folder.file("pages"));
  };
  CHECK(outcome_of(head + "printf 'x go\\n\\nOptions:\\n  --all  everything\\n'\n").exit_code == 0);

  const Outcome deeper = outcome_of(head + "printf 'x go\\n\\nOptions:\\n    --all  everything\\n'\n");
  CHECK(deeper.exit_code == 1);
  CHECK(deeper.err.find("'    --all  everything' was not understood") != std::string::npos);
  CHECK(outcome_of(head + "printf 'x go\\n\\nOptions:\\n  -a [ --all ] N  everything\\n'\n").exit_code == 1);
  CHECK(outcome_of("#!/bin/sh\nprintf 'x\\n\\nDoes.\\n'\n").exit_code == 1);
  CHECK(outcome_of("#!/bin/sh\nexit 3\n").exit_code == 1);
}
