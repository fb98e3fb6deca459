#include <map>
#include <optional>

#include "engine/cluster/protocol.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

class Follower {
 public:
  Follower(Transport& transport, const ClusterMember& member, const std::function<void()>& progress)
      : transport_(transport), member_(member), progress_(progress) {}

  void run() {
    for (;;) {
      message_.broadcast(transport_);
      if (progress_) progress_();
      const auto command = message_.take<ClusterCommand>();
      switch (command) {
        case ClusterCommand::kEnd:
          return;
        case ClusterCommand::kLoad:
          load();
          break;
        case ClusterCommand::kMakeEngine:
          make_engine();
          break;
        case ClusterCommand::kDropEngine:
          engines_.erase(message_.take<int>());
          break;
        default:
          engines_.at(message_.take<int>())->obey(command, message_);
      }
    }
  }

 private:
  // What goes wrong here is rank 0's to report: all ranks have agreed on it.
  void load() {
    const std::string path = message_.take_text();
    LoadOptions options;
    options.mtp_path = message_.take_text();
    options.repack = message_.take<bool>();
    options.nodes = member_.nodes;
    if (progress_) options.progress = [this](size_t, size_t) { progress_(); };
    ClusterOptions how;
    how.mode = message_.take<ClusterMode>();
    message_.take_all(how.shares);
    FT_CHECK(engines_.empty());
    model_.reset();
    std::vector<std::string> hosts;
    std::vector<double> bandwidths;
    try {
      model_.emplace(load_share(transport_, member_, path, options, how, hosts, bandwidths));
    } catch (const std::exception&) {
    }
  }

  void make_engine() {
    const int number = message_.take<int>();
    SessionOptions options;
    options.ctx_size = message_.take<int64_t>();
    options.kv_type = message_.take<KvType>();
    options.prompt_chunk = message_.take<int>();
    options.max_window = message_.take<int>();
    options.parallel = message_.take<int>();
    options.kv_memory_bytes = message_.take<size_t>();
    options.with_mtp = message_.take<bool>();
    options.moe_verify = message_.take<MoeVerify>();
    options.isa = message_.take<Isa>();
    options.threads = member_.threads == 0 ? available_cores() : member_.threads;
    options.nodes = member_.nodes;
    std::vector<StartRecord> records(static_cast<size_t>(transport_.num_ranks()));
    StartRecord& mine = records[transport_.rank()] = start_record();
    std::unique_ptr<EngineShare> engine;
    try {
      engine = std::make_unique<EngineShare>(*model_, options, transport_);
      mine.num_pages = engine->backend().num_pages();
    } catch (const std::exception& error) {
      set_failure(mine, error.what());
    }
    gather_records(transport_, records);
    for (const StartRecord& record : records) {
      if (record.failed) return;
    }
    engines_.emplace(number, std::move(engine));
  }

  Transport& transport_;
  const ClusterMember& member_;
  const std::function<void()>& progress_;
  Message message_;
  std::optional<Model> model_;
  std::map<int, std::unique_ptr<EngineShare>> engines_;
};

}  // namespace

void follow(Transport& transport, const ClusterMember& member, const std::function<void()>& progress) {
  Follower(transport, member, progress).run();
}

}  // namespace foretoken
