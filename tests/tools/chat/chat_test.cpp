#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "tests/tools/subprocess.h"

namespace foretoken::test {
namespace {

using Catch::Matchers::Contains;
using Json = nlohmann::json;

Outcome chat(const std::string& input, std::vector<std::string> more = {}) {
  Invocation invocation;
  invocation.arguments = {"chat", "-m", kDemoModel, "-n", "12"};
  invocation.arguments.insert(invocation.arguments.end(), more.begin(), more.end());
  invocation.input = input;
  return run(invocation);
}

/// What `decode` says to this ChatML prompt.
std::string decoded(const std::string& prompt) {
  const Outcome outcome = run({"decode", "-m", kDemoModel, "-n", "12", "--parse-special", "-p", prompt, "--json", "-"});
  REQUIRE(outcome.exit_code == 0);
  return Json::parse(outcome.out)["text"];
}

std::string turn(const std::string& role, const std::string& text) {
  return "<|im_start|>" + role + "\n" + text + "<|im_end|>\n";
}
const std::string kOpened = "<|im_start|>assistant\n";

}  // namespace

TEST_CASE("A chat's answers are those of decode, turn after turn", "[chat]") {
  const std::string question = "import os\nimport sys\n\n\ndef read_lines(path):\n    return open(path).read()";
  std::string typed = question;
  for (size_t at = 0; (at = typed.find('\n', at)) != std::string::npos; at += 2) typed.insert(at, "\\");
  const TempFolder folder;
  const Outcome got =
      chat(typed + "\n/stats\ndef g():\n/stats\n/save " + folder.file("chat.json") + "\n", {"--system", "Be brief."});
  INFO(got.err);
  REQUIRE(got.exit_code == 0);
  const std::string first_prompt = turn("system", "Be brief.") + turn("user", question) + kOpened;
  const std::string first = decoded(first_prompt);
  const std::string second = decoded(turn("system", "Be brief.") + turn("user", question) + turn("assistant", first) +
                                     turn("user", "def g():") + kOpened);
  CHECK(got.out == first + "\n" + second + "\n");
  CHECK_THAT(got.err, Contains(" 0 of them from the state before"));
  CHECK_THAT(got.err, !Contains("0 of them from the state before\n0 of them"));
  const Json saved = Json::parse(read_all(folder.file("chat.json")));
  REQUIRE(saved["messages"].size() == 5);
  CHECK(saved["messages"][0]["role"] == "system");
  CHECK(saved["messages"][2]["content"] == first);
  CHECK(saved["messages"][4]["content"] == second);
}

TEST_CASE("An answer can be made again, and settings changed", "[chat]") {
  const std::string answer = decoded(turn("user", "def f():") + kOpened);
  const Outcome got = chat("def f():\n/regen\n/set temp x\n/set nothing 1\n/set n 1\n/nonsense\n/quit\nnever read\n");
  INFO(got.err);
  CHECK(got.exit_code == 0);
  CHECK(got.out == answer + "\n" + answer + "\n");  // greedy: the seed makes no difference
  CHECK_THAT(got.err, Contains("temp x: must be a number"));
  CHECK_THAT(got.err, Contains("/set nothing: no such setting"));
  CHECK_THAT(got.err, Contains("/nonsense: no such command"));
}

}  // namespace foretoken::test
