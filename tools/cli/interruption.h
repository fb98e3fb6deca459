#pragma once

#include <atomic>
#include <chrono>

namespace foretoken {

/// From here on SIGINT, SIGTERM and SIGHUP end the program in order: part files are removed, "interrupted" is printed,
/// the exit code is kExitInterrupted. A signal that is ignored already stays so (nohup, a shell's background job).
/// Also catches what ends a program when a file that it computes from becomes shorter: one line instead of a bus
/// error, exit code kExitInput.
///
/// A signal ends the program at once, wherever it is, since most of the work leaves nothing behind that is worth
/// keeping. Where something is worth keeping, a PolledInterrupts says that interrupted() is asked instead; a second
/// signal ends the program at once there too.
void catch_signals();

/// Whether a signal that ends the program at once does so without a word: a process of a cluster that does not know the
/// others yet, one of which may have something to say.
void set_quiet_interrupts(bool are_quiet);
/// In a process of a cluster a signal often follows the end of another one, and who knows which one is to say it: a
/// signal that ends the program at once waits for so long first.
void delay_interrupts(std::chrono::milliseconds delay);
/// Called when a signal ends the program at once, behind the line; nullptr: nothing. It may do what a signal handler may.
void set_last_act(void (*act)());
/// From here on SIGINT, SIGTERM and SIGHUP do nothing but count for time_since_signal().
void only_note_signals();
/// Since the last of these signals; negative: none has come.
[[nodiscard]] std::chrono::nanoseconds time_since_signal();

/// While one lives, the first signal only sets interrupted(). REQUIRES: one at a time.
class PolledInterrupts {
 public:
  PolledInterrupts();
  ~PolledInterrupts();
  PolledInterrupts(const PolledInterrupts&) = delete;
  PolledInterrupts& operator=(const PolledInterrupts&) = delete;
};

[[nodiscard]] const std::atomic<bool>& interrupted();
/// What the signal was for has been stopped: the next one is a first one again.
void clear_interrupt();

}  // namespace foretoken
