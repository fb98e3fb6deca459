#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <optional>

#include "engine/cuda_backend.h"
#include "engine/device_cycle.h"
#include "kernels/cuda_runtime_wrap.h"
#include "tests/engine/gguf_edit.h"
#include "tests/engine/random_model.h"
#include "tests/mtp/transcript.h"
#ifdef FORETOKEN_CUDA_EMULATION
#include "kernels/cuda_emulation.h"
#endif

// Sessions on the device against those on the CPU: the ids, and every bit of the logits at every position. The same
// bodies run against the emulation and against a GPU.

namespace foretoken {
namespace {

using test::random_ids;
using test::RandomModel;
using test::TempFolder;
using test::transcribe;
using test::Transcript;

constexpr int kWhole = 1 << 20;  // prompt chunk: the whole prompt

RandomModel small_model(const std::string& architecture) {
  RandomModel spec;
  spec.architecture = architecture;
  spec.hidden_dim = 64;
  spec.head_dim = 32;
  spec.rope_dim = 16;
  spec.state_size = 32;
  spec.num_key_heads = 2;
  spec.num_value_heads = 4;
  spec.num_experts = 6;
  spec.expert_dim = 64;
  spec.shared_dim = 64;
  spec.types = {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kF16, WeightType::kQ5_1, WeightType::kMXFP4};
  return spec;
}

/// One model, and what the CPU says of one prompt.
class Model2 {
 public:
  Model2(const RandomModel& spec, int prompt_tokens, int new_tokens, KvType kv_type = KvType::kF16)
      : new_tokens_(new_tokens),
        kv_type_(kv_type),
        prompt_(random_ids(prompt_tokens, spec.vocab_size, spec.seed + 50)) {
    use_cuda_backend();
    spec.write(folder_.file("model.gguf"));
    model_.emplace(Model::load(folder_.file("model.gguf"), {}));
    for (const bool sampled : {false, true}) references_.push_back(run_logits(Device::kCpu, 0, kWhole, sampled));
  }

  SessionOptions session_options(Device device, int prompt_chunk) const {
    SessionOptions session;
    session.device = device;
    session.ctx_size = static_cast<int64_t>(prompt_.size()) + new_tokens_;
    session.kv_type = kv_type_;
    session.prompt_chunk = prompt_chunk;
    session.threads = 1;
    return session;
  }

  DecodeOptions decode_options(int k, bool sampled, bool forced = true) const {
    DecodeOptions options;
    options.max_new_tokens = new_tokens_;
    options.mtp = k;
    options.controller = false;
    options.ignore_eos = true;
    if (sampled) {
      options.sampling.temperature = 0.8f;
      options.sampling.seed = 7;
    }
    if (forced && k > 0) {
      options.forced_continuation = references_[sampled ? 1 : 0].result.ids;
      options.forced_acceptance = 0.7;
      options.forced_seed = static_cast<uint64_t>(k);
    }
    return options;
  }

  /// Call by call, every logit fetched.
  Transcript run_logits(Device device, int k, int prompt_chunk, bool sampled,
                        MoeVerify moe_verify = MoeVerify::kGrouped) {
    SessionOptions session = session_options(device, prompt_chunk);
    session.moe_verify = moe_verify;
    return transcribe(*model_, session, prompt_, decode_options(k, sampled));
  }

  void check_logits(int k, int prompt_chunk, bool sampled, MoeVerify moe_verify = MoeVerify::kGrouped) {
    const Transcript got = run_logits(Device::kCuda, k, prompt_chunk, sampled, moe_verify);
    const Transcript& want = references_[sampled ? 1 : 0];
    INFO("k " << k << " chunk " << prompt_chunk << (sampled ? " sampled" : " greedy"));
    CHECK(got.in_order);
    CHECK(got.first_difference(want) == -1);
    CHECK(got.result.ids == want.result.ids);
  }

  /// The device's own cycle.
  DecodeResult run_cycle(DecodeOptions options, int prompt_chunk = kWhole, Device device = Device::kCuda) {
    SessionOptions session_options_ = session_options(device, prompt_chunk);
    session_options_.with_mtp = options.mtp > 0;
    session_options_.max_window = options.mtp + 1;
    Session session(*model_, session_options_);
    CHECK((session.device_cycle() != nullptr) == (device == Device::kCuda));
    DecodeResult first = decode(session, prompt_, options);
    // Once more in the same session: now everything is replayed.
    const DecodeResult again = decode(session, prompt_, options);
    CHECK(first.ids == again.ids);
    return first;
  }

  const std::vector<TokenId>& reference(bool sampled) const { return references_[sampled ? 1 : 0].result.ids; }
  const Model& model() const { return *model_; }
  const std::vector<TokenId>& prompt() const { return prompt_; }

 private:
  TempFolder folder_;
  const int new_tokens_;
  const KvType kv_type_;
  const std::vector<TokenId> prompt_;
  std::optional<Model> model_;
  std::vector<Transcript> references_;  // greedy, sampled
};

TEST_CASE("device session: the logits of every position, call by call") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe", "qwen35");
  Model2 model(small_model(architecture), /*prompt_tokens=*/9, /*new_tokens=*/6);
  model.check_logits(0, kWhole, false);
  model.check_logits(0, 7, true);
  if (!model.model().has_mtp()) return;
  model.check_logits(1, 1, false);
  model.check_logits(2, 7, true);
}

TEST_CASE("device session: the device's own cycle gives the same text") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  Model2 model(small_model(architecture), /*prompt_tokens=*/9, /*new_tokens=*/12);
  for (const bool sampled : {false, true}) {
    CHECK(model.run_cycle(model.decode_options(0, sampled)).ids == model.reference(sampled));
  }
  if (!model.model().has_mtp()) return;
  int64_t accepted = 0, drafted = 0;
  for (const int k : {1, 2, 5, 8}) {
    const bool sampled = k % 2 == 0;
    INFO("k " << k);
    const DecodeResult got = model.run_cycle(model.decode_options(k, sampled), k == 2 ? 4 : kWhole);
    CHECK(got.ids == model.reference(sampled));
    accepted += got.statistics.accepted;
    drafted += got.statistics.drafted;
  }
  CHECK((accepted > drafted / 5 && accepted < drafted * 19 / 20));
}

}  // namespace
}  // namespace foretoken
