#include <catch2/catch.hpp>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/engine/model/random_model.h"
#include "tests/tools/subprocess.h"

// What the commands say where numbers are not finite; tests/mtp/number_faults_test.cpp has the kinds.

namespace {

using foretoken::test::GgufEdit;
using foretoken::test::Outcome;
using foretoken::test::RandomModel;
using foretoken::test::run;
using foretoken::test::TempFolder;

void write_spoiled(const std::string& path, std::string_view name, float factor) {
  GgufEdit file = RandomModel{}.build();
  GgufEdit::Tensor& tensor = file.tensor(name);
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  for (float& value : values) value *= factor;
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  file.write(path);
}

/// Commands over the model, short.
std::vector<std::vector<std::string>> commands(const std::string& model) {
  return {{"decode", "-m", model, "-p", "the", "-n", "4"},
          {"decode", "-m", model, "-p", "the", "-n", "4", "--mtp", "2"},
          {"eval", "-m", model, "-p", "the in the"},
          {"bench", "-m", model, "-n", "4", "--rounds", "1", "--arms", "off,mtp:2:fixed"},
          {"selfcheck", "-m", model, "-p", "the in", "-n", "4"}};
}

void check_ends(const Outcome& outcome, const std::string& words) {
  INFO(outcome.err);
  CHECK(outcome.exit_code == 1);
  CHECK(outcome.out.find("identical") == std::string::npos);
  CHECK(outcome.out.find("perplexity") == std::string::npos);
  const size_t line = outcome.err.rfind("foretoken: ");
  REQUIRE(line != std::string::npos);
  CHECK(outcome.err.find('\n', line) + 1 == outcome.err.size());
  CHECK(outcome.err.find(words, line) != std::string::npos);
}

}  // namespace

TEST_CASE("decode, eval, bench and selfcheck end with the position and layer of a fault", "[numbers]") {
  const TempFolder folder;
  const std::string model = folder.file("model.gguf");
  write_spoiled(model, "blk.1.attn_v.weight", 3e5f);
  for (const auto& command : commands(model)) check_ends(run(command), "position 0, layer 1: ");
  write_spoiled(model, "blk.0.ffn_down_shexp.weight", 1e37f);
  for (const auto& command : commands(model)) check_ends(run(command), "position 0, layer 0: ");
}

TEST_CASE("faults of the MTP layer end what measures or checks it, and leave the text alone", "[numbers]") {
  const TempFolder folder;
  const std::string whole = folder.file("whole.gguf"), model = folder.file("model.gguf");
  RandomModel{}.write(whole);
  write_spoiled(model, "blk.2.attn_output.weight", 1e37f);
  const auto decode = [](const std::string& path) {
    return run(
        {"decode", "-m", path, "-p", "the", "-n", "8", "--ignore-eos", "--mtp", "2", "--mtp-fixed", "--json", "-"});
  };
  const Outcome spoiled = decode(model);
  REQUIRE(spoiled.exit_code == 0);
  CHECK(spoiled.err.find("note: drafting stopped") != std::string::npos);
  const auto object = nlohmann::json::parse(spoiled.out), plain = nlohmann::json::parse(decode(whole).out);
  CHECK(object["ids"] == plain["ids"]);
  CHECK(plain["drafting_stopped"].is_null());
  CHECK(object["drafting_stopped"].get<std::string>().find("MTP layer") != std::string::npos);
  CHECK(run({"eval", "-m", model, "-p", "the in the"}).exit_code == 0);  // the MTP layer is not asked
  check_ends(run({"eval", "-m", model, "-p", "the in the", "--mtp", "2"}), "MTP layer: ");
  check_ends(run(commands(model)[3]), "MTP layer: ");
  check_ends(run(commands(model)[4]), "MTP layer: ");
}
