#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/sequence/page_pool.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

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
  [[nodiscard]] static SessionOptions options(int parallel) {
    SessionOptions o;
    o.ctx_size = 600;
    o.parallel = parallel;
    o.prompt_chunk = 64;
    o.max_window = 4;
    o.threads = 2;
    return o;
  }

 private:
  TempFolder folder_;
  std::unique_ptr<Model> model_;
};

/// Runs ids through the trunk, chunks first, then windows of four of which `kept` rows are kept, and the rest one by
/// one; returns the logits of the last row.
std::vector<float> run(Engine& engine, Sequence& sequence, std::span<const TokenId> ids, int kept = 4) {
  REQUIRE(sequence.reserve(sequence.length() + static_cast<int64_t>(ids.size()) + 4));
  std::vector<float> logits;
  while (!ids.empty()) {
    const size_t count = ids.size() > 8 ? std::min<size_t>(64, ids.size() - 8) : std::min<size_t>(4, ids.size());
    const bool is_window = ids.size() <= 8;
    const Engine::Input input{&sequence, ids.first(count), is_window};
    engine.forward({&input, 1});
    const int rows = is_window ? std::min(kept, static_cast<int>(count)) : static_cast<int>(count);
    const int32_t last = rows - 1;
    engine.compute_logits({&last, 1});
    logits.assign(engine.logits(0), engine.logits(0) + engine.model().config().vocab_size);
    sequence.commit(rows);
    ids = ids.subspan(rows);
  }
  return logits;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("The page pool counts users") {
  PagePool pool(3);
  CHECK(pool.num_free() == 3);
  const int32_t a = pool.take(), b = pool.take();
  CHECK(a != b);
  pool.share(a);
  pool.drop(a);
  CHECK(pool.num_free() == 1);
  pool.drop(a);
  pool.drop(b);
  CHECK(pool.num_free() == 3);
}

TEST_CASE("A copied sequence goes on as its source does, and neither disturbs the other") {
  for (const char* architecture : {"qwen35moe", "qwen3moe"}) {
    const Subject subject(architecture);
    Engine engine(subject.model(), Subject::options(3));
    const auto prompt = random_ids(523, 262, 5), one = random_ids(20, 262, 6), other = random_ids(20, 262, 7);
    std::vector<float> want_one, want_other;
    {
      Sequence plain(engine);
      (void)run(engine, plain, prompt);
      want_one = run(engine, plain, one);
    }
    {
      Sequence plain(engine);
      (void)run(engine, plain, prompt);
      want_other = run(engine, plain, other);
    }
    Sequence source(engine);
    // The last window keeps two rows of four: there is something to replay.
    (void)run(engine, source, prompt, /*kept=*/2);
    Sequence copy(engine);
    REQUIRE(copy.copy(source, source.length()));
    CHECK(copy.length() == source.length());
    CHECK(copy.state().pages[0] == source.state().pages[0]);
    CHECK(copy.state().pages[1] == source.state().pages[1]);
    CHECK(copy.state().pages[2] != source.state().pages[2]);
    CHECK(same_bits(run(engine, copy, other), want_other));
    CHECK(same_bits(run(engine, source, one, /*kept=*/3), want_one));
  }
}

TEST_CASE("A saved sequence goes on in another engine with the same bits") {
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) {
    const Subject subject(architecture);
    const auto prompt = random_ids(300, 262, 5), rest = random_ids(20, 262, 6);
    Engine engine(subject.model(), Subject::options(1));
    std::vector<std::byte> saved;
    std::vector<float> want;
    {
      Sequence sequence(engine);
      (void)run(engine, sequence, prompt, /*kept=*/3);
      saved = sequence.save();
      want = run(engine, sequence, rest);
    }
    SessionOptions options = Subject::options(2);
    options.threads = 1;
    options.max_window = 6;
    options.isa = Isa::kScalar;
    Engine another(subject.model(), options);
    Sequence neighbour(another);
    (void)run(another, neighbour, rest);
    Sequence restored(another);
    restored.restore(saved);
    CHECK(restored.length() == 300);
    CHECK(same_bits(run(another, restored, rest), want));
  }
}

TEST_CASE("Saved sequences that are damaged or of something else are refused") {
  const Subject subject("qwen35moe"), stranger("qwen35moe", 2);
  Engine engine(subject.model(), Subject::options(1));
  std::vector<std::byte> saved;
  {
    Sequence sequence(engine);
    (void)run(engine, sequence, random_ids(30, 262, 5));
    saved = sequence.save();
  }
  Sequence sequence(engine);
  const auto refused = [&](std::vector<std::byte> bytes, const char* why) {
    CHECK_THROWS_WITH(sequence.restore(bytes), Catch::Contains(why));
  };
  for (const size_t at : {size_t{200}, saved.size() / 2, saved.size() - 1}) {
    std::vector<std::byte> bytes = saved;
    bytes[at] ^= std::byte{1};
    refused(bytes, "damaged");
  }
  refused({saved.begin(), saved.begin() + 40}, "cut off");
  refused({saved.begin(), saved.end() - 7}, "bytes");
  {
    std::vector<std::byte> bytes = saved;
    bytes[0] = std::byte{'X'};
    refused(bytes, "is none");
  }
  {
    Engine other(stranger.model(), Subject::options(1));
    Sequence there(other);
    CHECK_THROWS_WITH(there.restore(saved), Catch::Contains("another model"));
  }
  {
    SessionOptions options = Subject::options(1);
    options.kv_type = KvType::kF32;
    Engine other(subject.model(), options);
    Sequence there(other);
    CHECK_THROWS_WITH(there.restore(saved), Catch::Contains("--kv-type"));
  }
  {
    SessionOptions options = Subject::options(1);
    options.ctx_size = 20;
    Engine other(subject.model(), options);
    Sequence there(other);
    CHECK_THROWS_WITH(there.restore(saved), Catch::Contains("--ctx-size"));
  }
  sequence.restore(saved);
  CHECK(sequence.length() == 30);
}

TEST_CASE("The MTP layer's row ahead of the trunk is saved and copied, also where it begins a page") {
  const Subject subject("qwen35moe");
  SessionOptions options = Subject::options(2);
  options.with_mtp = true;
  const auto ids = random_ids(kPagePositions + 2, 262, 5);
  const auto num_hidden = static_cast<size_t>(subject.model().config().hidden_dim);
  // Row r of any call has the hidden r + 1 everywhere.
  std::vector<std::vector<float>> hidden_rows;
  std::vector<const float*> hidden;
  for (int r = 0; r < 64; ++r) hidden_rows.emplace_back(num_hidden, static_cast<float>(r + 1));
  for (const std::vector<float>& row : hidden_rows) hidden.push_back(row.data());
  const auto follow = [&](Engine& engine, Sequence& sequence, int64_t position, size_t count, int first_output) {
    const Engine::MtpInput input{&sequence, position, std::span(ids).subspan(position, count),
                                 std::span(hidden).first(count), first_output};
    engine.mtp_forward({&input, 1});
  };
  const auto next_logits = [&](Engine& engine, Sequence& sequence) {
    REQUIRE(sequence.reserve(kPagePositions + 4));
    follow(engine, sequence, kPagePositions + 1, 1, 0);
    const int32_t output = 0;
    engine.mtp_compute_logits({&output, 1});
    return std::vector<float>(engine.mtp_logits(0), engine.mtp_logits(0) + engine.model().config().vocab_size);
  };

  Engine engine(subject.model(), options), other(subject.model(), options);
  Sequence sequence(engine), copied(engine), restored(other);
  (void)run(engine, sequence, std::span(ids).first(kPagePositions));
  REQUIRE(sequence.length() == kPagePositions);
  for (int64_t position = 0; position < kPagePositions; position += 64) follow(engine, sequence, position, 64, 64);
  follow(engine, sequence, kPagePositions, 1, 1);
  REQUIRE(copied.copy(sequence, kPagePositions));
  restored.restore(sequence.save());
  const std::vector<float> want = next_logits(engine, sequence);
  CHECK(same_bits(next_logits(engine, copied), want));
  CHECK(same_bits(next_logits(other, restored), want));
}

}  // namespace foretoken::test
