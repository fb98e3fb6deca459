#include "mtp/ngram_drafter.h"

#include <catch2/catch.hpp>
#include <vector>

#include "kernels/base/error.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

namespace foretoken::test {
namespace {

using Tokens = std::vector<TokenId>;

class Subject {
 public:
  Subject() {
    small_model("qwen3moe").write(folder_.file("model.gguf"));
    model_.emplace(Model::load(folder_.file("model.gguf"), {}));
    SessionOptions options;
    options.ctx_size = 64;
    options.parallel = 2;
    options.max_window = 4;
    options.threads = 1;
    engine_.emplace(*model_, options);
  }
  [[nodiscard]] Engine& engine() { return *engine_; }

 private:
  TempFolder folder_;
  std::optional<Model> model_;
  std::optional<Engine> engine_;
};

void follow(NgramDrafter& drafter, Sequence& sequence, const Tokens& ids) {
  KnownTokens known;
  known.sequence = &sequence;
  known.ids = ids;
  (void)drafter.follow({&known, 1});
}

DraftWindow extend(NgramDrafter& drafter, Sequence& sequence, int times, Tokens drafts = {}) {
  DraftWindow window;
  window.sequence = &sequence;
  window.confidences.assign(drafts.size(), 0.5f);
  window.drafts = std::move(drafts);
  DraftWindow* const windows[] = {&window};
  for (int i = 0; i < times; ++i) (void)drafter.extend(windows);
  CHECK(window.confidences.size() == window.drafts.size());
  return window;
}

TEST_CASE("n-gram drafter: each sequence drafts from its own text", "[ngram]") {
  Subject subject;
  NgramDrafter drafter(subject.engine());
  Sequence a(subject.engine()), b(subject.engine());
  follow(drafter, a, {1, 2, 3, 4, 5});
  follow(drafter, b, {1, 2, 9, 8});
  CHECK_FALSE(drafter.offers(a));
  CHECK(extend(drafter, a, 2).drafts.empty());
  follow(drafter, a, {1, 2});
  follow(drafter, b, {1, 2});
  CHECK(drafter.offers(a));
  CHECK(extend(drafter, a, 3).drafts == Tokens{3, 4, 5});
  CHECK(extend(drafter, b, 3).drafts == Tokens{9, 8, 1});
  // Drafts of somebody else are gone on from, and leave no trace.
  CHECK(extend(drafter, a, 1, {7, 3, 4}).drafts == Tokens{7, 3, 4, 5});
  CHECK(extend(drafter, a, 1, {7, 7}).drafts == Tokens{7, 7});
  CHECK(drafter.index(a).size() == 7);
  drafter.leave(a);
  CHECK(drafter.index(a).size() == 0);
  CHECK_FALSE(drafter.offers(a));
  CHECK(drafter.offers(b));
}

TEST_CASE("n-gram drafter: saved, restored and copied", "[ngram]") {
  Subject subject;
  NgramDrafter drafter(subject.engine());
  Sequence a(subject.engine()), b(subject.engine());
  follow(drafter, a, {5});
  std::vector<std::byte> saved;
  drafter.save(a, saved);
  drafter.leave(a);
  std::span<const std::byte> from = saved;
  drafter.restore(a, from);
  CHECK(from.empty());
  CHECK(drafter.index(a).size() == 1);
  follow(drafter, a, {1, 5, 1});
  drafter.copy(a, b);
  CHECK(extend(drafter, b, 2).drafts == extend(drafter, a, 2).drafts);
  CHECK(extend(drafter, b, 1).drafts == Tokens{5});

  // A text longer than the sequence's, an id that there is not, and bytes that are missing.
  saved.clear();
  drafter.save(a, saved);
  from = saved;
  CHECK_THROWS_AS(drafter.restore(b, from), InputError);
  drafter.leave(a);
  follow(drafter, a, {1 << 20});
  saved.clear();
  drafter.save(a, saved);
  from = saved;
  CHECK_THROWS_AS(drafter.restore(b, from), InputError);
  from = std::span<const std::byte>(saved).first(saved.size() - 1);
  CHECK_THROWS_AS(drafter.restore(b, from), InputError);
}

}  // namespace
}  // namespace foretoken::test
