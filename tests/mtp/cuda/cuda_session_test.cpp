#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <optional>

#include "engine/cuda/cuda_backend.h"
#include "engine/device_cycle.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/transcript.h"
#ifdef FORETOKEN_CUDA_EMULATION
#include "kernels/cuda/emulation/cuda_emulation.h"
#endif

// Sessions on the device against those on the CPU: the ids, and every bit of the logits at every position. The same
// bodies run against the emulation and against a GPU.

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

/// One model and prompt, with what the CPU makes of them, greedy and with a seeded sample.
class Subject {
 public:
  Subject(const RandomModel& spec, int prompt_tokens, int new_tokens, KvType kv_type = KvType::kF16)
      : new_tokens_(new_tokens),
        kv_type_(kv_type),
        prompt_(random_ids(prompt_tokens, spec.vocab_size, spec.seed + 50)) {
    use_cuda_backend();
    spec.write(folder_.file("model.gguf"));
    model_.emplace(Model::load(folder_.file("model.gguf"), {}));
    for (const bool sampled : {false, true}) {
      references_.push_back(
          transcribe(*model_, session_options(Device::kCpu, kWhole), prompt_, decode_options(0, sampled)));
    }
  }

  [[nodiscard]] SessionOptions session_options(Device device, int prompt_chunk) const {
    SessionOptions options;
    options.device = device;
    options.ctx_size = static_cast<int64_t>(prompt_.size()) + new_tokens_;
    options.kv_type = kv_type_;
    options.prompt_chunk = prompt_chunk;
    options.threads = 1;
    return options;
  }

  [[nodiscard]] DecodeOptions decode_options(int k, bool sampled) const {
    return drafting_options(new_tokens_, k, sampled, references_);
  }

  /// Call by call, every logit fetched.
  void check_logits(int k, int prompt_chunk, bool sampled, MoeVerify moe_verify = MoeVerify::kGrouped) {
    SessionOptions session = session_options(Device::kCuda, prompt_chunk);
    session.moe_verify = moe_verify;
    const Transcript got = transcribe(*model_, session, prompt_, decode_options(k, sampled));
    INFO("k " << k << ", chunk " << prompt_chunk << (sampled ? ", sampled" : ", greedy"));
    CHECK(got.in_order);
    CHECK(got.first_difference(references_[sampled ? 1 : 0]) == -1);
    CHECK(got.result.ids == ids(sampled));
  }

  /// In cycles on the device. Twice in one session: the second time everything is replayed.
  DecodeStatistics check_cycle(const DecodeOptions& options, int prompt_chunk = kWhole) {
    SessionOptions on_device = session_options(Device::kCuda, prompt_chunk);
    on_device.with_mtp = options.mtp > 0;
    on_device.max_window = options.mtp + 1;
    Session session(*model_, on_device);
    REQUIRE(session.engine().device_cycle() != nullptr);
    const bool sampled = options.sampling.temperature > 0;
    INFO("k " << options.mtp << ", chunk " << prompt_chunk << (sampled ? ", sampled" : ", greedy"));
    const DecodeResult first = decode(session, prompt_, options), again = decode(session, prompt_, options);
    CHECK(first.ids == ids(sampled));
    CHECK(again.ids == ids(sampled));
    return again.statistics;
  }

  [[nodiscard]] const std::vector<TokenId>& ids(bool sampled) const { return references_[sampled ? 1 : 0].result.ids; }
  [[nodiscard]] const Model& model() const { return *model_; }
  [[nodiscard]] const std::vector<TokenId>& prompt() const { return prompt_; }

 private:
  TempFolder folder_;
  const int new_tokens_;
  const KvType kv_type_;
  const std::vector<TokenId> prompt_;
  std::optional<Model> model_;
  std::vector<Transcript> references_;  // greedy, sampled
};

TEST_CASE("device session: the logits of every position, call by call") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe", "qwen35", "qwen3next", "llama");
#ifdef FORETOKEN_CUDA_EMULATION
  const uint64_t threads_before = cuda::emulation::threads_run();
#endif
  Subject subject(small_model(architecture), /*prompt_tokens=*/9, /*new_tokens=*/6);
  subject.check_logits(0, kWhole, false);
  subject.check_logits(0, 7, true);
  if (subject.model().has_mtp()) {
    subject.check_logits(1, 1, false);
    subject.check_logits(3, 7, true, MoeVerify::kPerToken);
  }
#ifdef FORETOKEN_CUDA_EMULATION
  CHECK(cuda::emulation::threads_run() > threads_before + 100000);
#endif
}

TEST_CASE("device session: types, shapes and splits of every kind") {
  RandomModel spec = small_model("qwen35moe");
  KvType kv_type = KvType::kF16;
  int prompt_tokens = 14, new_tokens = 7;
  SECTION("rows of 256 values: K-quants") {
    spec.hidden_dim = spec.expert_dim = spec.shared_dim = 256;
    spec.types = {WeightType::kQ4_K, WeightType::kQ6_K,   WeightType::kQ5_K, WeightType::kIQ4_XS,
                  WeightType::kQ3_K, WeightType::kIQ4_NL, WeightType::kQ2_K};
  }
  SECTION("odd shapes, 32-bit keys and values") {
    spec.take_odd_shapes();
    kv_type = KvType::kF32;
  }
  SECTION("tied head, fused gate and up, one type") {
    spec.tied_head = true;
    spec.fused_gate_up = true;
    spec.types = {WeightType::kBF16};
  }
  SECTION("biases, one tensor for queries, keys and values") {
    spec.attention_bias = spec.fused_qkv = true;
  }
  SECTION("NVFP4, Q2_0 and a float type, with scales") {
    spec.types = {WeightType::kNVFP4, WeightType::kQ2_0, WeightType::kNVFP4, WeightType::kBF16};
    spec.scales = true;
  }
  SECTION("tied head, fused gate and up, with scales") {
    spec.tied_head = spec.fused_gate_up = spec.scales = true;
  }
  SECTION("delta nets by key head, fused") {
    spec.architecture = "qwen3next";
    spec.fused_inputs = true;
  }
  SECTION("a context that crosses an attention split") {
    spec.num_heads = spec.num_kv_heads = 2;
    prompt_tokens = kAttentionSplit - 2;
    new_tokens = 4;
  }
  Subject subject(spec, prompt_tokens, new_tokens, kv_type);
  subject.check_logits(2, kWhole, false);
  static_cast<void>(subject.check_cycle(subject.decode_options(2, true)));
}

TEST_CASE("device session: cycles on the device give the same text") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  Subject subject(small_model(architecture), /*prompt_tokens=*/9, /*new_tokens=*/12);
  for (const bool sampled : {false, true})
    static_cast<void>(subject.check_cycle(subject.decode_options(0, sampled), sampled ? 1 : kWhole));
  if (!subject.model().has_mtp()) return;
  int64_t accepted = 0, drafted = 0;
  for (const int k : {1, 2, 5, 8}) {
    const DecodeStatistics s = subject.check_cycle(subject.decode_options(k, k % 2 == 0), k == 2 ? 4 : kWhole);
    accepted += s.accepted;
    drafted += s.drafted;
  }
  CHECK((accepted > drafted / 5 && accepted < drafted * 19 / 20));
}

TEST_CASE("device session: filters of the sampler take the host's path, with the same text") {
  Subject subject(small_model("qwen35moe"), /*prompt_tokens=*/5, /*new_tokens=*/6);
  DecodeOptions options = subject.decode_options(2, true);
  options.sampling.top_k = 20;
  options.sampling.top_p = 0.9f;
  CHECK_FALSE(DeviceCycle::supports(options.sampling));
  std::vector<std::vector<TokenId>> ids;
  for (const Device device : {Device::kCpu, Device::kCuda}) {
    SessionOptions session = subject.session_options(device, kWhole);
    session.with_mtp = true;
    session.max_window = 3;
    Session s(subject.model(), session);
    ids.push_back(decode(s, subject.prompt(), options).ids);
  }
  CHECK(ids[0] == ids[1]);
}

TEST_CASE("device session: the controller and the MTP layer's own drafts") {
  Subject subject(small_model("qwen35moe"), /*prompt_tokens=*/4, /*new_tokens=*/30);
  DecodeOptions options = subject.decode_options(4, false);
  options.controller = true;
  options.forced_continuation = {};
  options.draft_vocab = 40;
  // It rests, probes, and catches up.
  const DecodeStatistics s = subject.check_cycle(options);
  CHECK(s.windows_by_k[0] > 0);
  CHECK(s.drafted > 0);
}

// Windows of all widths one after the other, so that drafting rests and begins again at every distance; with little
// room for tokens that wait.
TEST_CASE("device session: drafting rests and begins again") {
  const int prompt_chunk = GENERATE(1, 6);
  Subject subject(small_model("qwen35moe"), /*prompt_tokens=*/6, /*new_tokens=*/24);
  SessionOptions options = subject.session_options(Device::kCuda, prompt_chunk);
  options.with_mtp = true;
  options.max_window = 4;
  Session device(subject.model(), options);
  const std::vector<TokenId>& known = subject.ids(false);
  for (int round = 0; round < 2; ++round) {
    device.reset();
    const std::vector<float> zeros(static_cast<size_t>(subject.model().config().hidden_dim), 0.0f);
    std::vector<float> previous = zeros;
    for (size_t begin = 0; begin < subject.prompt().size(); begin += static_cast<size_t>(prompt_chunk)) {
      const auto ids = std::span(subject.prompt()).subspan(begin, static_cast<size_t>(prompt_chunk));
      device.forward(ids);
      device.commit(static_cast<int>(ids.size()));
      std::vector<const float*> hidden{previous.data()};
      for (size_t r = 0; r + 1 < ids.size(); ++r) hidden.push_back(device.hidden(static_cast<int>(r)));
      device.mtp_forward(ids, static_cast<int64_t>(begin), hidden, static_cast<int>(ids.size()) - 1);
      const float* last = device.hidden(static_cast<int>(ids.size()) - 1);
      previous.assign(last, last + zeros.size());
    }
    DeviceCycle& cycle = *device.engine().device_cycle();
    cycle.begin(device.sequence().state_for_device(), {}, known[0], prompt_chunk - 1);
    SequenceState& sequence = device.sequence().state_for_device();
    CHECK(cycle.first_confidence(sequence) < 0);
    std::vector<TokenId> got{known[0]};
    for (const int k : {0, 0, 2, 1, 0, 3, 3, 0, 0, 0, 0, 0, 2}) {
      if (got.size() + static_cast<size_t>(k) + 1 >= known.size()) break;
      std::vector<TokenId> forced(known.begin() + static_cast<int64_t>(got.size()),
                                  known.begin() + static_cast<int64_t>(got.size()) + k);
      const size_t wrong = got.size() % 4;  // of the drafts, the first that is wrong
      if (wrong < forced.size()) forced[wrong] = (forced[wrong] + 1) % 200;
      const DeviceCycle::Window window{&sequence, got.back(), k, forced};
      const DeviceCycle::Verified& outcome = cycle.run({&window, 1}).windows[0];
      CHECK(outcome.num_accepted == static_cast<int>(std::min(wrong, forced.size())));
      CHECK(outcome.confidences.size() == static_cast<size_t>(k));
      for (const float c : outcome.confidences) CHECK((c > 0 && c <= 1.0001f));
      CHECK((cycle.first_confidence(sequence) > 0) == (k > 0));
      got.insert(got.end(), outcome.choices.begin(), outcome.choices.begin() + outcome.num_accepted + 1);
    }
    REQUIRE(got.size() > 12);
    CHECK(std::equal(got.begin(), got.end(), known.begin()));
  }
}

TEST_CASE("device session: draft logits of chosen groups, chained and over many rows") {
  RandomModel spec = small_model("qwen35moe");
  spec.vocab_size = 331;  // the last group of 16 is not whole
  Subject subject(spec, /*prompt_tokens=*/8, /*new_tokens=*/8);
  const std::vector<TokenId>& ids = subject.prompt();
  std::vector<std::vector<float>> logits;
  for (const Device device : {Device::kCpu, Device::kCuda}) {
    SessionOptions options = subject.session_options(device, 8);
    options.with_mtp = true;
    Session session(subject.model(), options);
    std::vector<float> all;
    const auto keep = [&](const float* row) { all.insert(all.end(), row, row + spec.vocab_size); };
    session.forward(ids);
    session.commit(8);
    const std::vector<float> zeros(static_cast<size_t>(spec.hidden_dim), 0.0f);
    std::vector<const float*> hidden{zeros.data()};
    for (int r = 0; r < 7; ++r) hidden.push_back(session.hidden(r));
    for (const int first_output : {0, 7}) {
      session.mtp_forward(ids, 0, hidden, first_output);
      session.mtp_compute_logits(first_output, 8);
      for (int r = first_output; r < 8; ++r) keep(session.mtp_logits(r));
      session.set_draft_groups(std::vector<int32_t>{1, 4, 5});
    }
    for (int step = 0; step < 3; ++step) {
      if (step > 0) session.add_draft_group(step == 1 ? 20 : 2);
      const float* last = session.mtp_hidden(step == 0 ? 7 : 0);
      session.mtp_forward(std::span(ids).subspan(step, 1), 8 + step, std::span(&last, 1));
      session.mtp_compute_logits(0, 1);
      keep(session.mtp_logits(0));
    }
    logits.push_back(all);
  }
  REQUIRE(logits[0].size() == logits[1].size());
  CHECK(std::memcmp(logits[0].data(), logits[1].data(), logits[0].size() * sizeof(float)) == 0);
}

TEST_CASE("device session: the draft head is recorded again as its groups grow") {
  RandomModel spec = small_model("qwen35moe");
  spec.vocab_size = 1500;
  Subject subject(spec, /*prompt_tokens=*/6, /*new_tokens=*/40);
  DecodeOptions options = subject.decode_options(2, /*sampled=*/true);
  options.draft_vocab = 1;
  static_cast<void>(subject.check_cycle(options));
}

#ifdef FORETOKEN_CUDA_EMULATION
TEST_CASE("device session: the draft head has blocks for the groups that there are") {
  RandomModel spec = small_model("qwen35moe");
  spec.vocab_size = 4096;
  Subject subject(spec, /*prompt_tokens=*/2, /*new_tokens=*/2);
  SessionOptions options = subject.session_options(Device::kCuda, 2);
  options.with_mtp = true;
  Session session(subject.model(), options);
  session.forward(subject.prompt());
  session.commit(2);
  const float* hidden = session.hidden(0);
  session.mtp_forward(std::span(subject.prompt()).first(1), 0, std::span(&hidden, 1));
  const auto threads_of_head = [&](const std::vector<int32_t>& groups) {
    session.set_draft_groups(groups);
    const uint64_t before = cuda::emulation::threads_run();
    session.mtp_compute_logits(0, 1);
    (void)session.mtp_logits(0);
    return cuda::emulation::threads_run() - before;
  };
  std::vector<int32_t> all(256);
  std::iota(all.begin(), all.end(), 0);
  static_cast<void>(threads_of_head(all));  // what was put into the queue before runs too
  const uint64_t whole = threads_of_head(all);
  CHECK(16 * threads_of_head({1, 4, 255}) == whole);
  CHECK(threads_of_head(all) == whole);
}

TEST_CASE("device session: too little memory and a lost device are one clear line each") {
  Subject subject(small_model("qwen35moe"), /*prompt_tokens=*/4, /*new_tokens=*/4);
  const auto message = [&](const SessionOptions& options) -> std::string {
    try {
      Session session(subject.model(), options);
      static_cast<void>(decode(session, subject.prompt(), subject.decode_options(0, false)));
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  SessionOptions options = subject.session_options(Device::kCuda, 16);
  options.ctx_size = 4000;
  CHECK(message(options).empty());
  // Half a MiB too little; keys and values take one, and 256 are kept for CUDA.
  const size_t needed = Session(subject.model(), options).memory().total() + (size_t{256} << 20);
  cuda::emulation::inject({needed - (size_t{512} << 10), std::nullopt});
  CHECK_THAT(message(options), Catch::Contains("context of 4000 positions needs") && Catch::Contains("--ctx-size"));
  cuda::emulation::inject({size_t{200} << 20, std::nullopt});
  CHECK_THAT(message(options), Catch::Contains("no context fits") && Catch::Contains("--device split"));
  cuda::emulation::inject({std::nullopt, 6});
  const std::string lost = message(options);
  CHECK_THAT(lost, Catch::Contains("CUDA: waiting for the device"));
  CHECK(lost.find('\n') == std::string::npos);
  cuda::emulation::inject({});
  CHECK(message(options).empty());
}
#endif

}  // namespace
}  // namespace foretoken
