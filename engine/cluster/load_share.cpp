#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>

#include "engine/cluster/protocol.h"
#include "engine/machine.h"
#include "engine/model/model_file.h"
#include "kernels/base/error.h"
#include "kernels/base/isa.h"
#include "kernels/threads/thread_team.h"

namespace foretoken {

namespace {

// Machines whose bandwidths differ by less share equally: what is measured differs from run to run.
constexpr double kSameSpeed = 1.1;
constexpr double kMeasureSeconds = 0.3;

/// What a process says of itself before anything is loaded.
struct MeetRecord {
  StartRecord start;
  char version[128] = {};
  int32_t isa = 0;
  char fingerprint[65] = {};
  double bandwidth = 0;
};

template <size_t kSize>
void copy_text(char (&to)[kSize], const std::string& text) {
  const size_t count = std::min(text.size(), kSize - 1);
  std::memcpy(to, text.data(), count);
  to[count] = '\0';
}

std::string name_of(const StartRecord& record, size_t rank) {
  return fmt::format("{} (rank {} of the cluster)", record.host, rank);
}

// What speaks against these processes running together: of the first that is not as rank 0.
std::optional<std::string> find_difference(const std::vector<MeetRecord>& records) {
  const MeetRecord& root = records[0];
  for (size_t rank = 0; rank < records.size(); ++rank) {
    const MeetRecord& r = records[rank];
    const std::string who = name_of(r.start, rank);
    if (std::strcmp(r.version, root.version) != 0) {
      return fmt::format("{}: runs {}, and {} runs {}; install the same build on all hosts", who, r.version,
                         root.start.host, root.version);
    }
    if (r.start.failed) return fmt::format("{}: {}", who, r.start.message);
    if (r.isa != root.isa) {
      return fmt::format(
          "{}: computes with {}, and {} with {}; set FORETOKEN_ISA={} on all hosts (mpirun -x FORETOKEN_ISA)", who,
          isa_name(static_cast<Isa>(r.isa)), root.start.host, isa_name(static_cast<Isa>(root.isa)),
          isa_name(static_cast<Isa>(std::min(r.isa, root.isa))));
    }
    if (std::strcmp(r.fingerprint, root.fingerprint) != 0) {
      return fmt::format("{}: its model is another one, {} and not {} as on {}; copy the same file to all hosts", who,
                         std::string(r.fingerprint).substr(0, 12), std::string(root.fingerprint).substr(0, 12),
                         root.start.host);
    }
  }
  return std::nullopt;
}

std::vector<double> shares_by(const std::vector<MeetRecord>& records) {
  std::vector<double> shares;
  for (const MeetRecord& record : records) shares.push_back(record.bandwidth);
  const auto [least, most] = std::minmax_element(shares.begin(), shares.end());
  if (*most <= kSameSpeed * *least) std::fill(shares.begin(), shares.end(), 1.0);
  return shares;
}

// All ranks say how a stage went; throws on all of them if it went wrong on one. `own`: this rank's exception.
void agree(Transport& transport, const std::exception_ptr& own) {
  std::vector<StartRecord> records(static_cast<size_t>(transport.num_ranks()));
  StartRecord& mine = records[transport.rank()] = start_record();
  if (own) {
    try {
      std::rethrow_exception(own);
    } catch (const std::exception& error) {
      set_failure(mine, error.what());
    }
  }
  gather_records(transport, records);
  if (own) std::rethrow_exception(own);
  for (size_t rank = 0; rank < records.size(); ++rank) {
    if (records[rank].failed)
      throw InputError(fmt::format("{}: {}", name_of(records[rank], rank), records[rank].message));
  }
}

}  // namespace

std::string host_name() {
  char name[64] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "a host without a name";
  return name;
}

StartRecord start_record() {
  StartRecord record;
  copy_text(record.host, host_name());
  return record;
}

void set_failure(StartRecord& record, const std::string& message) {
  record.failed = true;
  copy_text(record.message, message);
}

Model load_share(Transport& transport, const ClusterMember& member, const std::string& path, LoadOptions options,
                 const ClusterOptions& how, std::vector<std::string>& hosts, std::vector<double>& bandwidths) {
  std::vector<MeetRecord> records(static_cast<size_t>(transport.num_ranks()));
  MeetRecord& mine = records[transport.rank()];
  mine.start = start_record();
  copy_text(mine.version, member.version);
  mine.isa = static_cast<int32_t>(member.isa);
  try {
    copy_text(mine.fingerprint, open_model(path, options.mtp_path).file.fingerprint());
    if (how.shares.empty()) {
      ThreadTeam team(member.threads == 0 ? available_cores() : member.threads, member.nodes);
      mine.bandwidth = measure_read_bandwidth(team, 0, kMeasureSeconds);
    }
  } catch (const std::exception& error) {
    set_failure(mine.start, error.what());
  }
  gather_records(transport, records);
  if (const std::optional<std::string> difference = find_difference(records)) throw InputError(*difference);
  hosts.clear();
  bandwidths.clear();
  for (const MeetRecord& record : records) {
    hosts.emplace_back(record.start.host);
    bandwidths.push_back(record.bandwidth);
  }

  options.share = ShareRequest{how.mode, how.shares.empty() ? shares_by(records) : how.shares, transport.rank()};
  const std::function<void(const Model&)> on_header = options.on_header;
  bool has_agreed = false, may_load = false;
  options.on_header = [&](const Model& header) {
    std::exception_ptr own;
    try {
      if (on_header) on_header(header);
    } catch (...) {
      own = std::current_exception();
    }
    has_agreed = true;
    agree(transport, own);
    may_load = true;
  };
  std::optional<Model> model;
  std::exception_ptr own;
  try {
    model.emplace(Model::load(path, options));
  } catch (...) {
    own = std::current_exception();
  }
  if (!has_agreed) agree(transport, own);  // it did not get as far as the header's end
  if (!may_load) std::rethrow_exception(own);
  agree(transport, own);
  return *std::move(model);
}

}  // namespace foretoken
