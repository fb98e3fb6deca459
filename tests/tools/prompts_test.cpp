#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/engine/gguf/temp_files.h"
#include "tests/tools/subprocess.h"

namespace foretoken::test {
namespace {

using Json = nlohmann::json;

std::string written(const TempFolder& folder, const std::string& name, const std::string& text) {
  std::ofstream(folder.file(name)) << text;
  return folder.file(name);
}

std::vector<std::string> decode(std::vector<std::string> more) {
  more.insert(more.begin(), {"decode", "-m", kDemoModel});
  return more;
}

}  // namespace

TEST_CASE("Prompts that are continued together have the text that each has alone", "[program][prompts]") {
  const TempFolder folder;
  const std::vector<std::string> texts = {"def main():\n", "import os\nimport sys\n", "class A:\n    def f(self):\n",
                                          "The lighthouse stood\n", "for i in range(10):\n"};
  std::string all;
  for (const std::string& text : texts) all += text + "\n";
  const std::string prompts = written(folder, "prompts.txt", all);
  for (const char* mtp : {"0", "3"}) {
    const Outcome got = run(decode(
        {"--prompts", prompts, "--parallel", "3", "-n", "20", "--mtp", mtp, "--json", folder.file("lines.json")}));
    INFO(got.err);
    REQUIRE(got.exit_code == 0);
    std::ifstream lines(folder.file("lines.json"));
    std::vector<Json> results(texts.size());
    int num_lines = 0;
    for (std::string line; std::getline(lines, line); ++num_lines) {
      const Json object = Json::parse(line);
      results.at(object["index"].get<size_t>()) = object;
    }
    REQUIRE(num_lines == static_cast<int>(texts.size()));
    std::string in_order;
    for (size_t i = 0; i < texts.size(); ++i) {
      const Outcome alone = run(decode({"-p", texts[i], "-n", "20", "--json", "-"}));
      REQUIRE(alone.exit_code == 0);
      const Json want = Json::parse(alone.out);
      CHECK(results[i]["ids"] == want["ids"]);
      CHECK(results[i]["ids_sha256"] == want["ids_sha256"]);
      CHECK(results[i]["prompt_ids"] == want["prompt_ids"]);
      std::string text = want["text"];
      if (text.empty() || text.back() != '\n') text += '\n';
      in_order += (i == 0 ? "" : "\n") + text;
    }
    CHECK(got.out == in_order);
  }
}

TEST_CASE("What can never fit, and flags that belong together", "[program][prompts]") {
  const TempFolder folder;
  const std::string prompts = written(folder, "prompts.txt", "a = 1\n\nb = 2\n");
  const auto refused = [&](std::vector<std::string> arguments, int exit_code, const std::string& word) {
    const Outcome outcome = run(decode(std::move(arguments)));
    INFO(outcome.err);
    CHECK(outcome.exit_code == exit_code);
    CHECK(outcome.err.find(word) != std::string::npos);
  };
  refused({"--prompts", prompts, "--kv-memory", "1K", "-n", "1000"}, 1, "--kv-memory");
  refused({"--prompts", prompts, "--kv-memory", "lots"}, 2, "800M");
  refused({"--prompts", prompts, "-p", "x"}, 2, "--prompts");
  refused({"-p", "x", "--parallel", "2"}, 2, "--prompts");
  refused({"--prompts", written(folder, "none.txt", "\n\n")}, 1, "no prompt");
  // One page for two texts: they take turns.
  const Outcome turns = run(decode({"--prompts", prompts, "--kv-memory", "1K", "-n", "8", "--parallel", "2"}));
  CHECK(turns.exit_code == 0);
}

TEST_CASE("A text is the same whoever drafts it", "[program][prompts]") {
  const std::string prompt = "def a(x):\n    return x + 1\n\ndef b(x):\n    return x + 1\n\ndef c(x):\n";
  const auto ids = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"-p", prompt, "-n", "60", "--ignore-eos", "--json", "-"});
    const Outcome outcome = run(decode(std::move(more)));
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    return Json::parse(outcome.out);
  };
  const Json plain = ids({});
  for (const char* draft : {"ngram", "ngram,mtp", "mtp"}) {
    const Json got = ids({"--draft", draft, "--mtp", "4", "--mtp-fixed"});
    CHECK(got["ids"] == plain["ids"]);
    CHECK(got["drafted"].get<int64_t>() > 0);
    CHECK(got["accepted"].get<int64_t>() > 0);
  }
  CHECK(run(decode({"-p", "x", "--draft", "eagle"})).exit_code == 2);
}

TEST_CASE("bench says where texts end before they were decoded together", "[prompts]") {
  // One token of each comes from its prompt's pass, and these passes are not the same.
  const Outcome outcome = run({"bench", "-m", kDemoModel, "--batch", "2", "--arms", "off", "--rounds", "1", "-n", "2"});
  CHECK(outcome.exit_code == 1);
  CHECK(outcome.err.find("--batch 2: no step had all texts in it") != std::string::npos);
}

TEST_CASE("bench --batch compares the ids of its arms", "[program][prompts]") {
  const Outcome outcome = run({"bench", "-m", kDemoModel, "--batch", "1,3", "--arms", "off,mtp:2:fixed", "--rounds",
                               "1", "-n", "12", "--forced-acceptance", "0.8", "--ignore-eos", "--json", "-"});
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  const Json object = Json::parse(outcome.out);
  CHECK(object["identical"] == true);
  REQUIRE(object["batches"].size() == 4);
  CHECK(object["batches"][3]["texts"] == 3);
  CHECK(object["batches"][3]["mean_k"].get<double>() > 1);
  CHECK(object["batches"][2]["rows_per_pass"] == 3);
}

}  // namespace foretoken::test
