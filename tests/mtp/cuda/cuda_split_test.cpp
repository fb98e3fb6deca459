#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <optional>

#include "engine/cuda/cuda_backend.h"
#include "engine/device_cycle.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/transcript.h"
#ifdef FORETOKEN_CUDA_EMULATION
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/emulation/cuda_emulation.h"
#endif

// Sessions whose routed experts are split between device and host give the bits of the CPU, wherever an expert lies and
// however often that changes.

namespace foretoken {
namespace {

using test::drafting_options;
using test::random_ids;
using test::RandomModel;
using test::small_model;
using test::TempFolder;
using test::transcribe;
using test::Transcript;

constexpr int kWhole = 1 << 20;  // prompt chunk: the whole prompt
constexpr int kExperts = 6;      // of small_model

struct Case {
  std::vector<int> experts;  // by layer, two of them
  int slots = 0;
  int k = 0;
  int prompt_chunk = kWhole;
  MoeVerify moe_verify = MoeVerify::kGrouped;
  bool sampled = false;
  int threads = 1;
  int fetched = SplitOptions::kMeasured;
};

class SplitModel {
 public:
  SplitModel(const RandomModel& spec, int prompt_tokens, int new_tokens, bool repack = true)
      : new_tokens_(new_tokens), prompt_(random_ids(prompt_tokens, spec.vocab_size, spec.seed + 50)) {
    use_cuda_backend();
    spec.write(folder_.file("model.gguf"));
    LoadOptions options;
    options.repack = repack;
    model_.emplace(Model::load(folder_.file("model.gguf"), options));
    for (const bool sampled : {false, true}) {
      Case cpu;
      cpu.sampled = sampled;
      references_.push_back(transcribe(*model_, session_options(cpu, Device::kCpu), prompt_, decode_options(cpu)));
    }
  }

  SessionOptions session_options(const Case& at, Device device = Device::kSplit) const {
    SessionOptions session;
    session.device = device;
    session.split = {at.experts, at.slots, at.fetched};
    session.ctx_size = static_cast<int64_t>(prompt_.size()) + new_tokens_;
    session.prompt_chunk = at.prompt_chunk;
    session.moe_verify = at.moe_verify;
    session.threads = at.threads;
    return session;
  }

  DecodeOptions decode_options(const Case& at) const {
    return drafting_options(new_tokens_, at.k, at.sampled, references_);
  }

  /// Every bit of every logit, call by call.
  void check_logits(const Case& at) {
    const Transcript got = transcribe(*model_, session_options(at), prompt_, decode_options(at));
    const Transcript& want = references_[at.sampled ? 1 : 0];
    INFO("experts " << at.experts[0] << " " << at.experts[1] << " slots " << at.slots << " k " << at.k << " chunk "
                    << at.prompt_chunk << " threads " << at.threads);
    CHECK(got.in_order);
    CHECK(got.first_difference(want) == -1);
    CHECK(got.result.ids == want.result.ids);
  }

  /// The device's own cycle, three times over in one session: launched, recorded, replayed. Returns where the experts
  /// were read.
  ReadsByPlace check_cycle(const Case& at) {
    SessionOptions options = session_options(at);
    options.with_mtp = at.k > 0;
    options.max_window = at.k + 1;
    Session session(*model_, options);
    REQUIRE(session.engine().device_cycle() != nullptr);
    INFO("experts " << at.experts[0] << " " << at.experts[1] << " slots " << at.slots << " k " << at.k);
    for (int i = 0; i < 3; ++i) {
      const DecodeResult got = decode(session, prompt_, decode_options(at));
      CHECK(got.ids == references_[at.sampled ? 1 : 0].result.ids);
    }
    return session.engine().reads_by_place();
  }

  const Model& model() const { return *model_; }
  const std::vector<TokenId>& prompt() const { return prompt_; }

 private:
  TempFolder folder_;
  const int new_tokens_;
  const std::vector<TokenId> prompt_;
  std::optional<Model> model_;
  std::vector<Transcript> references_;  // greedy, sampled
};

TEST_CASE("split: none, some and all experts on the device give the bits of the CPU") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  SplitModel model(small_model(architecture), /*prompt_tokens=*/9, /*new_tokens=*/6);
  const int k = model.model().has_mtp() ? 3 : 0;
  model.check_logits({{0, 0}, 0, 0, kWhole});
  model.check_logits({{0, 0}, 0, k, 4, MoeVerify::kGrouped, true, 2});
  model.check_logits({{2, 4}, 0, k, kWhole, MoeVerify::kGrouped, true});
  model.check_logits({{kExperts, 0}, 0, 0, 4, MoeVerify::kPerToken});
  model.check_logits({{0, kExperts}, 0, k, 1, MoeVerify::kPerToken, true});
  model.check_logits({{kExperts, kExperts}, 0, k, 7});
}

TEST_CASE("split: hot experts change nothing but who computes") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  RandomModel spec = small_model(architecture);
  spec.scales = true;  // an expert's travel with it
  SplitModel model(spec, /*prompt_tokens=*/9, /*new_tokens=*/6);
  const int k = model.model().has_mtp() ? 3 : 0;
  for (const int slots : {1, 3, kExperts}) {
    model.check_logits({{0, 2}, slots, k, 4});
    model.check_logits({{kExperts, 1}, slots, 0, 1, MoeVerify::kPerToken, true, 2});
  }
}

TEST_CASE("split: the device's own cycle") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  SplitModel model(small_model(architecture), /*prompt_tokens=*/9, /*new_tokens=*/12);
  const int k = model.model().has_mtp() ? 3 : 0;
  const ReadsByPlace none = model.check_cycle({{0, 0}, 0, k});
  CHECK(none.placed + none.hot == 0);
  CHECK(none.host > 0);
  const ReadsByPlace some = model.check_cycle({{3, 0}, 2, k});
  CHECK(some.placed > 0);
  CHECK(some.hot > 0);
  CHECK(some.host > 0);
  // Slots for all: the experts settle there.
  const ReadsByPlace hot = model.check_cycle({{0, 0}, kExperts, 0});
  CHECK(hot.placed == 0);
  CHECK(hot.hit_rate() > 0.3);
  const ReadsByPlace all = model.check_cycle({{kExperts, kExperts}, 0, k});
  CHECK(all.total() == 0);  // nothing is split
}

TEST_CASE("split: experts that the device fetches itself change nothing but who computes") {
  RandomModel spec = small_model(GENERATE("qwen35moe", "qwen3moe"));
  bool repack = true;
  SECTION("interleaved") {}
  SECTION("file layout") {
    repack = false;
  }
  SECTION("fused gate and up, rows of 256 values") {
    spec.fused_gate_up = spec.architecture == "qwen35moe";
    spec.hidden_dim = spec.expert_dim = 256;
    if (spec.shared_dim > 0) spec.shared_dim = 256;
    spec.types = {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kIQ4_XS};
  }
  SplitModel model(spec, /*prompt_tokens=*/9, /*new_tokens=*/6, repack);
  const int k = model.model().has_mtp() ? 3 : 0;
  for (const int fetched : {1, 3, 8}) {
    const auto at = [&](std::vector<int> experts, int slots, int drafts, int chunk, MoeVerify verify) {
      return Case{std::move(experts), slots, drafts, chunk, verify, false, 1, fetched};
    };
    model.check_logits(at({0, 2}, 3, k, 4, MoeVerify::kGrouped));
    model.check_logits(at({1, 0}, kExperts, 0, 1, MoeVerify::kPerToken));
    const ReadsByPlace reads = model.check_cycle(at({0, 2}, 2, k, kWhole, MoeVerify::kGrouped));
    CHECK(reads.fetched > 0);
    CHECK(reads.hot > 0);
    CHECK(reads.host > 0);
  }
  // Room for all, and one comes at a time: in the end they are there.
  const ReadsByPlace all = model.check_cycle({{0, 0}, kExperts, 0, kWhole, MoeVerify::kGrouped, false, 1, 1});
  CHECK(all.hit_rate() > 0.5);
  CHECK(all.fetched <= 2 * kExperts);
}

TEST_CASE("split: where launches block, nothing is recorded that would wait for the host") {
  struct Blocking {
    Blocking() { setenv("CUDA_LAUNCH_BLOCKING", "1", 1); }
    ~Blocking() { unsetenv("CUDA_LAUNCH_BLOCKING"); }
  } const blocking;
  SplitModel model(small_model("qwen35moe"), /*prompt_tokens=*/5, /*new_tokens=*/6);
  model.check_cycle({{3, 0}, 2, 2});
}

#ifdef FORETOKEN_CUDA_EMULATION
TEST_CASE("split: a hundred orders of streams and threads, with hot experts under way") {
  struct Guard {
    ~Guard() {
      cuda::emulation::set_stream_order(std::nullopt);
      cuda::emulation::set_preemption(0, 0);
      cuda::emulation::set_order(cuda::emulation::Order::kForward);
    }
  } const guard;
  SplitModel model(small_model("qwen35moe"), /*prompt_tokens=*/5, /*new_tokens=*/3);
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    cuda::emulation::set_stream_order(seed);
    cuda::emulation::set_preemption(seed, 500);
    cuda::emulation::set_order(cuda::emulation::Order::kShuffled, seed);
    INFO("seed " << seed);
    const int k = static_cast<int>(seed % 4);
    const int fetched = static_cast<int>(seed / 4 % 3);  // 0: the thread brings them
    if (seed % 5 == 0) {
      model.check_cycle({{1, 2}, 2, k, kWhole, MoeVerify::kGrouped, false, 1, fetched});
    } else {
      model.check_logits({{static_cast<int>(seed % 3), 2},
                          2,
                          k,
                          seed % 2 == 0 ? 3 : kWhole,
                          MoeVerify::kGrouped,
                          seed % 7 == 0,
                          1,
                          fetched});
    }
  }
}
#endif

TEST_CASE("split: fused gate and up, file layout, gate and up of two types") {
  RandomModel spec = small_model("qwen35moe");
  bool repack = true;
  SECTION("fused") {
    spec.fused_gate_up = true;
  }
  SECTION("file layout") {
    repack = false;
  }
  SECTION("rows of 256 values") {
    spec.hidden_dim = spec.expert_dim = spec.shared_dim = 256;
    spec.types = {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kQ5_K};
  }
  SplitModel model(spec, /*prompt_tokens=*/6, /*new_tokens=*/4, repack);
  model.check_logits({{0, 3}, 2, 2, 4});
  model.check_cycle({{2, 0}, 3, 2});
}

TEST_CASE("split: a dense model is whole on the device") {
  SplitModel model(small_model("qwen35"), /*prompt_tokens=*/6, /*new_tokens=*/4);
  model.check_logits({{0, 0}, 0, 2, 4});
}

#ifdef FORETOKEN_CUDA_EMULATION

struct FaultGuard {
  ~FaultGuard() { cuda::emulation::inject({}); }
};

template <class Body>
std::string failure(Body&& body) {
  try {
    body();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("A device without the memory refuses a session in one line") {
  FaultGuard guard;
  SplitModel model(small_model("qwen35moe"), /*prompt_tokens=*/6, /*new_tokens=*/4);
  cuda::emulation::Faults faults;
  faults.memory_bytes = 1 << 20;
  cuda::emulation::inject(faults);
  for (const Device device : {Device::kCuda, Device::kSplit}) {
    const std::string text = failure([&] { Session(model.model(), model.session_options({{3, 0}, 1}, device)); });
    INFO(text);
    CHECK(text.find("are free") != std::string::npos);
    CHECK(text.find('\n') == std::string::npos);
  }
}

TEST_CASE("A device that is lost in the middle of a run ends it with one line") {
  FaultGuard guard;
  SplitModel model(small_model("qwen35moe"), /*prompt_tokens=*/6, /*new_tokens=*/12);
  for (const Device device : {Device::kCuda, Device::kSplit}) {
    std::vector<int> all_waits{1, 12};
    // A split waits more often. Late ones come when the trunk is a recording, whose kernels wait for a host that has failed.
    if (device == Device::kSplit) all_waits.insert(all_waits.end(), {30, 31, 32});
    for (const int waits : all_waits) {
      SessionOptions options = model.session_options({{3, 0}, 2}, device);
      Session session(model.model(), options);
      cuda::emulation::Faults faults;
      faults.waits_until_lost = waits;
      cuda::emulation::inject(faults);
      const std::string text =
          failure([&] { static_cast<void>(decode(session, model.prompt(), model.decode_options({}))); });
      cuda::emulation::inject({});
      INFO(text);
      CHECK(text.find("the device is lost") != std::string::npos);
      CHECK(text.find('\n') == std::string::npos);
    }
  }
}

#endif

}  // namespace
}  // namespace foretoken
