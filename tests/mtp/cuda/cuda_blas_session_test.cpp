#include <catch2/catch.hpp>
#include <cmath>

#include "engine/cuda/cuda_backend.h"
#include "engine/device_cycle.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/transcript.h"

// Sessions whose F16 and BF16 matrices cuBLAS computes: not the CPU's bits, but the same text and logits whatever the
// number of drafts, the prompt's chunks and the place of the experts.

namespace foretoken {
namespace {

using test::drafting_options;
using test::random_ids;
using test::RandomModel;
using test::TempFolder;
using test::transcribe;
using test::Transcript;

constexpr int kWhole = 1 << 20;                    // prompt chunk: the whole prompt
constexpr int kPromptTokens = 35, kNewTokens = 8;  // a prompt of two groups of rows

RandomModel float_model(const std::string& architecture) {
  RandomModel spec = test::small_model(architecture);
  spec.shared_dim = 96;
  spec.types = {WeightType::kF16, WeightType::kF16, WeightType::kBF16, WeightType::kQ8_0, WeightType::kF32};
  return spec;
}

struct Case {
  int k = 0;
  int prompt_chunk = kWhole;
  bool sampled = false;
  Device device = Device::kCuda;
  bool cublas = true;
};

class Subject {
 public:
  explicit Subject(const RandomModel& spec) : prompt_(random_ids(kPromptTokens, spec.vocab_size, spec.seed + 50)) {
    use_cuda_backend();
    spec.write(folder_.file("model.gguf"));
    models_.push_back(Model::load(folder_.file("model.gguf"), {}));
    for (const bool sampled : {false, true}) {
      Case plain;
      plain.sampled = sampled;
      references_.push_back(run(plain));
    }
  }

  [[nodiscard]] Transcript run(const Case& at) const {
    return transcribe(model(), session_options(at), prompt_, decode_options(at));
  }

  void check(const Case& at) const {
    const Transcript got = run(at);
    INFO("k " << at.k << ", chunk " << at.prompt_chunk << (at.sampled ? ", sampled" : ", greedy")
              << (at.device == Device::kSplit ? ", split" : ""));
    CHECK(got.in_order);
    CHECK(got.first_difference(reference(at.sampled)) == -1);
    CHECK(got.result.ids == reference(at.sampled).result.ids);
  }

  /// Cycles on the device, twice: the second time everything is replayed.
  void check_cycle(const Case& at) const {
    SessionOptions options = session_options(at);
    options.with_mtp = at.k > 0;
    options.max_window = at.k + 1;
    Session session(model(), options);
    REQUIRE(session.engine().device_cycle() != nullptr);
    INFO("k " << at.k << (at.sampled ? ", sampled" : ", greedy"));
    for (int i = 0; i < 2; ++i)
      CHECK(decode(session, prompt_, decode_options(at)).ids == reference(at.sampled).result.ids);
  }

  [[nodiscard]] SessionOptions session_options(const Case& at) const {
    SessionOptions options;
    options.device = at.device;
    options.cublas = at.cublas;
    options.ctx_size = kPromptTokens + kNewTokens;
    options.prompt_chunk = at.prompt_chunk;
    options.threads = 1;
    options.split = {{3, 0}, 2};
    return options;
  }

  [[nodiscard]] const Model& model() const { return models_[0]; }
  [[nodiscard]] const Transcript& reference(bool sampled) const { return references_[sampled ? 1 : 0]; }

 private:
  [[nodiscard]] DecodeOptions decode_options(const Case& at) const {
    return drafting_options(kNewTokens, at.k, at.sampled, references_);
  }

  TempFolder folder_;
  const std::vector<TokenId> prompt_;
  std::vector<Model> models_;
  std::vector<Transcript> references_;  // greedy, sampled; with cuBLAS, without drafts, the prompt in one piece
};

TEST_CASE("cublas session: logits and text are the same for any drafts, chunks and place of the experts") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  const Subject subject(float_model(architecture));
  subject.check({0, 1});
  subject.check({0, 7, true});
  subject.check({0, kWhole, false, Device::kSplit});
  subject.check_cycle({0});
  if (!subject.model().has_mtp()) return;
  subject.check({1, kWhole, true});
  subject.check({3, 34});
  subject.check({2, 5, true, Device::kSplit});
  subject.check_cycle({3, kWhole, true});
}

TEST_CASE("cublas session: it is used where it is asked for, and near the CPU's logits") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35");
  RandomModel spec = float_model(architecture);
  // No quantised rows: one unit there, when a value crosses the middle between two, is more than all that is lost here.
  spec.types = {WeightType::kF16, WeightType::kF32};
  const Subject subject(spec);
  const Transcript cpu = subject.run({0, kWhole, false, Device::kCpu, false}), &gpu = subject.reference(false);
  REQUIRE(cpu.logits.size() == gpu.logits.size());
  CHECK(cpu.first_difference(gpu) == 0);
  // Logits of N(0, 1): what one product loses (some 2^-20 of it) through a dozen of them in a row, with room for a
  // hundredfold growth in norms and recurrent states.
  for (size_t i = 0; i < cpu.logits.size(); ++i) {
    if (std::abs(cpu.logits[i] - gpu.logits[i]) <= 2e-3f) continue;
    INFO("position " << i / static_cast<size_t>(cpu.vocab_size) << ": " << cpu.logits[i] << ", " << gpu.logits[i]);
    CHECK(false);
    break;
  }
  // Without the flag nothing of it remains.
  CHECK(subject.run({0, kWhole, false, Device::kCuda, false}).first_difference(cpu) == -1);
}

TEST_CASE("cublas session: its memory is counted, and taken only where there is something to compute") {
  const auto work_bytes = [](const RandomModel& spec, bool cublas) {
    const Subject subject(spec);
    Case at;
    at.cublas = cublas;
    return Session(subject.model(), subject.session_options(at)).memory().work_bytes;
  };
  RandomModel spec = float_model("qwen35");
  const size_t without = work_bytes(spec, false), with = work_bytes(spec, true);
  CHECK(with >= without + (size_t{32} << 20));
  CHECK(with < without + (size_t{33} << 20));  // 2 * 32 rows of 2 * 320 products and of 128 halves
  spec.types = {WeightType::kQ8_0};
  CHECK(work_bytes(spec, true) == work_bytes(spec, false));
}

}  // namespace
}  // namespace foretoken
