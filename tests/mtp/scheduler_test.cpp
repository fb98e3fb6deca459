#include "mtp/scheduler.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/gguf/sha256.h"
#include "kernels/base/error.h"
#include "mtp/decoder.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

namespace foretoken::test {
namespace {

/// One text as it comes out: its ids, and a hash over the logits at every position.
struct Outcome {
  std::vector<TokenId> ids;
  std::string logits_sha256;
  bool operator==(const Outcome& other) const { return ids == other.ids && logits_sha256 == other.logits_sha256; }
};

/// A request of a schedule, with all that changes its text and nothing that may not.
struct Text {
  std::vector<TokenId> prompt;
  int new_tokens = 0;
  SamplingOptions sampling;
};

/// Collects what a generation reports.
class Listener {
 public:
  explicit Listener(int64_t vocab_size) : vocab_size_(vocab_size) {}

  void attach(GenerationOptions& options) {
    options.all_prompt_logits = true;
    options.on_logits = [this](int64_t position, const float* logits) {
      in_order_ = in_order_ && position == next_++;
      hash_.update(std::as_bytes(std::span(logits, static_cast<size_t>(vocab_size_))));
    };
  }
  [[nodiscard]] std::string sha256() const { return in_order_ ? hash_.hex() : "positions out of order"; }

 private:
  const int64_t vocab_size_;
  Sha256 hash_;
  int64_t next_ = 0;
  bool in_order_ = true;
};

class Subject {
 public:
  explicit Subject(const RandomModel& spec) : spec_(spec) {
    spec.write(folder_.file("model.gguf"));
    model_ = std::make_unique<Model>(Model::load(folder_.file("model.gguf"), {}));
  }

  [[nodiscard]] const Model& model() const { return *model_; }
  [[nodiscard]] bool has_mtp() const { return model_->has_mtp(); }

  [[nodiscard]] SessionOptions options(int parallel, int max_drafts) const {
    SessionOptions o;
    o.ctx_size = 640;
    o.parallel = parallel;
    o.threads = 2;
    o.max_window = max_drafts + 1;
    o.with_mtp = max_drafts > 0;
    return o;
  }

  [[nodiscard]] GenerationOptions generation(const Text& text) const {
    GenerationOptions g;
    g.max_new_tokens = text.new_tokens;
    g.sampling = text.sampling;
    g.ignore_eos = true;
    return g;
  }

  /// The text decoded alone, without drafts.
  [[nodiscard]] Outcome alone(const Text& text) const {
    Session session(*model_, options(1, 0));
    Listener listener(model_->config().vocab_size);
    Generation generation(session.sequence(), text.prompt, [&] {
      GenerationOptions g = this->generation(text);
      listener.attach(g);
      return g;
    }());
    Generator generator(session.engine(), {});
    while (!generation.is_finished()) {
      const Generator::Part part{&generation, static_cast<int>(std::min<int64_t>(generation.unread(), 256))};
      (void)generator.step({&part, 1});
    }
    return {generation.ids(), listener.sha256()};
  }

  [[nodiscard]] Text random_text(std::mt19937_64& random) const {
    Text text;
    // Now and then a prompt that goes over a page.
    const int length = random() % 8 == 0 ? 250 + static_cast<int>(random() % 40) : 1 + static_cast<int>(random() % 30);
    text.prompt = random_ids(length, spec_.vocab_size, random());
    text.new_tokens = 1 + static_cast<int>(random() % 14);
    if (random() % 3 == 0) {
      text.sampling.temperature = 0.8f;
      text.sampling.seed = random() % 100;
    }
    return text;
  }

 private:
  RandomModel spec_;
  TempFolder folder_;
  std::unique_ptr<Model> model_;
};

/// What runs in a scheduler, and what it has to come out as.
struct Running {
  Scheduler::Request* request;
  Outcome wanted;
  std::unique_ptr<Listener> listener;
  int cancel_after_steps;  // -1: never
};

/// Texts of random lengths arrive, join each other, are cancelled; every one that ends has the ids and logits that it
/// has alone.
void check_schedule(const Subject& subject, uint64_t seed, int64_t& num_checked) {
  std::mt19937_64 random(seed);
  const int parallel = 2 + static_cast<int>(random() % 7);
  const bool ngram = random() % 3 == 0;  // alone where there is no MTP layer, before it where there is one
  const int max_drafts = subject.has_mtp() || ngram ? static_cast<int>(random() % 5) : 0;
  const bool mtp = subject.has_mtp() && max_drafts > 0;
  SessionOptions options = subject.options(parallel, max_drafts);
  options.with_mtp = mtp;
  options.prompt_chunk = 1 + static_cast<int>(random() % 40);
  options.threads = 1 + static_cast<int>(random() % 3);
  options.moe_verify = random() % 2 == 0 ? MoeVerify::kGrouped : MoeVerify::kPerToken;
  Engine engine(subject.model(), options);
  SchedulerOptions scheduling;
  scheduling.generator = {mtp, max_drafts, random() % 2 == 0, kAutoDraftVocab, ngram && max_drafts > 0};
  scheduling.step_ms = random() % 2 == 0 ? 0.01 : 1e6;
  Scheduler scheduler(engine, scheduling);

  std::vector<Running> all;
  const int num_texts = 3 + static_cast<int>(random() % 6);
  const auto add = [&] {
    const Text text = subject.random_text(random);
    Running running{nullptr, subject.alone(text), std::make_unique<Listener>(subject.model().config().vocab_size),
                    random() % 5 == 0 ? static_cast<int>(random() % 6) : -1};
    GenerationOptions generation = subject.generation(text);
    generation.max_drafts = max_drafts == 0 ? 0 : static_cast<int>(random() % (static_cast<uint64_t>(max_drafts) + 1));
    running.listener->attach(generation);
    // A random model's own drafts are right once in 300 times.
    if (generation.max_drafts > 0)
      generation.forced = {running.wanted.ids, static_cast<int64_t>(text.prompt.size()), 0.7, random()};
    running.request = &scheduler.add(text.prompt, generation);
    all.push_back(std::move(running));
  };
  all.reserve(num_texts);
  add();
  for (int step = 0;; ++step) {
    if (static_cast<int>(all.size()) < num_texts && random() % 3 == 0) add();
    for (Running& running : all) {
      if (running.cancel_after_steps == step) scheduler.cancel(*running.request);
    }
    if (!scheduler.step() && static_cast<int>(all.size()) == num_texts) break;
    REQUIRE(step < 4000);
  }
  for (const Running& running : all) {
    REQUIRE(running.request->is_finished());
    if (running.request->stop_reason() == StopReason::kInterrupted) continue;
    ++num_checked;
    const Outcome got{running.request->ids(), running.listener->sha256()};
    CHECK(got.ids == running.wanted.ids);
    CHECK(got.logits_sha256 == running.wanted.logits_sha256);
  }
  CHECK(engine.free_pages() == engine.num_pages());
  CHECK(engine.free_slots() == parallel);
}

void check_schedules(const std::string& architecture, int num_schedules) {
  const Subject subject(small_model(architecture));
  int64_t num_checked = 0;
  for (int i = 0; i < num_schedules; ++i) {
    INFO(architecture << ", schedule " << i);
    check_schedule(subject, static_cast<uint64_t>(i) * 7919 + architecture.size(), num_checked);
  }
  CHECK(num_checked > num_schedules);
}

}  // namespace

TEST_CASE("A text comes out as alone, whoever joins, leaves or is cancelled beside it", "[scheduler]") {
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) check_schedules(architecture, 12);
}

TEST_CASE("A hundred random schedules on three families", "[scheduler][slow]") {
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) check_schedules(architecture, 100);
}

TEST_CASE("A text that finds no page waits, and one that can never fit is refused", "[scheduler]") {
  const Subject subject(small_model("qwen3moe"));
  SessionOptions options = subject.options(4, 0);
  options.kv_memory_bytes = 1;  // one page, whatever it takes
  Engine engine(subject.model(), options);
  REQUIRE(engine.num_pages() == 1);
  Scheduler scheduler(engine, {});
  const auto prompt = random_ids(5, 262, 1);
  GenerationOptions generation;
  generation.max_new_tokens = 4;
  generation.ignore_eos = true;
  Scheduler::Request& first = scheduler.add(prompt, generation);
  Scheduler::Request& second = scheduler.add(prompt, generation);
  REQUIRE(scheduler.step());
  CHECK_FALSE(first.is_waiting());
  CHECK(second.is_waiting());
  while (scheduler.step()) {
  }
  CHECK(first.is_finished());
  CHECK(second.is_finished());
  CHECK(first.ids() == second.ids());
  CHECK(first.prompt_read() == 5);  // though its sequence has gone

  generation.max_new_tokens = 300;
  CHECK_THROWS_WITH(scheduler.add(prompt, generation), Catch::Contains("--kv-memory"));
  CHECK_THROWS_WITH(scheduler.add(random_ids(640, 262, 1), generation), Catch::Contains("--ctx-size"));
  generation.max_new_tokens = 4;
  scheduler.cancel(scheduler.add(prompt, generation));
  CHECK(scheduler.num_waiting() == 0);
}

TEST_CASE("Tokens behind the one that ended a text count for nothing", "[scheduler]") {
  const Subject subject(small_model("qwen35moe"));
  const Text text{random_ids(9, 262, 3), 24, {}};
  const Outcome plain = subject.alone(text);
  const SessionOptions options = subject.options(1, 8);
  for (size_t end = 2; end < 20; ++end) {
    Engine engine(subject.model(), options);
    Sequence sequence(engine);
    REQUIRE(sequence.reserve(options.ctx_size));
    GenerationOptions generation = subject.generation(text);
    generation.max_drafts = 8;
    generation.forced = {plain.ids, static_cast<int64_t>(text.prompt.size()), 1.0, 1};
    size_t seen = 0;
    generation.on_token = [&](TokenId) { return ++seen < end; };  // ends the text as an end token would
    Generation running(sequence, text.prompt, generation);
    Generator generator(engine, {true, 8, false, kAutoDraftVocab});
    while (!running.is_finished()) {
      const Generator::Part part{&running, static_cast<int>(running.unread())};
      (void)generator.step({&part, 1});
    }
    generator.leave(running);
    const DecodeStatistics& s = running.statistics();
    CHECK(running.ids().size() == end);
    CHECK(s.verified_tokens == static_cast<int64_t>(end) - 1);  // the first came with the prompt
    CHECK(s.accepted <= s.verified_tokens);
    // The sequence ends with its text: the newest token has not been in the trunk.
    CHECK(sequence.length() == static_cast<int64_t>(text.prompt.size() + end) - 1);
  }
}

}  // namespace foretoken::test
