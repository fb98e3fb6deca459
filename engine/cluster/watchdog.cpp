#include "engine/cluster/watchdog.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "engine/cluster/process_state.h"
#include "engine/cluster/protocol.h"
#include "engine/cluster/signals_blocked.h"
#include "kernels/base/error.h"
#include "kernels/threads/thread_team.h"

namespace foretoken {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kConnectMs = 2000;
constexpr int kBeatMs = 500;
constexpr size_t kMostAddresses = 16;

/// Where rank 0 listens; broadcast.
struct Meeting {
  uint64_t token = 0;
  uint16_t port = 0;
  uint32_t num_addresses = 0;
  std::array<uint32_t, kMostAddresses> addresses{};  // IPv4, in network order
  char host[64] = {};
};

struct Greeting {
  uint64_t token = 0;
  int32_t rank = 0;
  char host[64] = {};
};

enum class Leaving : uint8_t {
  kStays,
  kLeaves,      // and that is no fault
  kEndsOthers,  // has said what there is to say; who hears it ends
};

enum class State : uint8_t {
  kIdle,  // and may be for as long as it likes
  kWaits,
  kWorks,
};

/// What each end says every half second.
struct Beat {
  uint64_t steps = 0;
  uint64_t signs = 0;  // of life
  State state = State::kIdle;
  Leaving leaving = Leaving::kStays;
};

/// Whether a process does anything at all, but for the thread that asks.
class SignsOfLife {
 public:
  /// Another number than the last time if it did. Who waits for a message uses some 10 ms of a second, threads that sleep
  /// nothing; pages and blocks from a disk show a process that has to wait for each of them.
  uint64_t look() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const int64_t from_disk = usage.ru_majflt + usage.ru_inblock;
    const int64_t computed_ns = ns_of(CLOCK_PROCESS_CPUTIME_ID) - ns_of(CLOCK_THREAD_CPUTIME_ID);
    if (from_disk != from_disk_ || computed_ns - computed_ns_ >= kLeastNs) {
      from_disk_ = from_disk;
      computed_ns_ = computed_ns;
      ++count_;
    }
    return count_;
  }

 private:
  static constexpr int64_t kLeastNs = 1'000'000;
  static int64_t ns_of(clockid_t clock) {
    timespec now{};
    ::clock_gettime(clock, &now);
    return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  }

  int64_t from_disk_ = 0, computed_ns_ = 0;
  uint64_t count_ = 0;
};

/// A thread that is stopped by a debugger or a signal, or waits for a disk: not one that waits for input, for a reader
/// of its output or for another thread.
bool is_held(int thread) {
  const char state = process_state(fmt::format("/proc/self/task/{}/stat", thread));
  return state == 't' || state == 'T' || state == 'D';
}

/// A process that finds that it was stopped for so long may have been given up by the others, and tells for so long
/// nobody of those that it does not find any more.
constexpr double kStoppedSeconds = Watchdog::kSilenceSeconds - 1, kComesToSeconds = 2;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// False if it did not all arrive in time.
bool read_all(int fd, void* to, size_t size, int timeout_ms) {
  auto* at = static_cast<char*>(to);
  const auto begin = Clock::now();
  while (size > 0) {
    pollfd waiting{fd, POLLIN, 0};
    const int left = timeout_ms - static_cast<int>(seconds_since(begin) * 1000);
    if (left <= 0 || ::poll(&waiting, 1, left) <= 0) return false;
    const ssize_t got = ::recv(fd, at, size, 0);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

int connect_to(uint32_t address, uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = address;
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) {
    pollfd waiting{fd, POLLOUT, 0};
    int error = errno;
    socklen_t size = sizeof error;
    const bool done = error == EINPROGRESS && ::poll(&waiting, 1, kConnectMs) > 0 &&
                      ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
    if (!done) {
      ::close(fd);
      return -1;
    }
  }
  return fd;
}

}  // namespace

struct Watchdog::Impl {
  struct Peer {
    int fd = -1;
    int rank = 0;
    std::string host;
    Clock::time_point heard = Clock::now();
    Beat last;
    Clock::time_point moved = Clock::now();   // by a step or a sign of life, or needed not
    Clock::time_point got_on = Clock::now();  // by a step, or needed not
    std::vector<char> input;
    bool has_left = false;
  };

  Impl(Transport& transport, const Activity& its_activity, std::function<void(const std::string&)> loss)
      : activity(its_activity), on_loss(std::move(loss)), rank(transport.rank()) {
    if (is_root()) {
      meet_followers(transport);
    } else {
      meet_root(transport);
    }
    for (Peer& peer : peers) {
      ::fcntl(peer.fd, F_SETFL, ::fcntl(peer.fd, F_GETFL) | O_NONBLOCK);
      peer.heard = peer.moved = peer.got_on = Clock::now();
    }
    const SignalsBlocked blocked;  // the handler of one may wait for what the thread finds
    thread = std::thread([this] { watch(); });
  }

  ~Impl() {
    end(Leaving::kLeaves);
    for (const Peer& peer : peers) ::close(peer.fd);
  }

  void meet_followers(Transport& transport) {
    const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_ANY);
    socklen_t size = sizeof any;
    const bool listens = listener >= 0 && ::bind(listener, reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0 &&
                         ::listen(listener, transport.num_ranks()) == 0 &&
                         ::getsockname(listener, reinterpret_cast<sockaddr*>(&any), &size) == 0;
    Meeting meeting;
    std::random_device random;
    meeting.token = uint64_t{random()} << 32 | random();
    meeting.port = listens ? ntohs(any.sin_port) : 0;
    const std::string own_host = host_name();
    std::memcpy(meeting.host, own_host.data(), std::min(own_host.size(), sizeof meeting.host - 1));
    ifaddrs* interfaces = nullptr;
    if (::getifaddrs(&interfaces) == 0) {
      for (const ifaddrs* at = interfaces; at != nullptr && meeting.num_addresses < kMostAddresses; at = at->ifa_next) {
        if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET || (at->ifa_flags & IFF_UP) == 0) continue;
        meeting.addresses[meeting.num_addresses++] =
            reinterpret_cast<const sockaddr_in*>(at->ifa_addr)->sin_addr.s_addr;
      }
      ::freeifaddrs(interfaces);
    }
    transport.broadcast(std::as_writable_bytes(std::span(&meeting, 1)));
    while (listens && static_cast<int>(peers.size()) + 1 < transport.num_ranks()) {
      pollfd waiting{listener, POLLIN, 0};
      if (::poll(&waiting, 1, 4 * kConnectMs) <= 0) break;
      const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      Greeting greeting;
      if (fd < 0) continue;
      if (!read_all(fd, &greeting, sizeof greeting, kConnectMs) || greeting.token != meeting.token) {
        ::close(fd);
        continue;
      }
      Peer& peer = peers.emplace_back();
      peer.fd = fd;
      peer.rank = greeting.rank;
      greeting.host[sizeof greeting.host - 1] = '\0';
      peer.host = greeting.host;
    }
    if (listener >= 0) ::close(listener);
    agree(transport, static_cast<int>(peers.size()) + 1 == transport.num_ranks());
  }

  void meet_root(Transport& transport) {
    Meeting meeting;
    transport.broadcast(std::as_writable_bytes(std::span(&meeting, 1)));
    Peer& root = peers.emplace_back();
    root.host = meeting.host;
    for (uint32_t i = 0; i < meeting.num_addresses && root.fd < 0; ++i) {
      // The loopback is rank 0's only where this is its own host.
      const bool is_loopback = (ntohl(meeting.addresses[i]) >> 24) == 127;
      if (!is_loopback || root.host == host_name()) root.fd = connect_to(meeting.addresses[i], meeting.port);
    }
    Greeting greeting;
    greeting.token = meeting.token;
    greeting.rank = transport.rank();
    const std::string own_host = host_name();
    std::memcpy(greeting.host, own_host.data(), std::min(own_host.size(), sizeof greeting.host - 1));
    if (root.fd >= 0) (void)::send(root.fd, &greeting, sizeof greeting, MSG_NOSIGNAL);
    agree(transport, root.fd >= 0);
  }

  static void agree(Transport& transport, bool is_connected) {
    std::vector<StartRecord> records(static_cast<size_t>(transport.num_ranks()));
    records[transport.rank()] = start_record();
    records[transport.rank()].failed = !is_connected;
    gather_records(transport, records);
    for (size_t rank = 1; rank < records.size(); ++rank) {
      if (!records[rank].failed) continue;
      throw InputError(fmt::format(
          "{} (rank {} of the cluster): cannot open a TCP connection to {}; let the hosts reach each other at any port",
          records[rank].host, rank, records[0].host));
    }
    if (records[0].failed) throw InputError(fmt::format("{}: waited in vain for the other hosts", records[0].host));
  }

  [[nodiscard]] bool is_root() const { return rank == 0; }
  [[nodiscard]] bool leaves() const { return leaving != Leaving::kStays; }

  void end(Leaving how) {
    if (!thread.joinable()) return;
    leaving = how;
    thread.join();
  }

  void watch() {
    for (auto before = Clock::now();; before = Clock::now()) {
      const Leaving now = leaving;
      say(now);
      if (now != Leaving::kStays) return;
      std::vector<pollfd> waiting;
      for (const Peer& peer : peers) waiting.push_back({peer.has_left ? -1 : peer.fd, POLLIN, 0});
      const auto begin = Clock::now();
      for (int left = kBeatMs; left > 0 && !leaves(); left = kBeatMs - static_cast<int>(seconds_since(begin) * 1000)) {
        const int num_ready = ::poll(waiting.data(), waiting.size(), std::min(left, 50));
        if (seconds_since(before) > kStoppedSeconds) come_to();
        before = Clock::now();
        if (num_ready <= 0) continue;
        for (size_t i = 0; i < peers.size(); ++i) {
          if (waiting[i].revents != 0) read_beats(peers[i]);
          if (peers[i].has_left) waiting[i].fd = -1;
        }
      }
      for (const Peer& peer : peers) judge(peer);
    }
  }

  // This process was stopped, so it is no wonder that it heard nothing.
  void come_to() {
    came_to = Clock::now();
    for (Peer& peer : peers) peer.heard = peer.moved = peer.got_on = came_to;
  }

  void say(Leaving leaving) {
    const State at_work = activity.waits ? State::kWaits : State::kWorks;
    const Beat beat{activity.steps + num_loops_done(), signs.look(),
                    is_root() && !activity.is_busy && !is_held(activity.worker) ? State::kIdle : at_work, leaving};
    // A peer that does not read for long is silent as well.
    for (const Peer& peer : peers) {
      if (!peer.has_left) (void)::send(peer.fd, &beat, sizeof beat, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
  }

  // A follower other than the first says nothing and lets rank 0 find that it has gone.
  void lose(const Peer& peer, const std::string& what) {
    if (leaves()) return;
    const bool is_given_up = seconds_since(came_to) < kComesToSeconds;
    const bool speaks = rank <= 1 && !is_given_up;
    if (speaks) say(Leaving::kEndsOthers);
    on_loss(speaks ? fmt::format("{} (rank {} of the cluster) {}", peer.host, peer.rank, what) : "");
  }

  void read_beats(Peer& peer) {
    std::array<char, 4096> bytes{};
    const ssize_t got = ::recv(peer.fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      peer.has_left = true;
      lose(peer, "has died: its program ended, or its machine; see its own messages");
      return;
    }
    peer.input.insert(peer.input.end(), bytes.begin(), bytes.begin() + got);
    while (peer.input.size() >= sizeof(Beat)) {
      Beat beat;
      std::memcpy(&beat, peer.input.data(), sizeof beat);
      peer.input.erase(peer.input.begin(), peer.input.begin() + sizeof beat);
      peer.heard = Clock::now();
      const bool has_stepped = beat.steps != peer.last.steps;
      if (has_stepped || beat.signs != peer.last.signs || beat.state == State::kIdle) peer.moved = peer.heard;
      if (has_stepped || beat.state != State::kWorks) peer.got_on = peer.heard;
      peer.last = beat;
      if (beat.leaving != Leaving::kStays) peer.has_left = true;
      if (beat.leaving == Leaving::kEndsOthers && !leaves()) on_loss("");
    }
  }

  void judge(const Peer& peer) {
    if (peer.has_left) return;
    // Who does not say so leaves the word to rank 1: mpirun ends all as soon as one has gone.
    const double later = rank <= 1 ? 0 : 1;
    const double silence = seconds_since(peer.heard);
    if (silence > kSilenceSeconds + later) {
      lose(peer, fmt::format("has been silent for {:.0f} seconds: it was stopped, or cannot be reached any more",
                             kSilenceSeconds));
    } else if (silence < 3e-3 * kBeatMs && seconds_since(peer.moved) > kSilenceSeconds + later) {
      lose(peer, fmt::format("has stood still for {:.0f} seconds: its disk or network drive does not answer, or it is "
                             "being held",
                             kSilenceSeconds));
    } else if (seconds_since(peer.got_on) > kNoProgressSeconds + later) {
      lose(peer, fmt::format("has not got on with its work for {:.0f} seconds", kNoProgressSeconds));
    }
  }

  const Activity& activity;
  const std::function<void(const std::string&)> on_loss;
  const int rank;
  std::vector<Peer> peers;
  SignsOfLife signs;
  Clock::time_point came_to = Clock::now() - std::chrono::hours(1);
  std::atomic<Leaving> leaving{Leaving::kStays};
  std::thread thread;
};

Watchdog::Watchdog(Transport& transport, const Activity& activity, std::function<void(const std::string&)> on_loss)
    : impl_(std::make_unique<Impl>(transport, activity, std::move(on_loss))) {}
Watchdog::~Watchdog() = default;

void Watchdog::end_others_now() const {
  Beat beat;
  beat.leaving = Leaving::kEndsOthers;
  for (const Impl::Peer& peer : impl_->peers) (void)::send(peer.fd, &beat, sizeof beat, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void Watchdog::end_others() {
  impl_->end(Leaving::kEndsOthers);
}

}  // namespace foretoken
