#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>

#include "engine/cuda/cuda_backend.h"
#include "engine/device_cycle.h"
#include "engine/engine.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/transcript.h"
#ifdef FORETOKEN_CUDA_EMULATION
#include "kernels/cuda/emulation/cuda_emulation.h"
#endif

// Several sequences in one pass on the device: each has the text and the bits that the CPU gives it alone, whoever
// joins and leaves meanwhile.

namespace foretoken {
namespace {

using test::random_ids;
using test::RandomModel;
using test::small_model;
using test::TempFolder;
using test::transcribe;
using test::Transcript;

constexpr int kMaxWindow = 4;
constexpr int kNewTokens = 10;

/// A prompt and what follows it, with the logits of every position, from a session of its own on the CPU.
struct Text {
  std::vector<TokenId> prompt;
  SamplingOptions sampling;
  Transcript alone;

  /// Token at a position, of the prompt or new.
  [[nodiscard]] TokenId at(int64_t position) const {
    const auto i = static_cast<size_t>(position);
    return i < prompt.size() ? prompt[i] : alone.result.ids.at(i - prompt.size());
  }
  [[nodiscard]] int64_t length() const { return static_cast<int64_t>(prompt.size() + alone.result.ids.size()); }
  /// True if `logits` are those at a position, bit for bit.
  [[nodiscard]] bool has_logits(int64_t position, const float* logits) const {
    const auto begin = static_cast<size_t>(position * alone.vocab_size);
    return std::memcmp(&alone.logits.at(begin), logits, static_cast<size_t>(alone.vocab_size) * sizeof(float)) == 0;
  }
};

class Batch {
 public:
  /// Prompts of these lengths; every second one is sampled.
  Batch(const RandomModel& spec, const std::vector<int>& prompts) {
    use_cuda_backend();
    spec.write(folder_.file("model.gguf"));
    model_.emplace(Model::load(folder_.file("model.gguf"), {}));
    for (size_t i = 0; i < prompts.size(); ++i) {
      Text text;
      text.prompt = random_ids(prompts[i], spec.vocab_size, 70 + i);
      if (i % 2 == 1) text.sampling.temperature = 0.8f;
      text.sampling.seed = 7 + i;
      DecodeOptions decode;
      decode.max_new_tokens = kNewTokens;
      decode.ignore_eos = true;
      decode.sampling = text.sampling;
      SessionOptions session = options(Device::kCpu, 1);
      session.ctx_size = prompts[i] + kNewTokens + kMaxWindow;
      text.alone = transcribe(*model_, session, text.prompt, decode);
      REQUIRE(text.alone.result.ids.size() == size_t{kNewTokens});
      texts_.push_back(std::move(text));
    }
  }

  [[nodiscard]] SessionOptions options(Device device, int parallel) const {
    SessionOptions o;
    o.device = device;
    o.threads = 1;
    o.parallel = parallel;
    o.prompt_chunk = 40;
    o.max_window = kMaxWindow;
    o.with_mtp = model_->has_mtp();
    for (const Text& text : texts_) o.ctx_size = std::max(o.ctx_size, text.length() + kMaxWindow);
    return o;
  }
  [[nodiscard]] const Model& model() const { return *model_; }
  [[nodiscard]] const std::vector<Text>& texts() const { return texts_; }

 private:
  TempFolder folder_;
  std::optional<Model> model_;
  std::vector<Text> texts_;
};

/// A text on its way through passes: prompt chunks, then windows with some drafts wrong.
struct Running {
  Running(Engine& engine, const Text& t, size_t index) : text(t), number(index), sequence(engine) {
    REQUIRE(sequence.reserve(t.length()));
  }
  /// Its rows of the coming pass.
  Engine::Input next(int round) {
    ids.clear();
    const int64_t length = sequence.length(), prompt = static_cast<int64_t>(text.prompt.size());
    const int turn = round + static_cast<int>(number);
    const bool is_window = length >= prompt;
    const int64_t end = is_window ? text.length() : prompt;
    const int64_t num_rows = std::min<int64_t>(end - length, is_window ? 1 + turn % kMaxWindow : 3 + 9 * (turn % 3));
    for (int64_t r = 0; r < num_rows; ++r) ids.push_back(text.at(length + r));
    right = static_cast<int>(num_rows);
    if (is_window && num_rows > 1 && turn % 3 != 0) {  // a wrong draft, and what would follow it
      right = 1 + turn % static_cast<int>(num_rows - 1);
      ids[right] = (ids[right] + 1) % 200;
    }
    return {&sequence, ids, is_window};
  }
  [[nodiscard]] bool ended() const { return sequence.length() == text.length(); }

  const Text& text;
  const size_t number;
  Sequence sequence;
  std::vector<TokenId> ids;
  int right = 0;  // rows whose tokens are the text's
};

// Texts come and go: as many as the engine has room for, the next as soon as one has ended, some a round later.
void check_passes(const Batch& batch, SessionOptions options) {
  Engine engine(batch.model(), options);
  std::deque<std::unique_ptr<Running>> running;
  size_t begun = 0, ended = 0;
  for (int round = 0; ended < batch.texts().size(); ++round) {
    REQUIRE(round < 500);
    while (begun < batch.texts().size() && engine.free_slots() > 0 && (begun % 3 != 2 || round % 4 == 3)) {
      running.push_back(std::make_unique<Running>(engine, batch.texts()[begun], begun));
      ++begun;
    }
    if (running.empty()) continue;
    std::rotate(running.begin(), running.begin() + 1, running.end());  // in another order each time
    std::vector<Engine::Input> inputs;
    int num_rows = 0;
    for (const auto& r : running) {
      const Engine::Input input = r->next(round);
      if (num_rows + static_cast<int>(input.ids.size()) > engine.max_rows()) break;
      num_rows += static_cast<int>(input.ids.size());
      inputs.push_back(input);
    }
    engine.forward(inputs);
    // The logits of every row that is the text's own, some at a time.
    for (size_t i = 0; i < inputs.size(); ++i) {
      Running& r = *running[i];
      for (int begin = 0; begin < r.right; begin += engine.logits_capacity()) {
        std::vector<int32_t> rows;
        for (int row = begin; row < std::min(r.right, begin + engine.logits_capacity()); ++row)
          rows.push_back(engine.first_row(static_cast<int>(i)) + row);
        engine.compute_logits(rows);
        for (size_t at = 0; at < rows.size(); ++at) {
          const int64_t position = r.sequence.length() + begin + static_cast<int64_t>(at);
          if (position + 1 >= r.text.length()) continue;  // nobody has asked for these
          INFO("text " << r.number << ", position " << position << ", round " << round);
          CHECK(r.text.has_logits(position, engine.logits(static_cast<int>(at))));
        }
      }
    }
    // And the last rows of all together, which do not follow each other.
    std::vector<int32_t> last;
    for (size_t i = 0; i < inputs.size(); ++i)
      last.push_back(engine.first_row(static_cast<int>(i)) + running[i]->right - 1);
    engine.compute_logits(last);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Running& r = *running[i];
      const int64_t position = r.sequence.length() + r.right - 1;
      if (position + 1 < r.text.length()) CHECK(r.text.has_logits(position, engine.logits(static_cast<int>(i))));
    }
    for (size_t i = 0; i < inputs.size(); ++i) running[i]->sequence.commit(running[i]->right);
    ended += static_cast<size_t>(std::erase_if(running, [](const auto& r) { return r->ended(); }));
  }
}

TEST_CASE("device batch: the logits of every sequence are those that it has alone on the CPU") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe", "qwen35");
  const Batch batch(small_model(architecture), {9, 3, 31, 1, 17});
  check_passes(batch, batch.options(Device::kCuda, 3));
}

TEST_CASE("device batch: seven neighbours, and a context that crosses pages") {
  RandomModel spec = small_model("qwen35moe");
  spec.num_heads = spec.num_kv_heads = 2;
  const Batch batch(spec, {5, 12, kAttentionSplit - 3, 2, 20, 7, 33, 1, 14});
  check_passes(batch, batch.options(Device::kCuda, 8));
}

TEST_CASE("device batch: experts split between device and host, each row by itself") {
  const Batch batch(small_model("qwen35moe"), {9, 4, 15});
  SessionOptions options = batch.options(Device::kSplit, 2);
  options.split = {{3, 0}, 2};
  check_passes(batch, options);
  options = batch.options(Device::kCuda, 3);
  options.moe_verify = MoeVerify::kPerToken;
  check_passes(batch, options);
}

/// Prompt through the trunk and the MTP layer, the latter for all sequences at once.
class Prompts {
 public:
  Prompts(Engine& engine, const std::vector<const Text*>& texts) : engine_(engine) {
    const int64_t dim = engine.model().config().hidden_dim;
    hidden_.resize(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      sequences_.push_back(std::make_unique<Sequence>(engine));
      Sequence& sequence = *sequences_.back();
      REQUIRE(sequence.reserve(texts[i]->length() + kMaxWindow));
      const std::vector<TokenId>& prompt = texts[i]->prompt;
      const Engine::Input input{&sequence, prompt, false};
      engine.forward({&input, 1});
      hidden_[i].assign(dim, 0.0f);
      for (size_t r = 0; r < prompt.size(); ++r) {
        const float* row = engine.hidden(static_cast<int>(r));
        hidden_[i].insert(hidden_[i].end(), row, row + dim);
      }
      sequence.commit(static_cast<int>(prompt.size()));
    }
    if (!engine.options().with_mtp) return;
    std::vector<std::vector<const float*>> rows(texts.size());
    std::vector<Engine::MtpInput> inputs;
    for (size_t i = 0; i < texts.size(); ++i) {
      for (size_t r = 0; r < texts[i]->prompt.size(); ++r) rows[i].push_back(&hidden_[i][r * static_cast<size_t>(dim)]);
      // Some leave only keys and values, some have one output, some all.
      const int num_rows = static_cast<int>(rows[i].size());
      const int first_output = i % 3 == 0 ? num_rows - 1 : i % 3 == 1 ? 0 : num_rows;
      inputs.push_back({sequences_[i].get(), 0, texts[i]->prompt, rows[i], first_output});
    }
    engine.mtp_forward(inputs);
  }
  [[nodiscard]] Sequence& sequence(size_t i) { return *sequences_[i]; }
  /// Hidden of the last prompt row.
  [[nodiscard]] const float* last_hidden(size_t i) const {
    return &hidden_[i][hidden_[i].size() - static_cast<size_t>(engine_.model().config().hidden_dim)];
  }

 private:
  Engine& engine_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<std::vector<float>> hidden_;
};

TEST_CASE("device batch: the MTP layer over several sequences, chained") {
  const Batch batch(small_model("qwen35moe"), {9, 4, 15});
  std::vector<const Text*> texts;
  for (const Text& text : batch.texts()) texts.push_back(&text);
  std::vector<std::vector<float>> logits;
  for (const Device device : {Device::kCpu, Device::kCuda}) {
    // On the CPU each sequence alone, on the device all together.
    std::vector<std::vector<float>> of_text(texts.size());
    const auto run = [&](const std::vector<const Text*>& together, size_t first) {
      Engine engine(batch.model(), batch.options(device, static_cast<int>(together.size())));
      Prompts prompts(engine, together);
      const int64_t vocab_size = engine.model().config().vocab_size;
      std::vector<const float*> hidden;
      for (size_t i = 0; i < together.size(); ++i) hidden.push_back(prompts.last_hidden(i));
      for (int step = 0; step < 3; ++step) {
        std::vector<Engine::MtpInput> inputs;
        std::vector<TokenId> ids;
        for (const Text* text : together) ids.push_back(text->at(static_cast<int64_t>(text->prompt.size()) + step));
        std::vector<int32_t> outputs;
        for (size_t i = 0; i < together.size(); ++i) {
          const auto position = static_cast<int64_t>(together[i]->prompt.size()) + step;
          inputs.push_back({&prompts.sequence(i), position, std::span(&ids[i], 1), std::span(&hidden[i], 1), 0});
          outputs.push_back(static_cast<int32_t>(i));
        }
        engine.mtp_forward(inputs);
        if (outputs.size() > 2) outputs.erase(outputs.begin() + 1);  // rows that do not follow each other
        engine.mtp_compute_logits(outputs);
        for (size_t at = 0; at < outputs.size(); ++at) {
          const float* row = engine.mtp_logits(static_cast<int>(at));
          auto& to = of_text[first + static_cast<size_t>(outputs[at])];
          to.insert(to.end(), row, row + vocab_size);
        }
        for (size_t i = 0; i < together.size(); ++i) hidden[i] = engine.mtp_hidden(static_cast<int>(i));
      }
    };
    if (device == Device::kCuda) {
      run(texts, 0);
      of_text[1] = logits[1];  // was left out
    } else {
      for (size_t i = 0; i < texts.size(); ++i) run({texts[i]}, i);
    }
    if (logits.empty()) {
      logits = of_text;
    } else {
      for (size_t i = 0; i < texts.size(); ++i) {
        INFO("text " << i);
        REQUIRE(of_text[i].size() == logits[i].size());
        CHECK(std::memcmp(of_text[i].data(), logits[i].data(), logits[i].size() * sizeof(float)) == 0);
      }
    }
  }
}

/// How sure the MTP layer was of each draft of a text, in order.
using Confidences = std::vector<std::vector<float>>;

// Windows of every width, with the MTP layer's drafts, with the host's, with both, and without any; sequences join at
// their own rounds and rest in some. What a text's windows are does not depend on who else is there.
[[nodiscard]] Confidences check_cycles(const Batch& batch, const SessionOptions& options) {
  Engine engine(batch.model(), options);
  REQUIRE(engine.device_cycle() != nullptr);
  DeviceCycle& cycle = *engine.device_cycle();
  Confidences confidences(batch.texts().size());
  std::vector<int64_t> drafted(3, 0);
  int64_t accepted = 0;
  bool steady = false;
  size_t next = 0, ended = 0;
  struct Active {
    const Text* text;
    size_t number;
    std::unique_ptr<Prompts> prompt;
    int turn = 0;
  };
  std::vector<Active> active;
  for (int round = 0; ended < batch.texts().size(); ++round) {
    REQUIRE(round < 500);
    while (next < batch.texts().size() && engine.free_slots() > 0 &&
           (next < 2 || round >= 2 * static_cast<int>(next))) {
      const Text& text = batch.texts()[next];
      active.push_back({&text, next, std::make_unique<Prompts>(engine, std::vector<const Text*>{&text})});
      cycle.begin(active.back().prompt->sequence(0).state_for_device(), text.sampling,
                  text.at(static_cast<int64_t>(text.prompt.size())), static_cast<int>(text.prompt.size()) - 1);
      ++next;
    }
    std::vector<DeviceCycle::Window> windows;
    std::deque<std::vector<TokenId>> given;
    std::vector<size_t> whose;
    for (size_t i = 0; i < active.size(); ++i) {
      const Text& text = *active[i].text;
      SequenceState& state = active[i].prompt->sequence(0).state_for_device();
      if ((round + static_cast<int>(i)) % 7 == 6 && active.size() > 1) continue;
      const int turn = active[i].turn++ + static_cast<int>(active[i].number);
      const auto room = static_cast<int>(text.length() - state.length - 1);
      DeviceCycle::Window window;
      window.sequence = &state;
      window.last = text.at(state.length);
      window.num_drafts = std::min(turn % kMaxWindow, room);
      const int kind = engine.options().with_mtp ? turn % 3 : 1;  // both; the host's alone; the MTP layer's alone
      given.emplace_back();
      if (kind != 2) {
        for (int d = 0; d < window.num_drafts; ++d) given.back().push_back(text.at(state.length + 1 + d));
        if (turn % 5 > 1 && window.num_drafts > 0) {
          TokenId& wrong = given.back()[turn % window.num_drafts];
          wrong = (wrong + 1) % 200;
        }
        if (kind == 0 && !given.back().empty()) given.back().pop_back();  // the last one is the MTP layer's
      }
      window.mtp_drafts = kind != 1;
      window.given = given.back();
      drafted[kind] += window.num_drafts;
      windows.push_back(window);
      whose.push_back(i);
    }
    if (windows.empty()) continue;
    std::vector<int64_t> before;
    for (const DeviceCycle::Window& w : windows) before.push_back(w.sequence->length);
    const DeviceCycle::Outcome& outcome = cycle.run(windows);
    steady = steady || outcome.is_steady;
    REQUIRE(outcome.windows.size() == windows.size());
    for (size_t w = 0; w < windows.size(); ++w) {
      const DeviceCycle::Verified& verified = outcome.windows[w];
      const Text& text = *active[whose[w]].text;
      INFO("text " << active[whose[w]].number << ", round " << round);
      CHECK(windows[w].sequence->length == before[w] + verified.num_accepted + 1);
      CHECK(verified.confidences.size() == static_cast<size_t>(windows[w].mtp_drafts ? windows[w].num_drafts : 0));
      for (int i = 0; i <= verified.num_accepted; ++i) {
        if (before[w] + 1 + i < text.length()) CHECK(verified.choices[i] == text.at(before[w] + 1 + i));
      }
      auto& sure = confidences[active[whose[w]].number];
      sure.insert(sure.end(), verified.confidences.begin(), verified.confidences.end());
      const bool drafts = windows[w].mtp_drafts && windows[w].num_drafts > 0;
      CHECK((cycle.first_confidence(*windows[w].sequence) > 0) == drafts);
      accepted += verified.num_accepted;
    }
    const auto is_over = [](const Active& a) { return a.prompt->sequence(0).length() + 1 >= a.text->length(); };
    ended += static_cast<size_t>(std::erase_if(active, is_over));
  }
  for (size_t kind = 0; kind < drafted.size(); ++kind)
    CHECK((drafted[kind] > 0) == (kind == 1 || engine.options().with_mtp));
  CHECK(accepted > 0);
  CHECK(steady);
  return confidences;
}

TEST_CASE("device batch: cycles of several sequences, each with drafts of its own") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  const Batch batch(small_model(architecture), {9, 3, 14, 1, 6, 11});
  const Confidences alone = check_cycles(batch, batch.options(Device::kCuda, 1));
  CHECK(check_cycles(batch, batch.options(Device::kCuda, 3)) == alone);
}

TEST_CASE("device batch: cycles with seven neighbours, split experts") {
  const Batch batch(small_model("qwen35moe"), {9, 3, 14, 1, 6, 11, 2, 5});
  SessionOptions options = batch.options(Device::kSplit, 8);
  options.split = {{3, 0}, 2};
  CHECK(check_cycles(batch, options) == check_cycles(batch, batch.options(Device::kCuda, 1)));
}

TEST_CASE("device batch: a sequence saved on one device goes on on another, and as a copy") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  const Batch batch(small_model(architecture), {9, kAttentionSplit + 4});
  for (const auto& [from, to] : {std::pair{Device::kCuda, Device::kCpu}, std::pair{Device::kCpu, Device::kCuda},
                                 std::pair{Device::kCuda, Device::kCuda}}) {
    for (const Text& text : batch.texts()) {
      SessionOptions options = batch.options(from, 2);
      options.prompt_chunk = 400;
      Engine first(batch.model(), options);
      Sequence begun(first);
      REQUIRE(begun.reserve(text.length()));
      const auto prompt = static_cast<int64_t>(text.prompt.size());
      const Engine::Input chunk{&begun, text.prompt, false};
      first.forward({&chunk, 1});
      begun.commit(static_cast<int>(prompt));
      std::vector<TokenId> window{text.at(prompt), text.at(prompt + 1), text.at(prompt + 2), 5};
      const Engine::Input input{&begun, window, true};
      first.forward({&input, 1});
      begun.commit(3);  // two rows are left to replay

      options.device = to;
      options.parallel = 1;
      Engine second(batch.model(), options);
      Sequence restored(second);
      restored.restore(begun.save());
      REQUIRE(restored.reserve(text.length()));
      Sequence copied(first);
      REQUIRE(copied.copy(begun, begun.length()));
      REQUIRE(copied.reserve(text.length()));
      window = {text.at(prompt + 3), text.at(prompt + 4)};
      for (Sequence* sequence : {&restored, &copied, &begun}) {
        Engine& engine = sequence == &restored ? second : first;
        const Engine::Input next{sequence, window, true};
        engine.forward({&next, 1});
        engine.compute_logits(std::vector<int32_t>{0, 1});
        CHECK(text.has_logits(prompt + 3, engine.logits(0)));
        CHECK(text.has_logits(prompt + 4, engine.logits(1)));
        sequence->commit(2);
      }
    }
  }
}

#ifdef FORETOKEN_CUDA_EMULATION
TEST_CASE("device batch: a pass that has failed ends all work of its engine, in one clear line") {
  struct FaultGuard {
    ~FaultGuard() { cuda::emulation::inject({}); }
  } guard;
  const Batch batch(small_model("qwen35moe"), {5, 3});
  Engine engine(batch.model(), batch.options(Device::kCuda, 2));
  Sequence one(engine), other(engine);
  REQUIRE((one.reserve(10) && other.reserve(10)));
  const auto message = [&](Sequence& sequence, const Text& text) -> std::string {
    try {
      const Engine::Input input{&sequence, text.prompt, false};
      engine.forward({&input, 1});
      static_cast<void>(engine.hidden(0));
      sequence.commit(static_cast<int>(text.prompt.size()));
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message(one, batch.texts()[0]).empty());
  cuda::emulation::inject({std::nullopt, 0});
  CHECK_THAT(message(other, batch.texts()[1]), Catch::Contains("CUDA: waiting for the device"));
  // The device is back, but what it holds and what was being recorded is not to be trusted.
  cuda::emulation::inject({});
  const std::string refused = message(other, batch.texts()[1]);
  CHECK_THAT(refused, Catch::Contains("an earlier pass on the device has failed"));
  CHECK(refused.find('\n') == std::string::npos);
  // Another engine works.
  Engine anew(batch.model(), batch.options(Device::kCuda, 1));
  Sequence again(anew);
  REQUIRE(again.reserve(10));
  const Engine::Input input{&again, batch.texts()[0].prompt, false};
  anew.forward({&input, 1});
  anew.compute_logits(std::vector<int32_t>{4});
  CHECK(batch.texts()[0].has_logits(4, anew.logits(0)));
}
#endif

}  // namespace
}  // namespace foretoken
