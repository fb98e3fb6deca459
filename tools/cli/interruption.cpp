#include "tools/cli/interruption.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "engine/gguf/mapped_file.h"
#include "engine/part_file.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

std::atomic<bool> interrupt_flag{false};
std::atomic<bool> is_polled{false};
std::atomic<bool> is_quiet{false};
std::atomic<void (*)()> last_act{nullptr};
std::atomic<int64_t> signalled_ns{0};  // of the monotonic clock; 0: never
std::atomic<int64_t> delay_ns{0};
static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free &&
                  std::atomic<void (*)()>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

// Handlers may call write, unlink, fstat, clock_gettime, nanosleep and _exit, and nothing that allocates.

int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

void note_signal(int) {
  signalled_ns = now_ns();
}

void write_error(const char* text) {
  size_t left = std::strlen(text);
  while (left > 0) {
    const ssize_t written = ::write(STDERR_FILENO, text, left);
    if (written <= 0) return;
    text += written;
    left -= static_cast<size_t>(written);
  }
}

void write_error(uint64_t number) {
  std::array<char, 21> digits{};
  size_t begin = digits.size() - 1;
  do {
    digits[--begin] = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number > 0);
  write_error(&digits[begin]);
}

[[noreturn]] void end(int exit_code) {
  remove_part_files();
  ::_exit(exit_code);
}

// Wipes a progress bar.
void begin_line() {
  if (::isatty(STDERR_FILENO) == 1) write_error("\r\033[K");
}

void on_interrupt(int number) {
  note_signal(number);
  if (is_polled && !interrupt_flag.exchange(true)) return;
  if (is_quiet) end(kExitInterrupted);
  const timespec delay{delay_ns / 1'000'000'000, delay_ns % 1'000'000'000};
  ::nanosleep(&delay, nullptr);
  begin_line();
  write_error("foretoken: interrupted\n");
  if (void (*const act)() = last_act) act();
  end(kExitInterrupted);
}

void on_bus_error(int, siginfo_t* info, void*) {
  const MappedFile::Mapping* file = MappedFile::find(info->si_addr);
  if (file == nullptr) {  // not ours: what would have happened without this handler
    ::signal(SIGBUS, SIG_DFL);
    return;
  }
  // Several threads may come here at once: the first one speaks and ends the program.
  static std::atomic_flag is_told;
  if (is_told.test_and_set()) {
    while (true) ::pause();
  }
  begin_line();
  write_error("foretoken: ");
  write_error(file->shown_path.c_str());
  const uint64_t now = file->size_now();
  if (now < file->size_bytes) {
    write_error(": was cut short while it was in use: it had ");
    write_error(file->size_bytes);
    write_error(" bytes and has ");
    write_error(now);
    write_error(" now; wait until it is written whole, or download it again\n");
  } else {
    write_error(": reading failed near byte ");
    write_error(static_cast<uint64_t>(static_cast<const std::byte*>(info->si_addr) - file->begin));
    write_error("; the disk or the network drive that holds it is failing\n");
  }
  end(kExitInput);
}

void handle_ends(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&action.sa_mask, number);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction inherited = {};
    ::sigaction(number, nullptr, &inherited);
    if (inherited.sa_handler != SIG_IGN) ::sigaction(number, &action, nullptr);
  }
}

}  // namespace

void catch_signals() {
  handle_ends(on_interrupt);
  struct sigaction bus_action = {};
  bus_action.sa_sigaction = on_bus_error;
  bus_action.sa_flags = SA_SIGINFO;
  sigemptyset(&bus_action.sa_mask);
  ::sigaction(SIGBUS, &bus_action, nullptr);
}

void set_quiet_interrupts(bool are_quiet) {
  is_quiet = are_quiet;
}

void set_last_act(void (*act)()) {
  last_act = act;
}

void delay_interrupts(std::chrono::milliseconds delay) {
  delay_ns = std::chrono::nanoseconds(delay).count();
}

void only_note_signals() {
  handle_ends(note_signal);
}

std::chrono::nanoseconds time_since_signal() {
  const int64_t at = signalled_ns;
  return std::chrono::nanoseconds(at == 0 ? -1 : now_ns() - at);
}

PolledInterrupts::PolledInterrupts() {
  is_polled = true;
}

PolledInterrupts::~PolledInterrupts() {
  is_polled = false;
}

const std::atomic<bool>& interrupted() {
  return interrupt_flag;
}

void clear_interrupt() {
  interrupt_flag = false;
}

}  // namespace foretoken
