#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/tools/subprocess.h"

using namespace foretoken::test;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// The program running beside the test, its output in files of `folder`.
class Child {
 public:
  Child(const TempFolder& folder, std::vector<std::string> arguments, const std::vector<int>& ignored = {})
      : out_(folder.file("child.out")), err_(folder.file("child.err")) {
    arguments.insert(arguments.begin(), FORETOKEN_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ > 0) return;
    for (int number : ignored) signal(number, SIG_IGN);
    const int out = open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int err = open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Child() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void send(int number) const { kill(pid_, number); }
  [[nodiscard]] pid_t pid() const { return pid_; }

  /// Exit code, 128 + signal where one ended it; -1 if it still runs after `limit`.
  int wait(std::chrono::milliseconds limit) {
    const auto end = std::chrono::steady_clock::now() + limit;
    int status = 0;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > end) return -1;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  /// Waits until `done` holds. False if the program ends before.
  template <class Done>
  bool wait_until(Done&& done) {
    while (!done()) {
      siginfo_t info = {};
      waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
      if (info.si_pid == pid_) return done();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  [[nodiscard]] std::string out() const { return read_all(out_); }
  [[nodiscard]] std::string err() const { return read_all(err_); }

 private:
  const std::string out_, err_;
  pid_t pid_ = -1;
};

bool has_part_file(const TempFolder& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder.file(""))) {
    if (entry.path().filename().string().find(".part") != std::string::npos) return true;
  }
  return false;
}

/// A model that takes a moment to load and to run: 70 MB.
std::string middling_model(const TempFolder& folder) {
  const std::string path = folder.file("mid.gguf");
  const Outcome outcome = run({"synth", path, "--hidden-dim", "512", "--layers", "8", "--type", "q8_0"});
  REQUIRE(outcome.exit_code == 0);
  return path;
}

constexpr std::chrono::milliseconds kOneSecond(1000), kLong(60000);

}  // namespace

TEST_CASE("A signal ends every command from its first moment on, and leaves no part file", "[program][interruption]") {
  const TempFolder folder;
  const std::string model = middling_model(folder), json = folder.file("o.json");
  const int number = GENERATE(SIGINT, SIGTERM, SIGHUP);
  const std::vector<std::vector<std::string>> commands = {
      {"decode", "-m", model, "-p", " a", "-n", "1000000000", "--ignore-eos", "--json", json},
      {"bench", "-m", model, "--json", json},
      {"eval", "-m", model, "-p", " a b c", "--json", json},
      {"selfcheck", "-m", model, "--json", json},
      {"inspect", model, "--json", json},
      {"synth", folder.file("new.gguf"), "--layers", "100"},
  };
  for (const auto& command : commands) {
    INFO(command[0]);
    Child child(folder, command);
    if (!child.wait_until([&] { return has_part_file(folder); })) continue;  // it was too quick
    child.send(number);
    const int exit_code = child.wait(kOneSecond);
    INFO(child.err());
    CHECK((exit_code == 130 || exit_code == 0));
    CHECK_FALSE(has_part_file(folder));
  }
}

TEST_CASE("A prompt is interrupted within a second in chunks of any size", "[program][interruption]") {
  const TempFolder folder;
  const std::string model = middling_model(folder);
  std::string ids;
  for (int i = 0; i < 4000; ++i) ids += std::to_string(i % 250) + " ";
  const std::vector<std::string> source = {"-m",   model, "--ids", write_file(folder, "ids.txt", ids), "--prompt-chunk",
                                           "4096", "-t",  "1"};
  for (const char* command : {"decode", "eval"}) {
    INFO(command);
    std::vector<std::string> arguments = source;
    arguments.insert(arguments.begin(), command);
    Child child(folder, arguments);
    REQUIRE(child.wait_until([&] { return child.err().find("loaded in") != std::string::npos; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    child.send(SIGINT);
    CHECK(child.wait(kOneSecond) == 130);
    CHECK(child.err().find("foretoken: interrupted\n") != std::string::npos);
  }
}

TEST_CASE("A signal that is ignored already stays ignored", "[program][interruption]") {
  const TempFolder folder;
  Child child(folder, {"decode", "-m", kDemoModel, "-p", "def", "-n", "400", "--ignore-eos"}, {SIGINT, SIGHUP});
  REQUIRE(child.wait_until([&] { return !child.out().empty(); }));
  child.send(SIGINT);
  child.send(SIGHUP);
  CHECK(child.wait(kLong) == 0);
}

TEST_CASE("A second signal ends a generation at once, whichever it is", "[program][interruption]") {
  // A generation that cannot come to its end: nobody reads the pipe that it writes to.
  const TempFolder folder;
  const std::string pipe = folder.file("pipe");
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  const pid_t child = fork();
  if (child == 0) {
    dup2(open(pipe.c_str(), O_WRONLY), STDOUT_FILENO);
    dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
    execl(FORETOKEN_PROGRAM, FORETOKEN_PROGRAM, "decode", "-m", kDemoModel.c_str(), "-p", "def", "-n", "2000", "-c",
          "2048", "--ignore-eos", "--print-ids", "-t", "1", nullptr);
    _exit(127);
  }
  char byte = 0;
  while (read(reader, &byte, 1) != 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  kill(child, SIGINT);
  kill(child, SIGTERM);
  int status = 0;
  waitpid(child, &status, 0);
  close(reader);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 130);
}

TEST_CASE("A model that is cut short while it is in use ends the program in one line", "[program][interruption]") {
  const TempFolder folder;
  const std::string model = middling_model(folder), cut = folder.file("cut.gguf"), json = folder.file("o.json");
  const bool repack = GENERATE(false, true);  // with repacking only the rows of the embedding are looked up
  fs::copy_file(model, cut);
  std::vector<std::string> arguments = {"decode", "-m",     cut,  "-p", " a",   "-n",
                                        "3000",   "--json", json, "-c", "4096", "--ignore-eos"};
  if (!repack) arguments.push_back("--no-repack");
  Child child(folder, arguments);
  REQUIRE(child.wait_until([&] { return !child.out().empty(); }));
  fs::resize_file(cut, 100000);
  CHECK(child.wait(kLong) == 1);
  const std::string err = child.err();
  INFO(err);
  CHECK(err.find("\nforetoken: " + cut + ": was cut short while it was in use") != std::string::npos);
  CHECK(err.find("and has 100000 now") != std::string::npos);
  CHECK(err.back() == '\n');
  CHECK_FALSE(has_part_file(folder));
}

TEST_CASE("A model that is cut short while it is loaded ends the program in one line", "[program][interruption]") {
  const TempFolder folder;
  const std::string model = middling_model(folder), cut = folder.file("cut.gguf");
  // How far loading has come when the file is cut is chance, so several moments are tried.
  for (int ms = 0; ms < 60; ms += 12) {
    fs::copy_file(model, cut, fs::copy_options::overwrite_existing);
    Child child(folder, {"decode", "-m", cut, "-p", " a", "-n", "3000", "--ignore-eos", "-c", "4096"});
    std::this_thread::sleep_for(std::chrono::milliseconds(ms));
    fs::resize_file(cut, 1000);
    CHECK(child.wait(kLong) == 1);
    const std::string err = child.err();
    INFO(err);
    CHECK(err.find("foretoken: ") != std::string::npos);
    CHECK(err.find(cut) != std::string::npos);
  }
}

TEST_CASE("An output goes through symbolic links to the file that they lead to", "[program][output]") {
  const TempFolder folder;
  fs::create_directory(folder.file("elsewhere"));
  const auto decode_to = [&](const std::string& path) {
    return run({"decode", "-m", kDemoModel, "-p", "def", "-n", "2", "--json", path});
  };
  const auto is_json = [](const std::string& path) { return Json::parse(read_all(path)).contains("ids_sha256"); };

  SECTION("to a file, its permissions kept") {
    const std::string real = write_file(folder, "real.json", "old"), link = folder.file("link.json");
    chmod(real.c_str(), 0600);
    fs::create_symlink(real, link);
    CHECK(decode_to(link).exit_code == 0);
    CHECK(fs::is_symlink(link));
    CHECK(is_json(real));
    CHECK((fs::status(real).permissions() & fs::perms::all) == fs::perms(0600));
  }
  SECTION("over several links, relative ones, into another folder") {
    fs::create_symlink("elsewhere/b", folder.file("a"));
    fs::create_symlink("c", folder.file("elsewhere/b"));
    write_file(folder, "elsewhere/c", "old");
    CHECK(decode_to(folder.file("a")).exit_code == 0);
    CHECK(fs::is_symlink(folder.file("a")));
    CHECK(fs::is_symlink(folder.file("elsewhere/b")));
    CHECK(is_json(folder.file("elsewhere/c")));
  }
  SECTION("to a file that is not there yet") {
    fs::create_symlink("elsewhere/new.json", folder.file("dangling"));
    CHECK(decode_to(folder.file("dangling")).exit_code == 0);
    CHECK(fs::is_symlink(folder.file("dangling")));
    CHECK(is_json(folder.file("elsewhere/new.json")));
  }
  SECTION("to a folder that is not there") {
    fs::create_symlink("nowhere/new.json", folder.file("dangling"));
    const Outcome outcome = decode_to(folder.file("dangling"));
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.err.find("nowhere/new.json") != std::string::npos);
    CHECK(outcome.err.find("No such file") != std::string::npos);
  }
  SECTION("in a circle") {
    fs::create_symlink("two", folder.file("one"));
    fs::create_symlink("one", folder.file("two"));
    const Outcome outcome = decode_to(folder.file("one"));
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.err.find("symbolic links") != std::string::npos);
  }
  SECTION("to a file that must not be written") {
    if (geteuid() == 0) return;
    const std::string real = write_file(folder, "real.json", "old");
    chmod(real.c_str(), 0400);
    fs::create_symlink(real, folder.file("link"));
    const Outcome outcome = decode_to(folder.file("link"));
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.err.find("Permission denied") != std::string::npos);
    CHECK(read_all(real) == "old");
  }
  SECTION("of a model too") {
    fs::create_symlink("elsewhere/model.gguf", folder.file("model"));
    CHECK(run({"synth", folder.file("model"), "--layers", "1"}).exit_code == 0);
    CHECK(fs::is_symlink(folder.file("model")));
    CHECK(run({"inspect", folder.file("elsewhere/model.gguf")}).exit_code == 0);
  }
}

TEST_CASE("Devices, pipes and descriptors are outputs", "[program][output]") {
  const TempFolder folder;
  const auto decode_to = [&](const std::string& path) {
    return run({"decode", "-m", kDemoModel, "-p", "def", "-n", "2", "--json", path});
  };
  const Outcome plain = run({"decode", "-m", kDemoModel, "-p", "def", "-n", "2"});
  CHECK(decode_to("/dev/null").out == plain.out);
  CHECK(fs::is_character_file("/dev/null"));
  // As "-" does, in place of the text; also where standard output is a file.
  CHECK(Json::parse(decode_to("/dev/stdout").out).contains("ids"));
  Invocation to_file;
  to_file.arguments = {"decode", "-m", kDemoModel, "-p", "def", "-n", "2", "--json", "/proc/self/fd/1"};
  to_file.stdout_path = folder.file("out");
  CHECK(run(to_file).exit_code == 0);
  CHECK(Json::parse(read_all(folder.file("out"))).contains("ids"));
  CHECK(fs::is_symlink("/dev/stdout"));
  const Outcome to_stderr = decode_to("/dev/stderr");
  CHECK(to_stderr.out == plain.out);
  CHECK(to_stderr.err.find("\"ids_sha256\"") != std::string::npos);

  const Outcome eval = run({"eval", "-m", kDemoModel, "-p", "def main", "--logits", "/dev/stdout"});
  CHECK(eval.exit_code == 0);
  CHECK(eval.out.starts_with("\x93NUMPY"));
  CHECK(run({"eval", "-m", kDemoModel, "-p", "def", "--logits", "-", "--json", "/dev/stdout"}).exit_code == 2);
  CHECK(run({"bench", "-m", kDemoModel, "--csv", "-", "--json", "/dev/stdout"}).exit_code == 2);
  CHECK(run({"bench", "-m", kDemoModel, "--csv", folder.file("x"), "--json", folder.file("x")}).exit_code == 1);

  const std::string pipe = folder.file("pipe");
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  Child child(folder, {"synth", pipe, "--layers", "1"});
  const std::string piped = read_all(pipe);
  CHECK(child.wait(kLong) == 0);
  CHECK(run({"synth", folder.file("file.gguf"), "--layers", "1"}).exit_code == 0);
  CHECK(piped == read_all(folder.file("file.gguf")));
  CHECK(run({"synth", "/dev/stdout", "--layers", "1"}).out == piped);
  CHECK(fs::is_fifo(pipe));
}
