// Grammars, biases and penalties with drafts and in company: the text is the same as one by one.

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "mtp/decoder.h"
#include "mtp/scheduler.h"

namespace foretoken {
namespace {

using Json = nlohmann::ordered_json;

const Model& demo() {
  static const Model model = Model::load(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf", {});
  return model;
}

std::shared_ptr<GrammarMatcher> matcher(const std::string& gbnf) {
  static const auto trie = TokenTrie::build(demo().tokenizer());
  return std::make_shared<GrammarMatcher>(std::make_shared<const Grammar>(Grammar::parse(gbnf)), trie);
}

struct Setting {
  std::string name;
  LogitRules rules;
  SamplingOptions sampling;
};

std::vector<Setting> settings() {
  std::vector<Setting> all;
  const auto add = [&](const std::string& name) -> Setting& {
    all.push_back({name, {}, {}});
    return all.back();
  };
  // What the model would write anyway, for the most part, so that drafts are right within it.
  add("lines of code").rules.grammar = matcher("root ::= ([ -~] | \"\\n\")*");
  add("no blank").rules.grammar = matcher("root ::= [^ ]*");
  add("json").rules.grammar = matcher(json_schema_to_gbnf(Json::object()));
  Setting& sampled = add("schema, sampled");
  sampled.rules.grammar = matcher(json_schema_to_gbnf(Json::parse(
      R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}}, "required": ["name", "n"]})")));
  sampled.sampling.temperature = 0.8f;
  sampled.sampling.seed = 7;
  Setting& penalties = add("penalties");
  penalties.rules.repeat_penalty = 1.3f;
  penalties.rules.frequency_penalty = 0.2f;
  penalties.rules.presence_penalty = 0.1f;
  penalties.rules.repeat_last_n = 12;
  Setting& bias = add("bias");
  bias.rules.bias = {{demo().tokenizer().encode("\n", false)[0], -3.0f},
                     {demo().tokenizer().encode("(", false)[0], 2.0f}};
  bias.sampling.temperature = 0.7f;
  bias.sampling.typical_p = 0.9f;
  bias.sampling.seed = 3;
  return all;
}

SessionOptions session_options(int drafts, int parallel, MoeVerify verify) {
  SessionOptions options;
  options.ctx_size = 512;
  options.max_window = drafts + 1;
  options.with_mtp = drafts > 0;
  options.parallel = parallel;
  options.moe_verify = verify;
  return options;
}

TEST_CASE("A text under rules is the same for every number of drafts and in any company", "[rules]") {
  const std::vector<TokenId> prompt = demo().tokenizer().encode("def main(argv):\n    ", false);
  int64_t accepted = 0;
  for (const Setting& setting : settings()) {
    INFO(setting.name);
    std::vector<TokenId> expected;
    for (int drafts = 0; drafts <= 4; ++drafts) {
      for (const bool ngram : {false, true}) {
        if (drafts == 0 && ngram) continue;
        const MoeVerify verify = drafts % 2 == 0 ? MoeVerify::kGrouped : MoeVerify::kPerToken;
        Session session(demo(), session_options(drafts, 1, verify));
        DecodeOptions options;
        options.max_new_tokens = 60;
        options.mtp = drafts;
        options.controller = false;
        options.draft_ngram = ngram;
        options.sampling = setting.sampling;
        options.rules = setting.rules;
        const DecodeResult result = decode(session, prompt, options);
        if (drafts == 0) expected = result.ids;
        INFO(drafts << " drafts" << (ngram ? ", n-gram" : ""));
        CHECK(result.ids == expected);
        accepted += result.statistics.accepted;
      }
    }
    CHECK_FALSE(expected.empty());
    if (setting.rules.grammar) {
      // The text, and every beginning of it, is one of the grammar.
      const auto state =
          setting.rules.grammar->accept_bytes(setting.rules.grammar->start(), demo().tokenizer().decode(expected));
      CHECK(state != GrammarMatcher::kDead);
    }
  }
  CHECK(accepted > 100);  // there was something to agree on
}

TEST_CASE("Texts under rules of their own share their steps", "[rules]") {
  const std::vector<Setting> all = settings();
  const std::vector<TokenId> prompt = demo().tokenizer().encode("class A:\n    def __init__(self", false);
  std::vector<std::vector<TokenId>> alone;
  for (const Setting& setting : all) {
    Session session(demo(), session_options(0, 1, MoeVerify::kGrouped));
    DecodeOptions options;
    options.max_new_tokens = 40;
    options.sampling = setting.sampling;
    options.rules = setting.rules;
    alone.push_back(decode(session, prompt, options).ids);
  }
  Engine engine(demo(), session_options(3, 4, MoeVerify::kGrouped));
  SchedulerOptions scheduling;
  scheduling.generator.mtp = true;
  scheduling.generator.max_drafts = 3;
  Scheduler scheduler(engine, scheduling);
  std::vector<Scheduler::Request*> requests;
  for (const Setting& setting : all) {
    GenerationOptions options;
    options.max_new_tokens = 40;
    options.max_drafts = 3;
    options.sampling = setting.sampling;
    options.rules = setting.rules;
    requests.push_back(&scheduler.add(prompt, options));
  }
  while (scheduler.step()) continue;
  for (size_t i = 0; i < all.size(); ++i) {
    INFO(all[i].name);
    CHECK(requests[i]->ids() == alone[i]);
  }
}

TEST_CASE("A text under rules goes on where it was saved or copied", "[rules]") {
  const Setting setting = settings()[2];
  const std::vector<TokenId> prompt = demo().tokenizer().encode("x = ", false);
  GenerationOptions options;
  options.max_new_tokens = 40;
  options.max_drafts = 2;
  options.rules = setting.rules;
  options.rules.repeat_penalty = 1.1f;
  const auto run = [&](bool interrupted) {
    Engine engine(demo(), session_options(2, 2, MoeVerify::kGrouped));
    Generator generator(engine, {.mtp = true, .max_drafts = 2});
    Sequence first(engine), second(engine);
    REQUIRE(first.reserve(512));
    auto text = std::make_unique<Generation>(first, prompt, options);
    const auto step = [&](Generation& g) {
      const Generator::Part part{&g, static_cast<int>(g.unread())};
      (void)generator.step({&part, 1});
    };
    while (!text->is_finished() && (!interrupted || text->ids().size() < 11)) step(*text);
    if (interrupted) {
      const std::vector<std::byte> saved = generator.save(*text);
      auto restored = generator.restore(second, saved, options);
      generator.leave(*text);
      text = std::move(restored);
      REQUIRE(second.reserve(512));
      while (!text->is_finished()) step(*text);
    }
    const std::vector<TokenId> ids = text->ids();
    generator.leave(*text);
    return ids;
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("Where a grammar ends, the text ends; where it leaves nothing, that is said", "[rules]") {
  const auto run = [](const std::string& gbnf, int drafts) {
    Session session(demo(), session_options(drafts, 1, MoeVerify::kGrouped));
    DecodeOptions options;
    options.max_new_tokens = 50;
    options.mtp = drafts;
    options.controller = false;
    options.rules.grammar = matcher(gbnf);
    const DecodeResult result = decode(session, demo().tokenizer().encode("def f(", false), options);
    return std::pair(demo().tokenizer().decode(result.ids), result.stop_reason);
  };
  for (const int drafts : {0, 3}) {
    CHECK(run("root ::= \"abc\" [0-9]{3} \"!\"", drafts).second == StopReason::kEndOfGeneration);
    CHECK(run("root ::= \"yes\"", drafts).first == "yes");
  }
}

TEST_CASE("Penalties and biases do what they say", "[rules]") {
  const std::vector<float> logits = {1.0f, 3.0f, 2.0f, -1.0f};
  const auto choose = [&](LogitRules rules, const std::vector<TokenId>& prompt) {
    RuledChoice choice(rules, prompt);
    return choice.choose(Isa::kScalar, logits.data(), 4, {}, 9);
  };
  LogitRules rules;
  rules.bias = {{1, -2.5f}};
  CHECK(choose(rules, {0}) == 2);
  rules.bias = {{1, -std::numeric_limits<float>::infinity()}, {2, -std::numeric_limits<float>::infinity()}};
  CHECK(choose(rules, {0}) == 0);
  rules = {};
  rules.repeat_penalty = 2.0f;
  CHECK(choose(rules, {1}) == 2);     // 3 / 2 < 2
  CHECK(choose(rules, {1, 2}) == 1);  // 1.5 > 1
  rules.repeat_last_n = 1;
  CHECK(choose(rules, {1, 0}) == 1);  // out of the window
  rules = {};
  rules.frequency_penalty = 0.6f;
  CHECK(choose(rules, {1}) == 1);
  CHECK(choose(rules, {1, 1}) == 2);  // 3 - 1.2
  rules = {};
  rules.presence_penalty = 1.5f;
  CHECK(choose(rules, {1, 1}) == 2);
  rules.repeat_last_n = 2;
  RuledChoice moving(rules, std::vector<TokenId>{1});
  CHECK(moving.choose(Isa::kScalar, logits.data(), 4, {}, 9) == 2);
  moving.push(0);
  moving.push(3);
  CHECK(moving.choose(Isa::kScalar, logits.data(), 4, {}, 9) == 1);
  moving.pop();
  moving.pop();
  CHECK(moving.choose(Isa::kScalar, logits.data(), 4, {}, 9) == 2);
  rules.bias = {{4, 1.0f}};
  CHECK_THROWS_AS(rules.check(4), UsageError);
  rules.bias = {{1, 1.0f}, {1, 2.0f}};
  CHECK_THROWS_AS(rules.check(4), UsageError);
}

// p = 1/2, 1/4, 1/8, 1/8: the entropy is 1.213, the surprises 0.693, 1.386, 2.079 and 2.079.
TEST_CASE("Typical-p keeps the tokens of most typical surprise", "[rules]") {
  const std::vector<float> logits = {std::log(8.0f), std::log(4.0f), std::log(2.0f), std::log(2.0f)};
  const auto chosen = [&](float typical_p) {
    SamplingOptions sampling;
    sampling.temperature = 1.0f;
    sampling.typical_p = typical_p;
    std::set<TokenId> ids;
    for (int64_t position = 0; position < 400; ++position)
      ids.insert(choose_token(Isa::kScalar, logits.data(), 4, sampling, position));
    return ids;
  };
  CHECK(chosen(0.2f) == std::set<TokenId>{1});
  CHECK(chosen(0.7f) == std::set<TokenId>{0, 1});
  CHECK(chosen(0.8f) == std::set<TokenId>{0, 1, 2});  // the lower id of equals
  CHECK(chosen(1.0f) == std::set<TokenId>{0, 1, 2, 3});
}

TEST_CASE("The most probable tokens come with their logarithms", "[rules]") {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(2.0f), std::log(3.0f)};
  const auto top = top_log_probabilities(logits.data(), 4, 2, 0);
  REQUIRE(top.size() == 3);
  CHECK(top[0].id == 3);
  CHECK(top[0].log_probability == Approx(std::log(3.0 / 8)));
  CHECK(top[1].id == 1);
  CHECK(top[2].id == 0);
  CHECK(top[2].log_probability == Approx(std::log(1.0 / 8)));
}

}  // namespace
}  // namespace foretoken
