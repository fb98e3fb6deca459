#include "mtp/prefix_cache.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "engine/session.h"
#include "mtp/scheduler.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

namespace foretoken::test {
namespace {

constexpr int64_t kContext = 1024;

/// What a text says and, at each position, a hash of its logits.
struct Outcome {
  std::vector<TokenId> ids;
  std::vector<uint64_t> logits;  // from position `first` on
  int64_t first = -1;
};

struct Text {
  std::vector<TokenId> prompt;
  int new_tokens = 0;
  SamplingOptions sampling;
};

class Listener {
 public:
  explicit Listener(int64_t vocab_size) : vocab_size_(vocab_size) {}

  [[nodiscard]] GenerationOptions options(const Text& text, int max_drafts) {
    GenerationOptions options;
    options.max_new_tokens = text.new_tokens;
    options.max_drafts = max_drafts;
    options.sampling = text.sampling;
    options.ignore_eos = true;
    options.all_prompt_logits = true;
    options.on_logits = [this](int64_t position, const float* logits) {
      if (outcome.first < 0) outcome.first = position;
      REQUIRE(position == outcome.first + static_cast<int64_t>(outcome.logits.size()));
      uint64_t hash = 14695981039346656037u;
      for (int64_t i = 0; i < vocab_size_; ++i) {
        uint32_t bits = 0;
        std::memcpy(&bits, logits + i, sizeof bits);
        hash = (hash ^ bits) * 1099511628211u;
      }
      outcome.logits.push_back(hash);
    };
    return options;
  }
  Outcome outcome;

 private:
  const int64_t vocab_size_;
};

class Subject {
 public:
  explicit Subject(const std::string& architecture) {
    RandomModel spec;
    spec.architecture = architecture;
    vocab_size_ = spec.vocab_size;
    spec.write(folder_.file("model.gguf"));
    model_ = std::make_unique<Model>(Model::load(folder_.file("model.gguf"), {}));
  }

  [[nodiscard]] const Model& model() const { return *model_; }
  [[nodiscard]] int64_t vocab_size() const { return vocab_size_; }

  [[nodiscard]] SessionOptions options(int parallel, bool with_mtp, int max_drafts) const {
    SessionOptions options;
    options.ctx_size = kContext;
    options.parallel = parallel;
    options.threads = 2;
    options.max_window = max_drafts + 1;
    options.with_mtp = with_mtp;
    return options;
  }

  [[nodiscard]] Outcome alone(const Text& text) const {
    Session session(*model_, options(1, false, 0));
    Listener listener(vocab_size_);
    Generation generation(session.sequence(), text.prompt, listener.options(text, 0));
    Generator generator(session.engine(), {});
    while (!generation.is_finished()) {
      const Generator::Part part{&generation, static_cast<int>(std::min<int64_t>(generation.unread(), 256))};
      (void)generator.step({&part, 1});
    }
    listener.outcome.ids = generation.ids();
    return listener.outcome;
  }

 private:
  int64_t vocab_size_ = 0;
  TempFolder folder_;
  std::unique_ptr<Model> model_;
};

void check_same(const Outcome& got, const Outcome& want, int64_t cached) {
  REQUIRE(got.ids == want.ids);
  REQUIRE(got.first == cached);
  REQUIRE(got.logits == std::vector<uint64_t>(want.logits.begin() + cached, want.logits.end()));
}

/// Chats whose turns repeat what was said: each goes on from the one before it, or from an earlier one.
void run_chats(const Subject& subject, bool mtp, int max_drafts, size_t cache_bytes, int parallel, int rounds,
               int64_t* cached_tokens) {
  Engine engine(subject.model(), subject.options(parallel, mtp, max_drafts));
  SchedulerOptions options;
  options.generator.mtp = mtp;
  options.generator.ngram = !mtp && max_drafts > 0;
  options.generator.max_drafts = max_drafts;
  options.cache_bytes = cache_bytes;
  options.checkpoint_every = 96;
  Scheduler scheduler(engine, options);
  std::mt19937_64 random(7);
  std::vector<std::vector<TokenId>> history = {random_ids(200, subject.vocab_size(), 1),
                                               random_ids(40, subject.vocab_size(), 2)};
  const int slots = engine.free_slots();
  for (int round = 0; round < rounds; ++round) {
    struct Running {
      Text text;
      std::unique_ptr<Listener> listener;
      Scheduler::Request* request;
    };
    std::vector<Running> running;
    for (int i = 0; i < parallel; ++i) {
      Text text;
      const std::vector<TokenId>& before = history[random() % history.size()];
      // The same again, cut off somewhere, or with something new behind it.
      const size_t kept = random() % 3 == 0 ? 1 + random() % before.size() : before.size();
      text.prompt.assign(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(kept));
      const std::vector<TokenId> more = random_ids(static_cast<int>(1 + random() % 60), subject.vocab_size(), random());
      if (random() % 4 != 0) text.prompt.insert(text.prompt.end(), more.begin(), more.end());
      if (text.prompt.size() > 700) text.prompt.resize(700);
      text.new_tokens = 1 + static_cast<int>(random() % 20);
      if (random() % 2 == 0) {
        text.sampling.temperature = 0.9f;
        text.sampling.seed = random() % 9;
      }
      Running one{text, std::make_unique<Listener>(subject.vocab_size()), nullptr};
      const int drafts = max_drafts > 0 && random() % 4 != 0 ? max_drafts : 0;
      one.request = &scheduler.add(text.prompt, one.listener->options(text, drafts), random() % 8 != 0);
      running.push_back(std::move(one));
    }
    while (scheduler.step()) REQUIRE(scheduler.cache().bytes() <= std::max<size_t>(cache_bytes, 1));
    for (Running& one : running) {
      REQUIRE(one.request->is_finished());
      one.listener->outcome.ids = one.request->ids();
      INFO("round " << round << ", prompt of " << one.text.prompt.size() << ", cached "
                    << one.request->cached_tokens());
      check_same(one.listener->outcome, subject.alone(one.text), one.request->cached_tokens());
      *cached_tokens += one.request->cached_tokens();
      std::vector<TokenId> said = one.text.prompt;
      said.insert(said.end(), one.request->ids().begin(), one.request->ids().end());
      history.push_back(std::move(said));
      scheduler.forget(*one.request);
    }
  }
  scheduler.cache().clear();
  CHECK(scheduler.cache().num_nodes() == 0);
  CHECK(scheduler.cache().bytes() == 0);
  CHECK(engine.free_pages() == engine.num_pages());
  CHECK(engine.free_slots() == slots);
}

}  // namespace

TEST_CASE("A text that goes on from the cache has the bits that it has without", "[cache]") {
  for (const std::string architecture : {"qwen35moe", "qwen35", "qwen3moe"}) {
    const Subject subject(architecture);
    for (const bool mtp : {false, true}) {
      if (mtp && !subject.model().has_mtp()) continue;
      for (const int max_drafts : {0, 3}) {
        if (mtp && max_drafts == 0) continue;
        INFO(architecture << ", MTP " << mtp << ", drafts " << max_drafts);
        int64_t cached = 0;
        run_chats(subject, mtp, max_drafts, size_t{64} << 20, 3, 6, &cached);
        CHECK(cached > 500);
      }
    }
  }
}

TEST_CASE("The cache keeps within its memory and gives its pages to texts that need them", "[cache]") {
  const Subject subject("qwen35moe");
  int64_t cached = 0;
  run_chats(subject, true, 3, 1200 << 10, 2, 8, &cached);  // room for a few checkpoints
  run_chats(subject, true, 3, 0, 2, 2, &cached);
}

TEST_CASE("The cache finds what a list of all texts would", "[cache]") {
  const Subject subject("qwen35");
  Engine engine(subject.model(), subject.options(1, false, 0));
  PrefixCache cache(size_t{1} << 30);
  std::set<std::vector<TokenId>> texts;
  std::mt19937 random(3);
  const auto random_text = [&] {
    std::vector<TokenId> text(1 + random() % 9);
    for (TokenId& id : text) id = static_cast<TokenId>(random() % 2);
    return text;
  };
  for (int round = 0; round < 400; ++round) {
    const std::vector<TokenId> text = random_text();
    if (texts.size() > 20) {
      const int before = cache.num_checkpoints();
      REQUIRE(cache.drop_oldest());
      REQUIRE(cache.num_checkpoints() == before - 1);
      std::erase_if(texts, [&](const auto& held) { return !cache.has(held, false); });
    }
    if (!cache.has(text, false)) {
      Sequence sequence(engine);
      REQUIRE(sequence.reserve(static_cast<int64_t>(text.size())));
      const Engine::Input input{&sequence, text, false};
      engine.forward({&input, 1});
      sequence.commit(static_cast<int>(text.size()));
      auto checkpoint = std::make_unique<TextCheckpoint>();
      checkpoint->sequence = sequence.checkpoint(0);
      cache.insert(text, std::move(checkpoint));
      texts.insert(text);
    }
    REQUIRE(static_cast<size_t>(cache.num_checkpoints()) == texts.size());
    for (int look = 0; look < 10; ++look) {
      const std::vector<TokenId> wanted = random_text();
      size_t longest = 0;
      for (const auto& held : texts) {
        if (held.size() < wanted.size() && held.size() > longest &&
            std::equal(held.begin(), held.end(), wanted.begin()))
          longest = held.size();
      }
      const TextCheckpoint* found = cache.find(wanted, false);
      REQUIRE((found == nullptr ? 0 : static_cast<size_t>(found->length())) == longest);
      REQUIRE(cache.find(wanted, true) == nullptr);
    }
  }
  cache.clear();
  CHECK(cache.num_nodes() == 0);
  CHECK(cache.bytes() == 0);
}

}  // namespace foretoken::test
