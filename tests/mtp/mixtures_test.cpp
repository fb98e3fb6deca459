#include "tests/engine/model/mixtures.h"

#include <catch2/catch.hpp>

#include "engine/model/model.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/mtp/transcript.h"

// Files of every kind that people publish: the same text and the same bits of every logit with drafts and without.

namespace foretoken {
namespace {

TEST_CASE("files of every mixture of types decode alike with three drafts and without") {
  const test::TempFolder folder;
  const std::string path = folder.file("model.gguf");
  for (const test::Mixture& mixture : test::mixtures()) {
    if (!test::unsupported_types(mixture).empty()) continue;
    INFO(mixture.name);
    const test::RandomModel spec = test::model_of(mixture);
    spec.write(path);
    const Model model = Model::load(path, {});
    const std::vector<TokenId> prompt = test::random_ids(7, spec.vocab_size, 5);
    SessionOptions options;
    options.ctx_size = 32;
    options.threads = 2;
    const test::Transcript plain = test::transcribe(model, options, prompt, test::drafting_options(10, 0, false, {}));
    const test::Transcript drafted =
        test::transcribe(model, options, prompt, test::drafting_options(10, 3, false, {plain}));
    CHECK(plain.result.ids.size() == 10);
    CHECK(drafted.first_difference(plain) == -1);
    CHECK(drafted.result.ids == plain.result.ids);
  }
}

}  // namespace
}  // namespace foretoken
