#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/engine/gguf/gguf_edit.h"

namespace foretoken::test {

/// How a test runs a program.
struct Invocation {
  std::vector<std::string> arguments;
  std::string input;  // standard input
  std::vector<std::string>
      environment;              // NAME=value, added to this process's; FORETOKEN_* of this process is not passed on
  std::string stdout_path;      // empty: standard output is a pipe that is read
  bool replace_stderr = false;  // standard error goes to stderr_path, or is closed where that is empty
  std::string stderr_path;
  size_t stop_reading_after = SIZE_MAX;  // close the pipe after so many bytes, as `head -c` does
  std::function<void(pid_t, const std::string& so_far)> on_output;  // after each piece of standard output
  std::string program = FORETOKEN_PROGRAM;
};

struct Outcome {
  int exit_code = -1;  // 128 + signal if a signal ended it
  std::string out;
  std::string err;
};

/// Runs a program, the one under test unless another is named, with these arguments. No shell in between.
inline Outcome run(const Invocation& invocation) {
  std::array<int, 2> in, out, err;
  if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0 || pipe2(err.data(), O_CLOEXEC) != 0) {
    throw std::runtime_error("pipe failed");
  }
  std::vector<std::string> environment = invocation.environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (std::string(*variable).rfind("FORETOKEN_", 0) != 0) environment.push_back(*variable);
  }
  std::vector<std::string> arguments = {invocation.program};
  arguments.insert(arguments.end(), invocation.arguments.begin(), invocation.arguments.end());
  std::vector<char*> argv, envp;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  for (std::string& variable : environment) envp.push_back(variable.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);

  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    dup2(in[0], STDIN_FILENO);
    dup2(err[1], STDERR_FILENO);
    const int to = invocation.stdout_path.empty()
                       ? out[1]
                       : open(invocation.stdout_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (to < 0) _exit(126);
    dup2(to, STDOUT_FILENO);
    if (invocation.replace_stderr) {
      close(STDERR_FILENO);
      if (!invocation.stderr_path.empty() && open(invocation.stderr_path.c_str(), O_WRONLY) != STDERR_FILENO)
        _exit(126);
    }
    signal(SIGPIPE, SIG_DFL);
    execve(argv[0], argv.data(), envp.data());
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  signal(SIGPIPE, SIG_IGN);
  size_t fed = 0;
  while (fed < invocation.input.size()) {
    const ssize_t n = write(in[1], invocation.input.data() + fed, invocation.input.size() - fed);
    if (n <= 0) break;  // the program does not read its input
    fed += static_cast<size_t>(n);
  }
  close(in[1]);

  Outcome outcome;
  std::array<pollfd, 2> ends = {{{out[0], POLLIN, 0}, {err[0], POLLIN, 0}}};
  int open_ends = 2;
  while (open_ends > 0) {
    poll(ends.data(), ends.size(), -1);
    for (size_t i = 0; i < ends.size(); ++i) {
      if (ends[i].fd < 0 || ends[i].revents == 0) continue;
      std::array<char, 4096> part;
      const ssize_t n = read(ends[i].fd, part.data(), part.size());
      std::string& text = i == 0 ? outcome.out : outcome.err;
      if (n > 0) text.append(part.data(), static_cast<size_t>(n));
      if (n > 0 && i == 0 && invocation.on_output) invocation.on_output(child, outcome.out);
      if (n <= 0 || (i == 0 && text.size() >= invocation.stop_reading_after)) {
        close(ends[i].fd);
        ends[i].fd = -1;
        --open_ends;
      }
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

inline Outcome run(std::vector<std::string> arguments) {
  Invocation invocation;
  invocation.arguments = std::move(arguments);
  return run(invocation);
}

/// Writes a file and returns its path.
inline std::string write_file(const TempFolder& folder, const std::string& name, const std::string& content) {
  std::ofstream(folder.file(name), std::ios::binary) << content;
  return folder.file(name);
}

inline std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The model that ships with the project: qwen35moe with an MTP layer, 4 trunk layers.
inline const std::string kDemoModel = FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf";

}  // namespace foretoken::test
