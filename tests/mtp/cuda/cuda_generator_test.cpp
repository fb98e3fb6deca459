#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "engine/cuda/cuda_backend.h"
#include "engine/engine.h"
#include "mtp/decoder.h"
#include "mtp/generator.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

// Texts of a batch whose cycles the device runs by itself: each comes out as it does alone on the CPU, whoever else is
// in the step, and can be saved and copied between two cycles.

namespace foretoken {
namespace {

using test::random_ids;
using test::RandomModel;
using test::small_model;
using test::TempFolder;

constexpr int kDrafts = 3;
constexpr int kNewTokens = 24;

struct Text {
  std::vector<TokenId> prompt;
  SamplingOptions sampling;
  std::vector<TokenId> alone;

  [[nodiscard]] int64_t positions() const { return static_cast<int64_t>(prompt.size()) + kNewTokens; }
  [[nodiscard]] GenerationOptions options(bool drafts) const {
    GenerationOptions o;
    o.max_new_tokens = kNewTokens;
    o.max_drafts = drafts ? kDrafts : 0;
    o.sampling = sampling;
    o.ignore_eos = true;
    return o;
  }
};

/// A text in an engine.
struct Running {
  Running(Engine& engine, const Text& t) : text(t), sequence(engine) {}

  const Text& text;
  Sequence sequence;
  std::unique_ptr<Generation> generation;
};

class Texts {
 public:
  Texts(const Model& model, int64_t vocab_size) {
    for (int i = 0; i < 3; ++i) {
      Text text;
      text.prompt = random_ids(9 + 14 * i, vocab_size, 90 + static_cast<uint64_t>(i));
      if (i == 1) text.sampling = {.temperature = 0.7f, .seed = 5};
      SessionOptions session;
      session.ctx_size = 128;
      session.threads = 1;
      Session alone(model, session);
      DecodeOptions decode_options;
      decode_options.max_new_tokens = kNewTokens;
      decode_options.ignore_eos = true;
      decode_options.sampling = text.sampling;
      text.alone = decode(alone, text.prompt, decode_options).ids;
      list.push_back(std::move(text));
    }
  }
  std::vector<Text> list;
};

// Moves all of `running` on until they are finished; `between` is called after each step with its number.
template <class Between>
int run(Generator& generator, std::vector<std::unique_ptr<Running>>& running, const Between& between) {
  int device_windows = 0;
  for (int step = 0;; ++step) {
    std::vector<Generator::Part> parts;
    for (const auto& r : running) {
      if (r->generation->is_finished()) continue;
      parts.push_back({r->generation.get(), static_cast<int>(std::min<int64_t>(r->generation->unread(), 11))});
    }
    if (parts.empty()) break;
    device_windows += generator.step(parts).device_windows;
    between(step);
  }
  for (const auto& r : running) generator.leave(*r->generation);
  return device_windows;
}

SessionOptions session_options(Device device, bool mtp) {
  SessionOptions o;
  o.device = device;
  o.ctx_size = 128;
  o.parallel = 4;
  o.max_window = kDrafts + 1;
  o.with_mtp = mtp;
  o.threads = 1;
  return o;
}

TEST_CASE("texts of a batch that the device runs by itself, saved and copied between its cycles", "[cuda]") {
  use_cuda_backend();
  using Steps = std::vector<int>;
  for (const auto& [architecture, steps] :
       {std::pair{"qwen35moe", Steps{3, 6, 9}}, {"qwen35", Steps{3}}, {"qwen3moe", Steps{9}}}) {
    const TempFolder folder;
    const RandomModel spec = small_model(architecture);
    spec.write(folder.file("model.gguf"));
    const Model model = Model::load(folder.file("model.gguf"), {});
    const Texts texts(model, spec.vocab_size);
    const bool mtp = model.has_mtp();
    const GeneratorOptions options{mtp, mtp ? kDrafts : 0, /*controller=*/false, /*draft_vocab=*/0};
    for (const int saved_after : steps) {
      INFO(fmt::format("{}, saved after step {}", architecture, saved_after));
      Engine engine(model, session_options(Device::kCuda, mtp));
      Generator generator(engine, options);
      std::vector<std::unique_ptr<Running>> running;
      for (const Text& text : texts.list) {
        auto r = std::make_unique<Running>(engine, text);
        REQUIRE(r->sequence.reserve(text.positions()));
        r->generation = std::make_unique<Generation>(r->sequence, text.prompt, text.options(mtp));
        running.push_back(std::move(r));
      }
      std::vector<std::byte> saved;
      Running copied(engine, texts.list[1]);
      const int device_windows = run(generator, running, [&](int step) {
        if (step != saved_after) return;
        saved = generator.save(*running[0]->generation);
        copied.generation = generator.copy(*running[1]->generation, copied.sequence, copied.text.options(mtp));
        REQUIRE(copied.generation != nullptr);
        REQUIRE(copied.sequence.reserve(copied.text.positions()));
      });
      CHECK(device_windows > kNewTokens);  // of three texts
      for (const auto& r : running) CHECK(r->generation->ids() == r->text.alone);
      while (!copied.generation->is_finished()) {
        const Generator::Part part{copied.generation.get(), static_cast<int>(copied.generation->unread())};
        (void)generator.step({&part, 1});
      }
      CHECK(copied.generation->ids() == copied.text.alone);
      generator.leave(*copied.generation);

      for (const Device device : {Device::kCpu, Device::kCuda}) {
        Engine other(model, session_options(device, mtp));
        Generator taker(other, options);
        Running restored(other, texts.list[0]);
        restored.generation = taker.restore(restored.sequence, saved, restored.text.options(mtp));
        REQUIRE(restored.sequence.reserve(restored.text.positions()));
        while (!restored.generation->is_finished()) {
          const Generator::Part part{restored.generation.get(), static_cast<int>(restored.generation->unread())};
          (void)taker.step({&part, 1});
        }
        CHECK(restored.generation->ids() == restored.text.alone);
        taker.leave(*restored.generation);
      }
    }
  }
}

}  // namespace
}  // namespace foretoken
