#include "engine/text/grammar/grammar.h"

#include <catch2/catch.hpp>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/text/grammar/matcher.h"
#include "kernels/base/error.h"

namespace foretoken {
namespace {

using Json = nlohmann::ordered_json;

std::shared_ptr<const TokenTrie> no_tokens() {
  static const auto trie = std::make_shared<const TokenTrie>(std::vector<std::string_view>{}, std::vector<TokenId>{});
  return trie;
}

/// 'y': the whole text matches; 'p': it is the beginning of one that does; 'n': neither.
char judge(const Grammar& grammar, std::string_view text) {
  GrammarMatcher matcher(std::make_shared<const Grammar>(grammar), no_tokens());
  const GrammarMatcher::State state = matcher.accept_bytes(matcher.start(), text);
  if (state == GrammarMatcher::kDead) return 'n';
  return matcher.is_complete(state) ? 'y' : 'p';
}

struct Verdict {
  char expected;
  std::string text;
};

void check_table(const std::string& gbnf, const std::vector<Verdict>& table) {
  const Grammar grammar = Grammar::parse(gbnf);
  for (const Verdict& line : table) {
    INFO(gbnf << "\n" << line.text);
    CHECK(judge(grammar, line.text) == line.expected);
  }
}

TEST_CASE("Grammars accept what their tables say", "[grammar]") {
  check_table("root ::= \"ab\" | \"ac\"", {{'p', ""}, {'p', "a"}, {'y', "ab"}, {'y', "ac"}, {'n', "ad"}, {'n', "abc"}});
  check_table("root ::= [a-c]+ [^x-z]?",
              {{'y', "a"}, {'y', "abcq"}, {'n', "x"}, {'n', "ax"}, {'y', "a\xc3\xa9"}, {'n', "aqq"}});
  check_table("root ::= \"a\"* (\"b\" | \"c\"){2} \"d\"{1,} \"e\"{0,2}",
              {{'p', "aa"}, {'p', "bc"}, {'y', "bcd"}, {'y', "abbddee"}, {'n', "bdd"}, {'n', "bcdeee"}});
  check_table("# a comment\nroot ::= item (\",\" item)* # behind\nitem ::= \"x\" |\n  \"y\"\n  | \"z\"\n",
              {{'y', "x"}, {'y', "x,y,z"}, {'p', "x,"}, {'n', "x,,"}});
  check_table("root ::= \"(\" root \")\" | \"\"", {{'y', ""}, {'y', "(())"}, {'p', "(()"}, {'n', "())"}});
  check_table("root ::= \"a\" root | \"a\"", {{'y', std::string(5000, 'a')}, {'n', "b"}});
  check_table("root ::= .",
              {{'y', "\xf0\x9f\x98\x80"}, {'p', "\xf0\x9f"}, {'n', "\x80"}, {'n', "\xed\xa0\x80"}, {'n', "\xff"}});
  check_table(
      "root ::= [\\u00e9-\\u2028\\U0001F600]",
      {{'y', "\xc3\xa9"}, {'n', "\xc3\xa8"}, {'y', "\xe2\x80\xa8"}, {'n', "\xe2\x80\xa9"}, {'y', "\xf0\x9f\x98\x80"}});
  check_table("root ::= \"\\n\\t\\\"\\\\\\x41\" [\\]\\-]", {{'y', "\n\t\"\\A]"}, {'y', "\n\t\"\\A-"}});
  check_table("root ::= dead-end | \"ok\"\ndead-end ::= \"x\" [] | \"x\" dead-end", {{'n', "x"}, {'y', "ok"}});
  check_table("root ::= opt opt \"x\"\nopt ::= \"a\"?", {{'y', "x"}, {'y', "aax"}, {'n', "aaa"}});
}

TEST_CASE("Grammars that are wrong are refused by name", "[grammar]") {
  const auto refused = [](const std::string& gbnf, const std::string& why) {
    INFO(gbnf.substr(0, 200));
    CHECK_THROWS_WITH(Grammar::parse(gbnf), Catch::StartsWith("grammar: ") && Catch::Contains(why));
  };
  refused("", "no rule \"root\"");
  refused("root ::= other", "line 1: the rule \"other\" is not there");
  refused("root ::= \"a", "ends within");
  refused("root ::= [a", "ends within");
  refused("root ::= (\"a\"", "\")\"");
  refused("root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule \"root\" is there twice");
  refused("root = \"a\"", "::=");
  refused("root ::= root \"a\" | \"b\"", "left recursion");
  refused("root ::= a\na ::= b? root\nb ::= \"x\"", "left recursion");
  refused("root ::= (\"\")* root \"x\"", "left recursion");
  refused("root ::= \"x\" root", "no text matches");
  refused("root ::= []", "no text matches");
  refused("root ::= \"a\"{3,2}", "before its begin");
  refused("root ::= ((((\"a\"{9999}){9999}){9999}){9999})", "too large");
  refused("root ::= \"a\"**", "repetition of a repetition");
  refused("root ::= [z-a]", "before its begin");
  refused("root ::= \"\\q\"", "escape");
  refused("root ::= <think>", "not supported");
  refused("root ::= " + std::string(5000, '('), "nested too deeply");
  refused("root ::= \"\xff\"", "UTF-8");
}

TEST_CASE("Ambiguous grammars are bounded", "[grammar]") {
  // Two ways for each letter, and all of them are the same state.
  const Grammar two = Grammar::parse("root ::= (\"a\" | \"a\")* \"b\"");
  CHECK(judge(two, std::string(100000, 'a') + "b") == 'y');
  // 2^n stacks if each way had its own.
  const Grammar deep = Grammar::parse("root ::= \"\" | \"a\" root \"b\" | \"a\" root \"c\"");
  CHECK_THROWS_WITH(judge(deep, std::string(5000, 'a')), Catch::StartsWith("grammar: it has too many"));
}

// Every token tried alone says what the mask says.
void check_masks(const std::string& gbnf, const std::shared_ptr<const TokenTrie>& trie, uint32_t seed, int length) {
  INFO(gbnf);
  const auto grammar = std::make_shared<const Grammar>(Grammar::parse(gbnf));
  GrammarMatcher matcher(grammar, trie), plain(grammar, trie);
  std::mt19937 random(seed);
  GrammarMatcher::State state = matcher.start(), other = plain.start();
  for (int n = 0; n < length; ++n) {
    const auto mask = matcher.mask(state);
    std::vector<TokenId> allowed;
    for (TokenId id = 0; id < trie->vocab_size(); ++id) {
      const bool in_mask = (mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0;
      const bool accepted = plain.accept(other, id) != GrammarMatcher::kDead;
      if (in_mask != accepted) CHECK(std::pair(id, in_mask) == std::pair(id, accepted));
      if (accepted && !trie->bytes(id).empty()) allowed.push_back(id);
    }
    if (allowed.empty()) break;
    const TokenId next = allowed[random() % allowed.size()];
    state = matcher.accept(state, next);
    other = plain.accept(other, next);
  }
}

std::shared_ptr<const TokenTrie> demo_trie() {
  static const auto trie =
      TokenTrie::build(Tokenizer::load(GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf")));
  return trie;
}

const char* const kArithmetic =
    "root ::= expr \"\\n\"\nexpr ::= term ([-+*/] term)*\nterm ::= [a-z] [a-z0-9_]* | [0-9]+ | \"(\" expr \")\"\n";

TEST_CASE("Masks are what every token tried alone says", "[grammar]") {
  const std::string any = json_schema_to_gbnf(Json::object());
  const std::string person = json_schema_to_gbnf(Json::parse(
      R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
          "tags": {"type": "array", "items": {"enum": ["a", "b c", 1]}}}, "required": ["name", "tags"], "additionalProperties": true})"));
  for (uint32_t seed = 0; seed < 3; ++seed) {
    check_masks(any, demo_trie(), seed, 12);
    check_masks(person, demo_trie(), seed, 12);
    check_masks(kArithmetic, demo_trie(), seed, 12);
    check_masks("root ::= [^\\n]* \"\\n\" | .+ \"end\"", demo_trie(), seed, 8);
    check_masks("root ::= \"a\" root \"b\" | \"\"", demo_trie(), seed, 6);
  }
}

// Characters of all lengths, parts of them, and bytes that are none, joined at random.
std::shared_ptr<const TokenTrie> mixed_trie() {
  const std::vector<std::string> parts = {"a",
                                          "b",
                                          "Z",
                                          "0",
                                          " ",
                                          "\n",
                                          "\"",
                                          "\\",
                                          "<",
                                          "</think>",
                                          "\u00e9",
                                          "\u07ff",
                                          "\u0800",
                                          "\ud7ff",
                                          "\ue000",
                                          "\uffff",
                                          "\xe4\xb8",
                                          "\xf0",
                                          "\xf0\x9f",
                                          "\U0001f600",
                                          "\U0010ffff",
                                          "\xc0\x80",
                                          "\xed\xa0\x80",
                                          "\xff",
                                          "\x80",
                                          "\xf4\x90\x80\x80"};
  std::mt19937 random(7);
  std::set<std::string> words;
  for (int byte = 0; byte < 256; ++byte) words.insert(std::string(1, static_cast<char>(byte)));
  while (words.size() < 4000) {
    std::string word;
    // Mostly text, so that there are subtrees of nothing else.
    for (int n = 1 + static_cast<int>(random() % 6); n > 0; --n)
      word += parts[random() % (random() % 8 == 0 ? parts.size() : 5)];
    words.insert(word);
  }
  static const std::vector<std::string> kept(words.begin(), words.end());
  return std::make_shared<const TokenTrie>(std::vector<std::string_view>(kept.begin(), kept.end()),
                                           std::vector<TokenId>{});
}

TEST_CASE("Subtrees that are allowed as a whole are allowed token by token", "[grammar]") {
  const auto trie = mixed_trie();
  int num_texts = 0;
  for (const TokenTrie::Node& node : trie->nodes()) num_texts += node.texts >= 0 ? 1 : 0;
  REQUIRE(num_texts > 50);  // there is something to be shown
  for (const char* gbnf :
       {"root ::= \"\\\"\" [^\"\\\\]* \"\\\"\"", "root ::= [^<]* \"</think>\" [ab]{3}",
        "root ::= [a-z]{0,3} [^a]{2} \"!\"", "root ::= .{2,5}", "root ::= [\\u00e9-\\uffff]* \"a\"",
        "root ::= text \"<\"\ntext ::= ([^<] | \"<\" [^/])*", "root ::= (\"a\" | \"b\" | [^ab])* \"0\"{3}",
        // Texts of counted length, and what may follow them; two ways on for the same characters.
        "root ::= \"\\\"\" [^\"\\\\]{0,4} \"\\\"\"", "root ::= char{2,5} [<\\n]\nchar ::= [^\"\\\\] | \"\\\\\" [\"n0]",
        "root ::= [a-z]{0,3} [a-z0-9]{0,2} \"!\"", "root ::= ([ab]{1,2} \" \"){1,3} \"<\"", "root ::= [ab]{0,3}",
        "root ::= .{1,2}", "root ::= ([ab] | [b-zZ]){1,4} \"0\"", "root ::= [^<]{0,3} ([^a<] | \"<\")",
        "root ::= tag{1,2} \"a\"\ntag ::= \"<\" [^<]{1,2}", "root ::= [^\\U0001f600]*",
        "root ::= [^\\x00-\\x7f]* \"a\"? [^\\u0080-\\u07ff]{1,4}"}) {
    for (uint32_t seed = 0; seed < 4; ++seed) check_masks(gbnf, trie, seed, 6);
  }
}

// Schemas and texts: 'y' for what they allow, 'n' for what they forbid.
TEST_CASE("Schemas allow what they say", "[grammar]") {
  const auto check = [](const std::string& schema, const std::vector<Verdict>& table) {
    const Grammar grammar = Grammar::from_json_schema(Json::parse(schema));
    for (const Verdict& line : table) {
      INFO(schema << "\n" << line.text);
      CHECK(judge(grammar, line.text) == line.expected);
      if (line.expected == 'y') CHECK(Json::accept(line.text));
    }
  };
  check("{}", {{'y', "{\"a\": [1, 2.5e3, null, true, \"x\\n\\u00e9\"]}"},
               {'y', "[]"},
               {'y', "-0.5"},
               {'n', "01"},
               {'n', "{a"},
               {'n', "\"\n"}});
  check(R"({"type": "object"})", {{'y', "{}"}, {'y', "{\"a\": {}}"}, {'n', "["}});
  check(R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]})",
        {{'y', "{\"a\": 1}"},
         {'y', "{\"a\": 1, \"b\": \"\"}"},
         {'n', "{}"},
         {'n', "{\"b\""},
         {'n', "{\"a\": 1, \"c\""},
         {'n', "{\"a\": \"1"}});
  check(R"({"properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": false})", {{'y', "{}"},
                                                                                          {'y', "{\"a\":1}"},
                                                                                          {'y', "{\"b\":1,\"c\":2}"},
                                                                                          {'y', "{\"a\":1,\"c\":2}"},
                                                                                          {'n', "{\"c\":1,\"a\""},
                                                                                          {'n', "{\"a\":1,}"}});
  check(R"({"properties": {"ab": {"type": "null"}}, "additionalProperties": {"type": "integer"}})",
        {{'y', "{\"ab\": null, \"abc\": 1, \"a\": 2}"},
         {'y', "{\"x\": 1}"},
         {'n', "{\"ab\": 1"},
         {'n', "{\"x\": 1, \"ab\": n"},
         {'y', "{\"ab\": null}"},
         {'y', "{\"\": 0}"}});
  check(R"({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3})",
        {{'n', "[]"}, {'y', "[true]"}, {'y', "[true, false, true]"}, {'n', "[true,true,true,"}, {'n', "[1"}});
  check(R"({"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": false})",
        {{'y', "[1, \"x\"]"}, {'n', "[1]"}, {'n', "[1, \"y"}});
  check(R"({"enum": ["a\"b", 1, null, {"k": [true]}]})",
        {{'y', "\"a\\\"b\""}, {'y', "1"}, {'y', "null"}, {'y', "{\"k\":[true]}"}, {'n', "2"}});
  check(R"({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]})",
        {{'y', "12"}, {'y', "\"ab\""}, {'y', "\"\\u00e9\u00e9\""}, {'n', "\"abc"}});
  check(R"({"type": ["string", "null"], "minLength": 1})", {{'y', "null"}, {'y', "\"a\""}, {'n', "\"\""}, {'n', "1"}});
  check(R"({"type": "string", "pattern": "^[a-f\\d]{2}(-|\\.)x?$"})",
        {{'y', "\"a1-\""}, {'y', "\"0f.x\""}, {'n', "\"ag"}, {'n', "\"a1x"}});
  check(R"({"type": "string", "format": "date-time"})",
        {{'y', "\"2024-02-29T12:30:00Z\""}, {'n', "\"2024-13"}, {'n', "\"2024-12-01T25"}});
  check(
      R"({"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "additionalProperties": false}}, "$ref": "#/$defs/n"})",
      {{'y', "{\"next\": {\"next\": {}}}"}, {'n', "{\"next\": 1"}});
  check(
      R"({"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}]})",
      {{'y', "{\"a\": 1, \"b\": 2}"}, {'n', "{\"a\": 1}"}});
  check("true", {{'y', "[{}]"}});
}

TEST_CASE("Bounds of whole numbers are kept exactly", "[grammar]") {
  std::mt19937 random(5);
  for (int n = 0; n < 40; ++n) {
    int64_t low = static_cast<int64_t>(random() % 2500) - 1200, high = static_cast<int64_t>(random() % 2500) - 1200;
    if (low > high) std::swap(low, high);
    if (n == 0) low = high = 0;
    const Grammar grammar = Grammar::from_json_schema(Json{{"type", "integer"}, {"minimum", low}, {"maximum", high}});
    const auto shared = std::make_shared<const Grammar>(grammar);
    GrammarMatcher matcher(shared, no_tokens());
    for (int64_t value = -1300; value <= 1400; ++value) {
      const auto state = matcher.accept_bytes(matcher.start(), std::to_string(value));
      const bool accepted = state != GrammarMatcher::kDead && matcher.is_complete(state);
      if (accepted != (low <= value && value <= high)) FAIL(low << " <= " << value << " <= " << high);
    }
  }
  const Grammar above = Grammar::from_json_schema(Json{{"type", "integer"}, {"exclusiveMinimum", 98}});
  CHECK(judge(above, "98") != 'y');
  CHECK(judge(above, "99") == 'y');
  CHECK(judge(above, "123456789") == 'y');
  CHECK(judge(above, "-") == 'n');
}

TEST_CASE("What a schema asks for and is not supported is named", "[grammar]") {
  const auto refused = [](const std::string& schema, const std::string& place, const std::string& what) {
    INFO(schema);
    CHECK_THROWS_WITH(json_schema_to_gbnf(Json::parse(schema)),
                      Catch::StartsWith("json schema: " + place) && Catch::Contains(what));
  };
  refused(R"({"type": "object", "patternProperties": {}})", "#: ", "patternProperties");
  refused(R"({"properties": {"a": {"type": "array", "uniqueItems": true}}})", "#/properties/a: ", "uniqueItems");
  refused(R"({"type": "number", "minimum": 1})", "#: ", "minimum");
  refused(R"({"not": {}})", "#: ", "not");
  refused(R"({"if": {}, "then": {}})", "#: ", "if");
  refused(R"({"type": "string", "format": "email"})", "#: ", "email");
  refused(R"({"type": "string", "pattern": "abc"})", "#: ", "between ^ and $");
  refused(R"({"type": "string", "pattern": "^(?=a)$"})", "#: ", "look around");
  refused(R"({"$ref": "http://x/y"})", "#: ", "$ref");
  refused(R"({"$ref": "#/nowhere"})", "#: ", "nowhere");
  refused(R"({"type": "thing"})", "#: ", "thing");
  refused(R"({"minItems": "x"})", "#: ", "minItems");
  refused("3", "#: ", "schema");
  CHECK_THROWS_AS(json_schema_to_gbnf(Json::parse(R"({"$ref": "#"})")), InputError);
}

// foretoken's vocabularies go to 248,320 tokens; run by name: test_engine "[mask-time]".
TEST_CASE("Time of masks over a large vocabulary", "[.][mask-time]") {
  constexpr int kTokens = 248320;
  std::mt19937 random(1);
  std::vector<std::string> words;
  for (int byte = 0; byte < 256; ++byte) words.emplace_back(1, static_cast<char>(byte));
  for (TokenId id = 0; id < demo_trie()->vocab_size(); ++id) words.emplace_back(demo_trie()->bytes(id));
  const size_t base = words.size();
  while (words.size() < kTokens) {
    std::string word;
    for (int parts = 2 + static_cast<int>(random() % 2); parts > 0; --parts) word += words[random() % base];
    words.push_back(word.substr(0, 1 + random() % 16));
  }
  std::vector<std::string_view> pieces(words.begin(), words.end());
  // This thread's time: others may be busy.
  const auto clock = [] {
    timespec now = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
  };
  const auto ms = [](double begin, double end) { return end - begin; };
  auto begin = clock();
  const auto trie = std::make_shared<const TokenTrie>(pieces, std::vector<TokenId>{});
  WARN("tree of " << trie->num_nodes() << " nodes: " << ms(begin, clock()) << " ms");
  const std::string schema = R"({"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"},
      "size": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}}, "required": ["name", "size", "tags"]}})";
  for (const std::string& gbnf :
       {json_schema_to_gbnf(Json::parse(schema)), json_schema_to_gbnf(Json::object()), std::string(kArithmetic),
        json_schema_to_gbnf(Json::parse(R"({"type": "string", "minLength": 20, "maxLength": 400})")),
        std::string("root ::= ([^<] | \"<\" [^/])* \"</think>\"")}) {
    begin = clock();
    GrammarMatcher matcher(std::make_shared<const Grammar>(Grammar::parse(gbnf)), trie);
    WARN("grammar: " << ms(begin, clock()) << " ms");
    double sum = 0, largest = 0, rest = 0;
    int count = 0, text_seed = 0, num_slow = 0;
    for (; text_seed < 4; ++text_seed) {
      GrammarMatcher::State state = matcher.start();
      for (int n = 0; n < 250; ++n, ++count) {
        begin = clock();
        const auto mask = matcher.mask(state);
        const double time = ms(begin, clock());
        sum += time;
        if (text_seed > 0) rest += time;
        largest = std::max(largest, time);
        num_slow += time > 1.5 ? 1 : 0;
        std::vector<TokenId> allowed;
        for (size_t id = 0; id < kTokens; ++id) {
          if ((mask[id / 64] >> (id % 64) & 1) != 0) allowed.push_back(static_cast<TokenId>(id));
        }
        if (allowed.empty()) break;
        state = matcher.accept(state, allowed[random() % allowed.size()]);
      }
    }
    WARN(count << " masks, " << num_slow << " of them above 1.5 ms: mean " << sum / count << " ms, largest " << largest
               << " ms; mean behind the first text " << rest / (count - 250));
  }
}

}  // namespace
}  // namespace foretoken
