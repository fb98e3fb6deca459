#include <catch2/catch.hpp>
#include <cstring>
#include <string>

#include "engine/gguf/sha256.h"
#include "kernels/base/error.h"
#include "mtp/generator.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/neighbours.h"

namespace foretoken::test {
namespace {

class Subject {
 public:
  explicit Subject(const std::string& architecture, uint64_t seed = 1) {
    RandomModel spec = small_model(architecture);
    spec.seed = seed;
    spec.write(folder_.file("model.gguf"));
    model_ = std::make_unique<Model>(Model::load(folder_.file("model.gguf"), {}));
  }
  [[nodiscard]] const Model& model() const { return *model_; }

  [[nodiscard]] SessionOptions session(int max_window, int threads) const {
    SessionOptions o;
    o.ctx_size = 600;
    o.parallel = 2;
    o.prompt_chunk = 64;
    o.threads = threads;
    o.max_window = max_window;
    o.with_mtp = model_->has_mtp();
    return o;
  }
  [[nodiscard]] std::vector<Transcript> known(std::span<const TokenId> prompt, int new_tokens) const {
    std::vector<Transcript> known;
    for (const bool sampled : {false, true})
      known.push_back(transcribe(*model_, session(1, 2), prompt, drafting_options(new_tokens, 0, sampled, {})));
    return known;
  }

 private:
  TempFolder folder_;
  std::unique_ptr<Model> model_;
};

/// An engine with a generator over it.
struct Place {
  Place(const Model& model, const SessionOptions& session, const GeneratorOptions& options)
      : engine(model, session), generator(engine, options) {}

  void step(Generation& g, int64_t prompt_rows) {
    const Generator::Part part{&g, static_cast<int>(std::min(g.unread(), prompt_rows))};
    (void)generator.step({&part, 1});
  }

  Engine engine;
  Generator generator;
};

struct Text {
  std::vector<TokenId> prompt;
  DecodeOptions decode;

  [[nodiscard]] GenerationOptions options(Scribe& scribe) const {
    GenerationOptions options = decode.generation(static_cast<int64_t>(prompt.size()));
    scribe.attach(options);
    return options;
  }
};

void check_same(const Transcript& got, const Transcript& want) {
  CHECK(got.in_order);
  CHECK(got.first_difference(want) == -1);
  CHECK(got.result.ids == want.result.ids);
}

/// After `steps` steps the text is saved and copied; bytes and copy go on to the same end as the text itself.
/// False: it has come to its end before.
bool check_interrupted(const Subject& subject, const Text& text, int steps, const Transcript& want) {
  const int k = text.decode.mtp;
  Place here(subject.model(), subject.session(k + 1, 2), text.decode.generator());
  Place there(subject.model(), subject.session(k + 3, 1 + steps % 3), text.decode.generator());
  const int64_t ctx_size = here.engine.options().ctx_size;
  Running first{std::make_unique<Sequence>(here.engine), nullptr,
                std::make_unique<Scribe>(subject.model().config().vocab_size)};
  first.generation = std::make_unique<Generation>(*first.sequence, text.prompt, text.options(*first.scribe));
  first.reserve(text.decode.generation(0), ctx_size);
  for (int i = 0; i < steps && !first.generation->is_finished(); ++i) here.step(*first.generation, 4);
  if (first.generation->is_finished()) {
    here.generator.leave(*first.generation);
    return false;
  }

  const std::vector<std::byte> saved = here.generator.save(*first.generation);
  Running second{std::make_unique<Sequence>(here.engine), nullptr, std::make_unique<Scribe>(*first.scribe)};
  second.generation = here.generator.copy(*first.generation, *second.sequence, text.options(*second.scribe));
  REQUIRE(second.generation != nullptr);
  second.reserve(text.decode.generation(0), ctx_size);
  Running third{std::make_unique<Sequence>(there.engine), nullptr, std::make_unique<Scribe>(*first.scribe)};
  third.generation = there.generator.restore(*third.sequence, saved, text.options(*third.scribe));
  third.reserve(text.decode.generation(0), ctx_size);
  CHECK(third.generation->ids() == first.generation->ids());
  CHECK(third.generation->unread() == first.generation->unread());

  for (const auto& [place, running] :
       {std::pair(&here, &second), std::pair(&here, &first), std::pair(&there, &third)}) {
    Generation& g = *running->generation;
    while (!g.is_finished()) place->step(g, 5);
    place->generator.leave(g);
    CHECK(g.stop_reason() == StopReason::kLength);
    check_same(running->scribe->of(g), want);
  }
  // The drafter goes on where it stood: the same drafts are made.
  if (k > 0) {
    CHECK(second.generation->statistics().drafted == third.generation->statistics().drafted);
    CHECK(second.generation->statistics().accepted == third.generation->statistics().accepted);
  }
  return true;
}

}  // namespace

TEST_CASE("A text that was saved or copied goes on as it would have", "[saved]") {
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) {
    const Subject subject(architecture);
    const auto prompt = random_ids(9, 262, 3);
    const std::vector<Transcript> known = subject.known(prompt, 12);
    for (int k = 0; k <= (subject.model().has_mtp() ? 4 : 0); ++k) {
      for (const bool sampled : {false, true}) {
        const Text text{prompt, drafting_options(12, k, sampled, known)};
        int steps = 0;
        while (check_interrupted(subject, text, steps, known[sampled ? 1 : 0])) ++steps;
        CHECK(steps >= 5);
      }
    }
  }
}

TEST_CASE("Drafts of the MTP layer go on across the end of a page", "[saved]") {
  const Subject subject("qwen35moe");
  for (const int prompt_tokens : {kPagePositions - 1, kPagePositions}) {
    const auto prompt = random_ids(prompt_tokens, 262, 3);
    const std::vector<Transcript> known = subject.known(prompt, 8);
    DecodeOptions decode = drafting_options(8, 3, /*sampled=*/false, known);
    decode.forced_continuation = {};
    const Text text{prompt, decode};
    for (const int steps : {kPagePositions / 4, kPagePositions / 4 + 1, kPagePositions / 4 + 2})
      CHECK(check_interrupted(subject, text, steps, known[0]));
  }
}

TEST_CASE("What was asked for before a text was saved may be more than is asked for after", "[saved]") {
  const Subject subject("qwen35moe");
  const Text text{random_ids(9, 262, 3), drafting_options(12, 0, false, {})};
  Place place(subject.model(), subject.session(1, 2), text.decode.generator());
  Scribe scribe(subject.model().config().vocab_size);
  Sequence sequence(place.engine), other(place.engine);
  REQUIRE(sequence.reserve(64));
  Generation g(sequence, text.prompt, text.options(scribe));
  while (g.ids().size() < 5) place.step(g, 64);
  GenerationOptions options;
  options.max_new_tokens = 5;
  const auto restored = place.generator.restore(other, place.generator.save(g), options);
  CHECK(restored->is_finished());
  CHECK(restored->stop_reason() == StopReason::kLength);
  CHECK(restored->ids() == g.ids());
  place.generator.leave(*restored);
  place.generator.leave(g);
}

TEST_CASE("A saved text that is damaged or somebody else's is refused in one line", "[saved]") {
  const Subject subject("qwen35moe"), stranger("qwen35moe", 2);
  const auto prompt = random_ids(9, 262, 3);
  const std::vector<Transcript> known = subject.known(prompt, 12);
  const Text text{prompt, drafting_options(12, 2, false, known)};
  Place place(subject.model(), subject.session(3, 2), text.decode.generator());
  Scribe scribe(subject.model().config().vocab_size);
  Sequence sequence(place.engine);
  REQUIRE(sequence.reserve(64));
  Generation g(sequence, text.prompt, text.options(scribe));
  while (g.ids().size() < 5) place.step(g, 64);
  const std::vector<std::byte> saved = place.generator.save(g);

  const auto refused = [&](Place& there, const std::vector<std::byte>& bytes, const std::string& why) {
    Sequence fresh(there.engine);
    const int free_pages = there.engine.free_pages();
    try {
      (void)there.generator.restore(fresh, bytes, text.options(scribe));
      FAIL("taken: " << why);
    } catch (const InputError& error) {
      INFO(error.what());
      CHECK_THAT(error.what(), Catch::Contains(why));
      CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos);
    }
    CHECK(fresh.length() == 0);
    CHECK(there.engine.free_pages() == free_pages);
  };
  // A byte of each part: the header, the sequence, the text, the checksum.
  for (const size_t at : {size_t{20}, saved.size() / 2, saved.size() - 200, saved.size() - 1}) {
    std::vector<std::byte> bytes = saved;
    bytes[at] ^= std::byte{1};
    refused(place, bytes, "damaged");
  }
  refused(place, {saved.begin(), saved.begin() + 40}, "cut off");
  refused(place, {saved.begin(), saved.end() - 7}, "bytes");
  {
    std::vector<std::byte> bytes = saved;
    bytes[0] = std::byte{'X'};
    refused(place, bytes, "is none");
  }
  // A whole one with other contents.
  const auto forged = [&](size_t at, std::byte value) {
    std::vector<std::byte> bytes = saved;
    bytes[at] = value;
    const std::string checksum = sha256_hex(std::span(bytes).first(bytes.size() - 64));
    std::memcpy(&bytes[bytes.size() - 64], checksum.data(), 64);
    return bytes;
  };
  uint64_t sequence_bytes = 0;
  std::memcpy(&sequence_bytes, &saved[16], sizeof sequence_bytes);
  const size_t prompt_at = 24 + sequence_bytes;
  refused(place, forged(prompt_at + 7, std::byte{1}), "cut off");         // the prompt's length
  refused(place, forged(prompt_at + 8 + 3, std::byte{0x7f}), "damaged");  // a token
  refused(place, forged(prompt_at + 8 + 36, std::byte{4}), "cut off");    // one new token less
  refused(place, forged(16 + 8 + 80, std::byte{0xff}), "checksum");       // in the sequence, which has its own
  {
    Place there(stranger.model(), subject.session(3, 2), text.decode.generator());
    refused(there, saved, "another model");
  }
  {
    SessionOptions session = subject.session(3, 2);
    session.kv_type = KvType::kF32;
    Place there(subject.model(), session, text.decode.generator());
    refused(there, saved, "--kv-type");
  }
  {
    SessionOptions session = subject.session(3, 2);
    session.ctx_size = 14;
    Place there(subject.model(), session, text.decode.generator());
    refused(there, saved, "--ctx-size");
  }
  // Nothing of all that has touched the text that was saved.
  while (!g.is_finished()) place.step(g, 64);
  place.generator.leave(g);
  CHECK(g.stop_reason() == StopReason::kLength);
}

}  // namespace foretoken::test
