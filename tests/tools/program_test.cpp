#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/engine/model/random_model.h"
#include "tests/tools/subprocess.h"

using foretoken::test::Invocation;
using foretoken::test::kDemoModel;
using foretoken::test::Outcome;
using foretoken::test::read_all;
using foretoken::test::run;
using foretoken::test::TempFolder;
using foretoken::test::write_file;
using Json = nlohmann::json;

namespace {

constexpr const char* kPrompt = "def read_lines(path):\n";

/// `decode` of the demonstration model with these further arguments.
std::vector<std::string> demo(std::vector<std::string> arguments, const std::string& command = "decode") {
  arguments.insert(arguments.begin(), {command, "-m", kDemoModel});
  return arguments;
}

Outcome run_with(std::vector<std::string> arguments, std::vector<std::string> environment) {
  Invocation invocation;
  invocation.arguments = std::move(arguments);
  invocation.environment = std::move(environment);
  return run(invocation);
}

/// The error line of a program that refused: the last line on stderr, "foretoken: ...".
std::string error_line(const Outcome& outcome) {
  std::string text = outcome.err;
  REQUIRE_FALSE(text.empty());
  REQUIRE(text.back() == '\n');
  text.pop_back();
  return text.substr(text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1);
}

/// A refusal: exit code, nothing on stdout, one line on stderr that has all the words.
void check_refused(const Outcome& outcome, int exit_code, const std::vector<std::string>& words) {
  INFO(outcome.err);
  CHECK(outcome.exit_code == exit_code);
  CHECK(outcome.out.empty());
  CHECK(error_line(outcome).starts_with("foretoken: "));
  for (const std::string& word : words) {
    INFO(word);
    CHECK(error_line(outcome).find(word) != std::string::npos);
  }
}

Json decode_json(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--json", "-"});
  const Outcome outcome = run(demo(std::move(arguments)));
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  return Json::parse(outcome.out);
}

}  // namespace

TEST_CASE("Without a command, or with an unknown one, the commands are listed", "[program]") {
  for (const auto& arguments : {std::vector<std::string>{}, {"decod"}, {"--frobnicate"}}) {
    const Outcome outcome = run(arguments);
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.out.empty());
    CHECK(outcome.err.starts_with("foretoken: "));
    for (const char* command : {"decode", "bench", "eval", "selfcheck", "inspect", "tokenize", "requantise", "synth"}) {
      CHECK(outcome.err.find(std::string("\n  ") + command) != std::string::npos);
    }
  }
}

TEST_CASE("Flag --version names version, commit, instruction sets and CUDA", "[program]") {
  const Outcome outcome = run({"--version"});
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.err.empty());
  for (const char* word : {"foretoken ", "commit ", "compiled in scalar", "chosen ", "CUDA: "}) {
    INFO(outcome.out);
    CHECK(outcome.out.find(word) != std::string::npos);
  }
}

TEST_CASE("Flag --help of each command lists flags, defaults and the environment", "[program]") {
  CHECK(run({"--help"}).exit_code == 0);
  for (const char* command : {"decode", "bench", "eval", "selfcheck", "inspect"}) {
    const Outcome outcome = run({command, "--help"});
    INFO(command);
    CHECK(outcome.exit_code == 0);
    CHECK(outcome.err.empty());
    for (const char* word : {"--threads", "--draft-vocab", "16384", "--json", "FORETOKEN_MOE_VERIFY", "FORETOKEN_ISA",
                             "FORETOKEN_THREADS", "FORETOKEN_NUMA", "FORETOKEN_CUDA_DEPENDENT_LAUNCH"}) {
      INFO(word);
      CHECK(outcome.out.find(word) != std::string::npos);
    }
  }
  for (const char* command : {"tokenize", "requantise", "synth"}) {
    const Outcome outcome = run({command, "--help"});
    CHECK(outcome.exit_code == 0);
    CHECK(outcome.out.find("FORETOKEN_ISA") != std::string::npos);
  }
}

TEST_CASE("decode prints the text alone on stdout and the statistics on stderr", "[program][decode]") {
  const Outcome text = run(demo({"-p", kPrompt, "-n", "24", "--mtp", "3"}));
  CHECK(text.exit_code == 0);
  CHECK_FALSE(text.out.empty());
  for (const char* word : {"prompt ", "time to first token", "tok/s", "verify passes", "acceptance length",
                           "accepted by position", "mean k", "peak memory"}) {
    INFO(text.err);
    CHECK(text.err.find(word) != std::string::npos);
  }
  CHECK(text.err.find('\r') == std::string::npos);  // no progress bar: stderr is no terminal

  Invocation from_stdin;
  from_stdin.arguments = demo({"-n", "24"});
  from_stdin.input = kPrompt;
  CHECK(run(from_stdin).out == text.out);
}

TEST_CASE("The prompt's four sources give the same ids, and all settings the same text", "[program][decode]") {
  const TempFolder folder;
  const Json plain = decode_json({"-p", kPrompt, "-n", "32"});
  std::string ids;
  for (const Json& id : plain["prompt_ids"]) ids += id.dump() + "\n";
  CHECK(decode_json({"-f", write_file(folder, "prompt.txt", kPrompt), "-n", "32"})["ids"] == plain["ids"]);
  CHECK(decode_json({"--ids", write_file(folder, "ids.txt", ids), "-n", "32"})["ids"] == plain["ids"]);
  CHECK(decode_json({"-p", kPrompt, "-n", "32", "--mtp"})["ids_sha256"] == plain["ids_sha256"]);
  CHECK(decode_json({"-p", kPrompt, "-n", "32", "--mtp", "4", "--mtp-fixed", "--draft-vocab", "0"})["ids_sha256"] ==
        plain["ids_sha256"]);
  CHECK(decode_json({"-p", kPrompt, "-n", "32", "--no-repack", "-t", "1", "--prompt-chunk", "2"})["ids_sha256"] ==
        plain["ids_sha256"]);

  const Outcome printed = run(demo({"-p", kPrompt, "-n", "32", "--print-ids"}));
  std::string expected;
  for (const Json& id : plain["ids"]) expected += id.dump() + "\n";
  CHECK(printed.out == expected);
}

TEST_CASE("A seeded sample is the same text with MTP on and off", "[program][decode]") {
  const std::vector<std::string> sampled = {"-p",      kPrompt, "-n",      "32",   "--temp", "0.9",
                                            "--top-k", "50",    "--top-p", "0.95", "--seed", "7"};
  auto with_mtp = sampled;
  with_mtp.insert(with_mtp.end(), {"--mtp", "3", "--mtp-fixed"});
  CHECK(decode_json(sampled)["ids"] == decode_json(with_mtp)["ids"]);
}

TEST_CASE("decode's JSON has the documented keys", "[program][decode]") {
  const TempFolder folder;
  const std::string path = folder.file("out.json");
  const Outcome outcome = run(demo({"-p", kPrompt, "-n", "16", "--mtp", "2", "--mtp-fixed", "--json", path}));
  REQUIRE(outcome.exit_code == 0);
  const Json json = Json::parse(read_all(path));
  for (const char* key :
       {"prompt_ids", "ids", "text", "ids_sha256", "prompt_tokens_per_second", "time_to_first_token_ms",
        "decode_tokens_per_second", "verify_passes", "acceptance_length", "accepted_by_position", "peak_rss_bytes",
        "mtp", "moe_verify", "isa", "threads", "model_sha256"}) {
    INFO(key);
    CHECK(json.contains(key));
  }
  CHECK(json["text"] == outcome.out);
  CHECK(json["ids"].size() == 16);
  CHECK(json["mtp"] == 2);
  CHECK(json["moe_verify"] == "grouped");
  CHECK(json["accepted_by_position"].size() == 2);
  CHECK(json["ids_sha256"].get<std::string>().size() == 64);
}

TEST_CASE("Wrong command lines exit 2 with one line", "[program]") {
  check_refused(run({"decode", "-p", "x"}), 2, {"-m"});
  check_refused(run(demo({"-p", "x", "--fast"})), 2, {"--fast"});
  check_refused(run(demo({"-p", "x", "-n", "many"})), 2, {"-n many: --n-predict"});
  check_refused(run(demo({"-p", "x", "-n", "0"})), 2, {"-n 0: --n-predict"});
  check_refused(run(demo({"-p", "x", "--mtp", "9"})), 2, {"--mtp", "9", "8"});
  check_refused(run(demo({"-p", "x", "--mtp", "--mtp-fixed"})), 2, {"--mtp-fixed"});
  check_refused(run(demo({"-p", "x", "--temp", "-0.1"})), 2, {"--temp", "-0.1"});
  check_refused(run(demo({"-p", "x", "--top-p", "1.5"})), 2, {"--top-p", "1.5"});
  check_refused(run(demo({"-p", "x", "--top-p", "0"})), 2, {"--top-p"});
  check_refused(run(demo({"-p", "x", "-t", "0"})), 2, {"--threads", "0"});
  check_refused(run(demo({"-p", "x", "--kv-type", "q8"})), 2, {"--kv-type", "q8", "f16"});
  check_refused(run(demo({"-p", "x", "--device", "tpu"})), 2, {"--device", "tpu"});
  check_refused(run(demo({"-p", "x", "-f", "y"})), 2, {"-p and -f"});
  check_refused(run(demo({"--prompt", "x", "--file", "y"})), 2, {"--prompt and --file"});
  check_refused(run(demo({"-n", "4", "-fa"})), 2, {"-fa:"});
  check_refused(run(demo({"--arms", "off,fast", "-n", "8"}, "bench")), 2, {"--arms", "fast"});
  check_refused(run({"inspect"}), 2, {"MODEL"});
  check_refused(run(demo({"surplus", "-p", "x"})), 2, {"'surplus'"});
  check_refused(run({"inspect", kDemoModel, "another"}), 2, {"'another'"});
  check_refused(run(demo({"-p", "x", "-n", ""})), 2, {"-n ''"});
  check_refused(run(demo({"-p", "x", "--json", ""})), 2, {"--json", "empty"});
  check_refused(run(demo({"--csv", ""}, "bench")), 2, {"--csv", "empty"});
  check_refused(run(demo({"-p", "x", "--logits", ""}, "eval")), 2, {"--logits", "empty"});
}

TEST_CASE("Unknown environment values exit 2 and list the known ones", "[program][environment]") {
  check_refused(run_with(demo({"-p", "x"}), {"FORETOKEN_MOE_VERIFY=both"}), 2,
                {"FORETOKEN_MOE_VERIFY", "both", "grouped", "per-token"});
  check_refused(run_with(demo({"-p", "x"}), {"FORETOKEN_ISA=sse2"}), 2,
                {"FORETOKEN_ISA", "sse2", "scalar", "avx2", "avx512"});
  for (const char* value : {"0", "many", "-1", "", "100000"}) {
    check_refused(run_with(demo({"-p", "x"}), {std::string("FORETOKEN_THREADS=") + value}), 2, {"FORETOKEN_THREADS"});
  }
}

TEST_CASE("Commands that need no environment variable refuse a wrong one too", "[program][environment]") {
  const TempFolder folder;
  check_refused(run_with(demo({"-p", "x"}, "tokenize"), {"FORETOKEN_ISA=sse2"}), 2, {"FORETOKEN_ISA"});
  check_refused(run_with({"synth", folder.file("m.gguf")}, {"FORETOKEN_THREADS=0"}), 2, {"FORETOKEN_THREADS"});
  CHECK_FALSE(std::filesystem::exists(folder.file("m.gguf")));
}

TEST_CASE("Environment variables take effect, are printed, and flags win over them", "[program][environment]") {
  const Outcome outcome = run_with(demo({"-p", kPrompt, "-n", "4", "--json", "-"}),
                                   {"FORETOKEN_MOE_VERIFY=per-token", "FORETOKEN_ISA=scalar", "FORETOKEN_THREADS=1"});
  REQUIRE(outcome.exit_code == 0);
  const Json json = Json::parse(outcome.out);
  CHECK(json["moe_verify"] == "per-token");
  CHECK(json["isa"] == "scalar");
  CHECK(json["threads"] == 1);
  for (const char* setting : {"FORETOKEN_MOE_VERIFY=per-token", "FORETOKEN_ISA=scalar", "FORETOKEN_THREADS=1"}) {
    CHECK(outcome.err.find(setting) != std::string::npos);
  }
  const Outcome flag = run_with(demo({"-p", kPrompt, "-n", "4", "-t", "2", "--json", "-"}), {"FORETOKEN_THREADS=1"});
  REQUIRE(flag.exit_code == 0);
  CHECK(Json::parse(flag.out)["threads"] == 2);
  CHECK(Json::parse(flag.out)["ids"] == json["ids"]);
}

TEST_CASE("Bad models exit 1 with one line that names the file", "[program][bad_input]") {
  const TempFolder folder;
  const auto refused = [&](const std::string& path, const std::vector<std::string>& words = {}) {
    auto all = words;
    all.push_back(path);
    check_refused(run({"decode", "-m", path, "-p", "x"}), 1, all);
    check_refused(run({"inspect", path}), 1, all);
    check_refused(run({"tokenize", "-m", path, "-p", "x"}), 1, all);
  };
  refused(folder.file("missing.gguf"));
  refused(folder.file(""));
  refused(write_file(folder, "empty.gguf", ""));
  refused(write_file(folder, "text.gguf", "this is no model\n"));
  const std::string model = read_all(kDemoModel);
  refused(write_file(folder, "short.gguf", model.substr(0, 1000)));
  refused(write_file(folder, "half.gguf", model.substr(0, model.size() / 2)));
  if (geteuid() != 0) {
    const std::string path = write_file(folder, "secret.gguf", model);
    chmod(path.c_str(), 0);
    refused(path);
  }
}

TEST_CASE("A model without an MTP layer is refused under --mtp, and runs without", "[program][bad_input]") {
  const TempFolder folder;
  foretoken::test::RandomModel random;
  random.mtp = false;
  random.write(folder.file("plain.gguf"));
  const std::string ids = write_file(folder, "ids", "1 2 3 4 5");
  const auto arguments = [&](const std::string& command, std::vector<std::string> more) {
    more.insert(more.begin(), {command, "-m", folder.file("plain.gguf")});
    return more;
  };
  check_refused(run(arguments("decode", {"--ids", ids, "--mtp", "1"})), 1, {"plain.gguf", "MTP layer", "--mtp 0"});
  check_refused(run(arguments("decode", {"--ids", ids, "--mtp"})), 1, {"MTP layer"});
  check_refused(run(arguments("eval", {"--ids", ids, "--mtp", "2"})), 1, {"MTP layer"});
  check_refused(run(arguments("eval", {"--ids", ids, "--mtp-logits", folder.file("m.npy")})), 1, {"MTP layer"});
  check_refused(run(arguments("bench", {"-n", "4", "--arms", "off,mtp:1"})), 1, {"MTP layer"});
  check_refused(run(arguments("selfcheck", {"--ids", ids, "--mtp", "2"})), 1, {"MTP layer"});
  CHECK(run(arguments("decode", {"--ids", ids, "-n", "4"})).exit_code == 0);

  const Outcome check = run(arguments("selfcheck", {"--ids", ids, "-n", "4", "--json", "-"}));
  REQUIRE(check.exit_code == 0);
  const Json checked = Json::parse(check.out);
  for (const Json& item : checked["cases"]) CHECK(item["mtp"] == 0);
  CHECK(check.out.find("no MTP layer") != std::string::npos);

  const Outcome bench = run(arguments("bench", {"-n", "4", "--rounds", "1", "--json", "-"}));
  REQUIRE(bench.exit_code == 0);
  CHECK(Json::parse(bench.out)["arms"][1]["name"] == "off:per-token");

  const Outcome inspect = run({"inspect", folder.file("plain.gguf")});
  CHECK(inspect.exit_code == 0);
  CHECK(inspect.out.find("cannot gain anything") != std::string::npos);
}

TEST_CASE("inspect describes files that cannot be run, and says why", "[program][inspect]") {
  const TempFolder folder;
  const foretoken::test::GgufEdit good = foretoken::test::RandomModel().build();
  auto other = good;
  other.set_string("general.architecture", "mamba9");
  other.write(folder.file("other.gguf"));
  auto odd = good;
  odd.tensor("blk.0.ffn_up_exps.weight").type_id = 137;
  odd.write(folder.file("odd.gguf"));

  const Outcome text = run({"inspect", folder.file("other.gguf")});
  CHECK(text.exit_code == 0);
  CHECK(text.out.find("cannot be run") != std::string::npos);
  CHECK(text.out.find("mamba9") != std::string::npos);
  CHECK(text.out.find("blk.0.attn_norm.weight") != std::string::npos);
  check_refused(run({"decode", "-m", folder.file("other.gguf"), "-p", "x"}), 1, {"other.gguf", "mamba9"});

  const Outcome outcome = run({"inspect", folder.file("odd.gguf"), "--json", "-"});
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  const Json json = Json::parse(outcome.out);
  CHECK(json["can_run"] == false);
  CHECK(json["refusal"].get<std::string>().find("IQ2_K of ik_llama.cpp") != std::string::npos);
  CHECK(json["unsupported_tensors"] == Json({"blk.0.ffn_up_exps.weight"}));
  check_refused(run({"decode", "-m", folder.file("odd.gguf"), "-p", "x"}), 1,
                {"odd.gguf", "blk.0.ffn_up_exps.weight", "IQ2_K of ik_llama.cpp"});
}

TEST_CASE("inspect refuses what decode refuses, in the same words", "[program][inspect]") {
  const foretoken::test::GgufEdit good = foretoken::test::RandomModel().build();
  const std::vector<std::pair<const char*, std::function<void(foretoken::test::GgufEdit&)>>> faults = {
      {"", [](auto&) {}},  // none
      {"blk.0.attn_qkv.weight", [](auto& file) { file.remove_tensor("blk.0.attn_qkv.weight"); }},
      {"blk.2.nextn.eh_proj.weight", [](auto& file) { file.remove_tensor("blk.2.nextn.eh_proj.weight"); }},
      {"nextn_predict_layers", [](auto& file) { file.remove_key("qwen35moe.nextn_predict_layers"); }},
      {"tokenizer.ggml.pre", [](auto& file) { file.set_string("tokenizer.ggml.pre", "default"); }},
      {"bos_token_id", [](auto& file) { file.set_uint32("tokenizer.ggml.bos_token_id", 151643); }},
      {"rope.scaling.alpha", [](auto& file) { file.set_float32("qwen35moe.rope.scaling.alpha", 4); }},
      {"ffn_gate_exps.scale",
       [](auto& file) {
         file.tensors.push_back({"blk.1.ffn_gate_exps.scale", 0, {3}, std::vector<std::byte>(3 * sizeof(float))});
       }},
  };
  for (const auto& [word, change] : faults) {
    INFO("fault: " << word);
    const TempFolder folder;
    const std::string path = folder.file("model.gguf");
    auto file = good;
    change(file);
    file.write(path);
    const Outcome inspect = run({"inspect", path, "--json", "-"});
    REQUIRE(inspect.exit_code == 0);
    const Json json = Json::parse(inspect.out);
    const Outcome decode = run({"decode", "-m", path, "-p", "x", "-n", "1"});
    CHECK(json["can_run"] == (decode.exit_code == 0));
    if (*word == '\0') {
      CHECK(json["refusal"].is_null());
      continue;
    }
    const auto refusal = json["refusal"].get<std::string>();
    INFO(refusal);
    check_refused(decode, 1, {word});
    CHECK(decode.err.find(refusal) != std::string::npos);
    CHECK(run({"inspect", path}).out.find(refusal) != std::string::npos);
  }
}

TEST_CASE("sampling that a file recommends is told and not applied", "[program]") {
  const TempFolder folder;
  auto file = foretoken::test::RandomModel().build();
  file.write(folder.file("plain.gguf"));
  file.set_float32("general.sampling.temp", 0.5f);
  file.write(folder.file("sampled.gguf"));
  const Outcome plain = run({"decode", "-m", folder.file("plain.gguf"), "-p", "x", "-n", "8"});
  const Outcome sampled = run({"decode", "-m", folder.file("sampled.gguf"), "-p", "x", "-n", "8"});
  CHECK(sampled.exit_code == 0);
  CHECK(sampled.out == plain.out);
  CHECK(sampled.err.find("temp 0.5") != std::string::npos);
  CHECK(plain.err.find("recommends") == std::string::npos);
}

TEST_CASE("an MTP layer that is declared and absent", "[program][mtp]") {
  const TempFolder folder;
  const std::string path = folder.file("trunk.gguf");
  auto file = foretoken::test::RandomModel().build();
  std::erase_if(file.tensors, [](const auto& tensor) { return tensor.name.starts_with("blk.2."); });
  file.write(path);
  CHECK(run({"decode", "-m", path, "-p", "x", "-n", "2"}).exit_code == 0);
  check_refused(run({"decode", "-m", path, "-p", "x", "-n", "2", "--mtp", "2"}), 1,
                {"--mtp 2", "MTP layer", "nextn_predict_layers", "blk.2.nextn.*"});
}

TEST_CASE("Bad prompts exit 1 with one line", "[program][bad_input]") {
  const TempFolder folder;
  check_refused(run(demo({"-p", ""})), 1, {"empty"});
  check_refused(run(demo({"-f", write_file(folder, "empty.txt", "")})), 1, {"empty.txt", "empty"});
  check_refused(run(demo({"--ids", write_file(folder, "ids.txt", " \n")})), 1, {"ids.txt", "empty"});
  check_refused(run(demo({})), 1, {"standard input", "empty"});
  check_refused(run(demo({"-f", folder.file("missing.txt")})), 1, {"missing.txt", "No such file"});
  check_refused(run(demo({"-f", folder.file("")})), 1, {"directory"});
  check_refused(run(demo({"-p", "ab\xff"})), 1, {"UTF-8", "offset 2"});
  check_refused(run(demo({"-f", write_file(folder, "latin1.txt", "caf\xe9 au lait")})), 1,
                {"latin1.txt", "UTF-8", "offset 3"});
  check_refused(run(demo({"--ids", write_file(folder, "bad-ids.txt", "1 2 x3")})), 1, {"bad-ids.txt", "x3"});
  check_refused(run(demo({"--ids", write_file(folder, "big-ids.txt", "1 2 4096000")})), 1, {"4096000", "vocabulary"});
  std::string longer;
  for (int i = 0; i < 200; ++i) longer += "import os\n";
  check_refused(run(demo({"-p", longer, "-c", "64"})), 1, {"context of 64", "raise --ctx-size"});
}

TEST_CASE("A user's text is plain unless it is asked for: decode, --chat and tokenize agree", "[program][text]") {
  const auto marks = [](const Json& ids) {
    return std::count_if(ids.begin(), ids.end(), [](const Json& id) { return id == 4094 || id == 4095; });
  };
  const std::string text = "a <|im_end|>\n<|im_start|>system\nb";
  CHECK(marks(decode_json({"-p", text, "-n", "1"})["prompt_ids"]) == 0);
  CHECK(marks(decode_json({"-p", text, "-n", "1", "--parse-special"})["prompt_ids"]) == 2);
  CHECK(marks(decode_json({"-p", text, "-n", "1", "--chat"})["prompt_ids"]) == 3);
  CHECK(run(demo({"-p", text, "-n", "1"})).err.find("note: -p: <|im_end|> is taken as plain text") !=
        std::string::npos);
  for (const auto& more : std::vector<std::vector<std::string>>{{}, {"--parse-special"}, {"--chat"}}) {
    std::vector<std::string> arguments = {"-p", text};
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto decode_arguments = arguments;
    decode_arguments.insert(decode_arguments.end(), {"-n", "1"});
    const Json json = decode_json(decode_arguments);
    std::string ids;
    for (const Json& id : json["prompt_ids"]) ids += id.dump() + "\n";
    CHECK(run(demo(arguments, "tokenize")).out == ids);
  }
  check_refused(run(demo({"-p", "x", "--plain"}, "tokenize")), 2, {"--plain", "--parse-special"});
  const TempFolder folder;
  check_refused(run(demo({"--chat", "--ids", write_file(folder, "ids", "1")})), 2, {"--chat"});
}

TEST_CASE("The token that begins a text is there for tokenize as for decode", "[program][text]") {
  const TempFolder folder;
  foretoken::test::GgufEdit file(kDemoModel);
  file.set_bool("tokenizer.ggml.add_bos_token", true);
  const std::string model = folder.file("bos.gguf");
  file.write(model);
  const Outcome ids = run({"tokenize", "-m", model, "-p", "def"});
  const Outcome decoded = run({"decode", "-m", model, "-p", "def", "-n", "1", "--json", "-"});
  REQUIRE(decoded.exit_code == 0);
  const Json json = Json::parse(decoded.out);
  std::string expected;
  for (const Json& id : json["prompt_ids"]) expected += id.dump() + "\n";
  CHECK(ids.out == expected);
  CHECK(ids.out.starts_with("4093\n"));
}

TEST_CASE("Flag --chat renders the file's template or refuses it", "[program][text]") {
  const TempFolder folder;
  const auto with_template = [&](const std::string& source) {
    foretoken::test::GgufEdit file(kDemoModel);
    file.set_string("tokenizer.chat_template", source);
    file.write(folder.file("m.gguf"));
    return run({"tokenize", "-m", folder.file("m.gguf"), "--chat", "-p", "hi"});
  };
  const auto text_of = [&](const Outcome& ids) {
    Invocation back;
    back.arguments = demo({"--decode"}, "tokenize");
    back.input = ids.out;
    return run(back).out;
  };
  const std::string loop = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
  const Outcome thinks = with_template(loop + "<|im_start|>assistant\n<think>\n\n");
  CHECK(text_of(thinks) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n");
  CHECK(thinks.err.find("the prompt ends in") != std::string::npos);
  check_refused(with_template("a\n{% for m in messages %}{{ m.content | trim }}"), 1, {"--chat", "line 2", "endfor"});
  check_refused(with_template("{{ raise_exception('no system message') }}"), 1, {"--chat", "no system message"});

  const std::string form =
      write_file(folder, "form.jinja", "<|im_start|>{{ messages[0].content }}{% if quiet %}!{% endif %}");
  const auto with_flags = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = {"--chat", "-p", "<|im_start|>", "--chat-template-file", form};
    all.insert(all.end(), more.begin(), more.end());
    return run(demo(all, "tokenize"));
  };
  const Outcome own = with_flags({"--chat-template-kwargs", "{\"quiet\": true}"});
  CHECK(text_of(own) == "<|im_start|><|im_start|>!");
  CHECK(text_of(with_flags({})) == "<|im_start|><|im_start|>");
  CHECK(std::count(own.out.begin(), own.out.end(), '\n') > 3);  // the user's is not one token
  check_refused(with_flags({"--chat-template-kwargs", "[1]"}), 2, {"--chat-template-kwargs", "object"});
  check_refused(run(demo({"-p", "x", "--chat-template-file", form}, "tokenize")), 2,
                {"--chat-template-file", "--chat"});
  const Outcome none = run(demo({"--chat", "-p", "hi"}, "tokenize"));
  CHECK(text_of(none) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  CHECK(none.err.find("no chat template") != std::string::npos);
}

TEST_CASE("A byte order mark is left out of a prompt, and UTF-16 is named", "[program][text]") {
  const TempFolder folder;
  const std::string bom = "\xef\xbb\xbf";
  const Json plain = decode_json({"-p", kPrompt, "-n", "1"});
  const std::string file = write_file(folder, "bom.txt", bom + kPrompt);
  CHECK(decode_json({"-f", file, "-n", "1"})["prompt_ids"] == plain["prompt_ids"]);
  CHECK(run(demo({"-f", file, "-n", "1"})).err.find("byte order mark") != std::string::npos);
  CHECK(run(demo({"-f", file}, "tokenize")).out == run(demo({"-p", kPrompt}, "tokenize")).out);
  CHECK(run(demo({"--ids", write_file(folder, "ids.txt", bom + "1 2 3"), "-n", "1"})).exit_code == 0);
  CHECK(decode_json({"-p", "a" + bom, "-n", "1"})["prompt_ids"] != decode_json({"-p", "a", "-n", "1"})["prompt_ids"]);
  check_refused(run(demo({"-f", write_file(folder, "only.txt", bom)})), 1, {"empty"});
  const auto text = [](const char* bytes, size_t size) { return std::string(bytes, size); };
  for (const auto& [bytes, name] :
       std::vector<std::pair<std::string, std::string>>{{text("\xff\xfe"
                                                              "d\0e\0",
                                                              6),
                                                         "UTF-16"},
                                                        {text("\xfe\xff\0d\0e", 6), "UTF-16"},
                                                        {text("d\0e\0f\0", 6), "UTF-16LE"},
                                                        {text("\0d\0e\0f", 6), "UTF-16BE"},
                                                        {text("\xff\xfe\0\0d\0\0\0", 8), "UTF-32"}}) {
    check_refused(run(demo({"-f", write_file(folder, "wide.txt", bytes)})), 1, {"wide.txt", name + ",", "iconv"});
    check_refused(run(demo({"--ids", write_file(folder, "wide.txt", bytes)})), 1, {name + ","});
  }
}

TEST_CASE("Devices that this build cannot serve exit 1", "[program][bad_input]") {
  if (run({"--version"}).out.find("CUDA: not built in") == std::string::npos) return;
  check_refused(run(demo({"-p", "x", "--device", "cuda"})), 1, {"--device", "cuda"});
  check_refused(run(demo({"-p", "x", "--device", "split"})), 1, {"--device", "split"});
}

TEST_CASE("Flags that place experts belong to --device split", "[program][bad_input]") {
  for (const char* flag : {"--gpu-experts", "--gpu-layers", "--gpu-cache", "--gpu-fetch"}) {
    check_refused(run(demo({"-p", "x", flag, "1"})), 2, {"--device split", flag});
    check_refused(run(demo({"-p", "x", "--device", "split", flag, "-1"})), 2, {flag, "-1"});
    check_refused(run(demo({"-p", "x", "--device", "split", flag, "some"})), 2, {flag, "some"});
  }
}

TEST_CASE("Flag --cublas belongs to a GPU, and to commands that compare nothing with the CPU", "[program][bad_input]") {
  check_refused(run(demo({"-p", "x", "--cublas"})), 2, {"--cublas", "--device"});
  check_refused(run({"selfcheck", "-m", kDemoModel, "--cublas"}), 2, {"--cublas"});
  CHECK(decode_json({"-p", "x", "-n", "1"})["cublas"] == false);
}

TEST_CASE("inspect plans a placement for a GPU of any size", "[program][inspect]") {
  const auto plan = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"inspect", kDemoModel, "--json", "-", "--plan-vram"});
    const Outcome outcome = run(flags);
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    return Json::parse(outcome.out)["placement"];
  };
  const Json whole = plan({"8"});
  CHECK(whole["refusal"].is_null());
  CHECK(whole["host_bytes"] == 0);
  CHECK(whole["device_bytes"].get<int64_t>() > 0);
  const Json none = plan({"8", "--gpu-experts", "0", "--gpu-cache", "0"});
  CHECK(none["expert_bytes"] == 0);
  CHECK(none["host_bytes"] == whole["expert_bytes"]);
  const Json one = plan({"8", "--gpu-layers", "1"});
  CHECK(one["expert_bytes"].get<int64_t>() > 0);
  CHECK(one["expert_bytes"].get<int64_t>() < whole["expert_bytes"].get<int64_t>());
  CHECK_FALSE(plan({"0.000001"})["refusal"].is_null());
  CHECK(plan({"8", "--gpu-experts", "4096"})["refusal"].get<std::string>().find("4096") != std::string::npos);
  const Outcome text = run({"inspect", kDemoModel, "--plan-vram", "8"});
  CHECK(text.out.find("placement: ") != std::string::npos);
}

TEST_CASE("What the header decides is refused before the weights are read", "[program][early]") {
  const TempFolder folder;
  foretoken::test::GgufEdit file(kDemoModel);
  std::vector<std::byte>& last = file.tensors.back().bytes;
  std::fill(last.end() - 64, last.end(), std::byte{0xff});  // reading the weights ends here
  const std::string model = folder.file("damaged.gguf");
  file.write(model);
  const auto with = [&](const std::string& command, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {command, "-m", model});
    return run(arguments);
  };
  const auto refused = [&](const Outcome& outcome, const std::vector<std::string>& words) {
    check_refused(outcome, 1, words);
    CHECK(outcome.err.find("finite") == std::string::npos);
  };
  check_refused(with("decode", {"-p", "x"}), 1, {"finite"});
  refused(with("decode", {"-p", "x", "-c", "100000"}), {"-c 100000: --ctx-size", "2048"});
  refused(with("decode", {"-p", "x", "--ctx-size", "100000"}), {"--ctx-size 100000:", "2048"});
  for (const char* command : {"eval", "selfcheck"}) refused(with(command, {"-p", "x", "-c", "2049"}), {"-c 2049"});
  refused(with("bench", {"-c", "2049"}), {"-c 2049"});

  std::string text;
  for (int i = 0; i < 3000; ++i) text += "x ";
  for (const auto& more : std::vector<std::vector<std::string>>{{}, {"-c", "2048"}}) {
    std::vector<std::string> arguments = {"-p", text};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = with("decode", arguments);
    refused(outcome, {"-p: 3", "2048 positions", "shorten the prompt"});
    CHECK(outcome.err.find("raise") == std::string::npos);  // there is nothing to raise
  }
  refused(with("decode", {"-p", text.substr(0, 200), "-c", "64"}), {"raise --ctx-size", "up to 2048"});
  refused(with("bench", {"-c", "8"}), {"a built-in prompt", "raise --ctx-size", "--prompt-tokens N"});
  refused(with("bench", {"--prompt-tokens", "5000"}), {"5000 tokens", "lower --prompt-tokens"});
  refused(with("selfcheck", {"-c", "16"}), {"the built-in prompt", "raise --ctx-size", "-p TEXT"});
  refused(with("selfcheck", {"-p", text}), {"2048 positions", "shorter prompt"});
  refused(with("decode", {"--ids", write_file(folder, "ids", "5000000")}), {"outside the vocabulary"});
  refused(with("decode", {"-p", "x", "--device", "cuda"}), {"--device cuda"});

  file.set_string("tokenizer.chat_template", "{{ messages[0].content }");
  file.write(model);
  refused(with("decode", {"-p", "x", "--chat"}), {"--chat", "line 1"});

  foretoken::test::RandomModel random;
  random.mtp = false;
  foretoken::test::GgufEdit plain = random.build();
  std::fill(plain.tensors.back().bytes.end() - 64, plain.tensors.back().bytes.end(), std::byte{0xff});
  plain.write(model);
  const std::string ids = write_file(folder, "few", "1 2 3");
  refused(with("decode", {"--ids", ids, "--mtp", "1"}), {"MTP layer"});
  refused(with("eval", {"--ids", ids, "--mtp", "1"}), {"MTP layer"});
  refused(with("selfcheck", {"--ids", ids, "--mtp", "1"}), {"MTP layer"});
  refused(with("bench", {"--arms", "off,mtp:1"}), {"MTP layer"});
}

TEST_CASE("A number of tokens beyond the context costs nothing", "[program][early]") {
  const TempFolder folder;
  const std::string prompts = write_file(folder, "prompt.txt", "import os\n");
  const std::string huge = "1000000000";
  CHECK(decode_json({"-p", kPrompt, "-n", huge, "-c", "40", "--ignore-eos"})["stop_reason"] == "context_full");
  const Outcome bench = run(demo({"--prompts", prompts, "-n", huge, "-c", "64", "--rounds", "1", "--arms", "off,mtp:2",
                                  "--forced-acceptance", "0.85", "--ignore-eos", "--json", "-"},
                                 "bench"));
  INFO(bench.err);
  REQUIRE(bench.exit_code == 0);
  CHECK(Json::parse(bench.out)["arms"][0]["verify_passes"].get<int64_t>() < 64);
  const Outcome check =
      run_with(demo({"-p", "import os\n", "-n", huge, "-c", "16", "--mtp", "1", "-t", "1", "--json", "-"}, "selfcheck"),
               {"FORETOKEN_ISA=avx2"});
  INFO(check.err);
  CHECK(check.exit_code == 0);
}

TEST_CASE("bench says when its prompts end at once", "[program][bench]") {
  const TempFolder folder;
  const std::string prompts = write_file(folder, "prompts.txt", "def main():");
  const Json ids = decode_json({"-p", "def main():", "-n", "1"})["ids"];
  foretoken::test::GgufEdit file(kDemoModel);
  file.set_uint32("tokenizer.ggml.eos_token_id", ids[0].get<uint32_t>());
  const std::string model = folder.file("ends.gguf");
  file.write(model);
  const std::vector<std::string> arguments = {"bench", "-m",     model,       "--rounds",  "1",    "-n",
                                              "8",     "--arms", "off,mtp:2", "--prompts", prompts};
  check_refused(run(arguments), 1, {"no token to time", "--ignore-eos"});
  auto going_on = arguments;
  going_on.push_back("--ignore-eos");
  CHECK(run(going_on).exit_code == 0);
  // One that ends and one that does not: a note.
  auto both = arguments;
  both.back() = write_file(folder, "both.txt", "def main():\n\nimport os\nimport sys\n\nclass A:\n");
  const Outcome outcome = run(both);
  INFO(outcome.err);
  CHECK(outcome.exit_code == 0);
}

TEST_CASE("A path that cannot be written is known before the work", "[program][bad_input]") {
  const TempFolder folder;
  const std::string nowhere = folder.file("no/such/folder/out");
  check_refused(run(demo({"-p", kPrompt, "-n", "4", "--json", nowhere})), 1, {"--json", nowhere});
  check_refused(run(demo({"-p", kPrompt, "-n", "4", "--json", folder.file("")})), 1, {"--json", "directory"});
  check_refused(run(demo({"-p", kPrompt, "--logits", nowhere}, "eval")), 1, {"--logits", nowhere});
  check_refused(run(demo({"-n", "4", "--csv", nowhere}, "bench")), 1, {"--csv", nowhere});
  // A failed run leaves an older result alone.
  const std::string old = write_file(folder, "old.json", "{}");
  CHECK(run(demo({"-p", "", "--json", old})).exit_code == 1);
  CHECK(read_all(old) == "{}");
  CHECK_FALSE(std::filesystem::exists(nowhere));
}

TEST_CASE("A full disk is reported", "[program][bad_input]") {
  if (access("/dev/full", W_OK) != 0) return;
  Invocation invocation;
  invocation.arguments = demo({"-p", kPrompt, "-n", "4"});
  invocation.stdout_path = "/dev/full";
  const Outcome outcome = run(invocation);
  CHECK(outcome.exit_code == 1);
  CHECK(error_line(outcome).find("No space left") != std::string::npos);
  const Outcome to_json = run(demo({"-p", kPrompt, "-n", "4", "--json", "/dev/full"}));
  CHECK(to_json.exit_code == 1);
  CHECK(error_line(to_json).find("--json /dev/full: writing failed: No space left") != std::string::npos);
}

TEST_CASE("A standard error that cannot be written costs the messages, not the result", "[program][bad_input]") {
  const TempFolder folder;
  const std::string text = run(demo({"-p", kPrompt, "-n", "8"})).out;
  for (const std::string& path : {std::string("/dev/full"), std::string()}) {
    if (!path.empty() && access(path.c_str(), W_OK) != 0) continue;
    Invocation invocation;
    invocation.arguments = demo({"-p", kPrompt, "-n", "8", "--json", folder.file("out.json")});
    invocation.replace_stderr = true;
    invocation.stderr_path = path;  // empty: closed
    const Outcome outcome = run(invocation);
    INFO("standard error: " << path);
    CHECK(outcome.exit_code == 0);
    CHECK(outcome.out == text);
    // The JSON file was not given the number of the closed stream: it holds no messages.
    CHECK(Json::parse(read_all(folder.file("out.json")))["text"] == text);
    invocation.arguments = {"decode", "-m", folder.file("missing.gguf"), "-p", "x"};
    CHECK(run(invocation).exit_code == 1);
  }
}

TEST_CASE("Errors stay one line of printable text whatever names hold", "[program][bad_input]") {
  const TempFolder folder;
  check_refused(run({"decode", "-m", folder.file("new\nline\x1b[31m\xff.gguf"), "-p", "x"}), 1,
                {"new\\x0Aline\\x1B[31m\\xFF.gguf", "No such file"});
  check_refused(run(demo({"--ids", write_file(folder, "ids.txt", "1 \xfe\x07")})), 1, {"\\xFE\\x07"});
}

TEST_CASE("A reader that goes away ends a generation quietly", "[program][decode]") {
  Invocation invocation;
  invocation.arguments = demo({"-p", kPrompt, "-n", "100000", "-c", "2048", "--ignore-eos"});
  invocation.stop_reading_after = 20;
  const Outcome outcome = run(invocation);
  INFO(outcome.err);
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.err.find("foretoken: ") == std::string::npos);
  CHECK(outcome.err.find("decode") != std::string::npos);  // the statistics still follow
}

TEST_CASE("Ctrl-C ends a generation cleanly: text, statistics and JSON stand, exit 130", "[program][decode]") {
  const TempFolder folder;
  const int sent = GENERATE(SIGINT, SIGTERM);
  Invocation invocation;
  // The demonstration model fills its context of 2,048 in about a second; -t 1 and the scalar kernels leave time to
  // interrupt it.
  invocation.arguments = demo({"-p", kPrompt, "-n", "100000", "-c", "2048", "--ignore-eos", "--mtp", "2", "-t", "1",
                               "--json", folder.file("out.json")});
  invocation.environment = {"FORETOKEN_ISA=scalar"};
  bool interrupted = false;
  invocation.on_output = [&](pid_t child, const std::string& text) {
    if (text.size() < 10 || interrupted) return;
    interrupted = true;
    kill(child, sent);
  };
  const Outcome outcome = run(invocation);
  INFO(outcome.err);
  CHECK(outcome.exit_code == 130);
  CHECK(outcome.err.find("time to first token") != std::string::npos);
  CHECK(outcome.err.find("interrupted") != std::string::npos);
  const Json json = Json::parse(read_all(folder.file("out.json")));
  CHECK(json["text"] == outcome.out);
  CHECK(json["ids"].size() < 2000);
}

TEST_CASE("tokenize prints ids and turns them back", "[program][tokenize]") {
  const std::string text = "def naïve(x):\n    return \"日本\"  # 🙂\n";
  const Outcome ids = run(demo({"-p", text}, "tokenize"));
  REQUIRE(ids.exit_code == 0);
  CHECK(ids.err.empty());
  CHECK(std::count(ids.out.begin(), ids.out.end(), '\n') > 5);
  Invocation back;
  back.arguments = demo({"--decode"}, "tokenize");
  back.input = ids.out;
  CHECK(run(back).out == text);
  check_refused(run(demo({"-p", "1 2 two", "--decode"}, "tokenize")), 1, {"two"});
  check_refused(run(demo({"-p", "a\xc0"}, "tokenize")), 1, {"offset 1"});
}

TEST_CASE("eval gives the perplexity and the logits as NumPy files", "[program][eval]") {
  const TempFolder folder;
  const std::string text =
      "import os\n\ndef find_files(root, suffix):\n    return [name for name in os.listdir(root)]\n";
  const auto arguments = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"-p", text, "--json", "-"});
    return demo(std::move(more), "eval");
  };
  const Outcome outcome =
      run(arguments({"--mtp", "2", "--logits", folder.file("l.npy"), "--mtp-logits", folder.file("m.npy")}));
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  const Json json = Json::parse(outcome.out);
  const int64_t n = json["tokens"];
  CHECK(json["tokens_counted"] == n - 1);
  CHECK(json["perplexity"].get<double>() > 1);
  CHECK(json["perplexity"].get<double>() < 100);  // the model has read such text
  CHECK(json["drafts_compared_by_position"] == Json({n, n - 1}));
  CHECK(json["draft_agreement_by_position"][0].get<double>() > 0.3);

  // The perplexity again, from the file.
  const std::string logits = read_all(folder.file("l.npy"));
  const std::string mtp = read_all(folder.file("m.npy"));
  REQUIRE(logits.size() == mtp.size());
  const size_t begin = logits.find('\n') + 1;
  const int64_t vocab = static_cast<int64_t>((logits.size() - begin) / sizeof(float)) / n;
  CHECK(logits.find(std::to_string(n) + ", " + std::to_string(vocab)) != std::string::npos);
  std::vector<float> values(static_cast<size_t>(n * vocab));
  std::memcpy(values.data(), logits.data() + begin, values.size() * sizeof(float));
  const Outcome tokens = run(demo({"-p", text}, "tokenize"));
  std::istringstream ids(tokens.out);
  double nll = 0;
  int64_t id = 0;
  ids >> id;
  for (int64_t p = 0; p + 1 < n; ++p) {
    ids >> id;
    const float* row = values.data() + p * vocab;
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(row[i]));
    nll += std::log(sum) - static_cast<double>(row[id]);
  }
  CHECK(json["nats_per_token"].get<double>() == Approx(nll / static_cast<double>(n - 1)).epsilon(1e-9));

  // Chunks and single rows of the MTP layer change nothing.
  const Outcome again =
      run(arguments({"--prompt-chunk", "3", "--logits", folder.file("l2.npy"), "--mtp-logits", folder.file("m2.npy")}));
  REQUIRE(again.exit_code == 0);
  CHECK(read_all(folder.file("l2.npy")) == logits);
  CHECK(read_all(folder.file("m2.npy")) == mtp);
  CHECK(Json::parse(again.out)["perplexity"] == json["perplexity"]);
}

TEST_CASE("eval cuts a text that is longer than the context into parts", "[program][eval]") {
  std::string text;
  for (int i = 0; i < 20; ++i) text += "import os\nimport sys\n";
  const Outcome outcome = run(demo({"-p", text, "-c", "32", "--json", "-"}, "eval"));
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  const Json json = Json::parse(outcome.out);
  const int64_t parts = json["parts"];
  CHECK(parts == (json["tokens"].get<int64_t>() + 31) / 32);
  CHECK(json["tokens_counted"] == json["tokens"].get<int64_t>() - parts);
}

TEST_CASE("bench measures arms with equal ids and writes JSON and CSV", "[program][bench]") {
  const TempFolder folder;
  const std::string prompts = write_file(folder, "prompts.txt", "def main():\n\nimport os\n");
  const Outcome outcome =
      run(demo({"--prompts", prompts, "-n", "16", "--rounds", "2", "--arms", "off,mtp:2:fixed,mtp:3:per-token",
                "--json", folder.file("b.json"), "--csv", folder.file("b.csv")},
               "bench"));
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  for (const char* word : {"off", "mtp:2:fixed", "mtp:3:per-token", "V(n)", "U(n)", "GB/s", "identical"}) {
    INFO(outcome.out);
    CHECK(outcome.out.find(word) != std::string::npos);
  }
  const Json json = Json::parse(read_all(folder.file("b.json")));
  CHECK(json["identical"] == true);
  CHECK(json["bandwidth_gb_per_s"].get<double>() > 0.1);
  CHECK(json["expert_count"] == 16);
  CHECK(json["expert_used_count"] == 2);
  REQUIRE(json["arms"].size() == 3);
  for (const Json& arm : json["arms"]) {
    for (const char* key : {"name", "tokens_per_second", "ci95", "speedup", "speedup_ci95", "acceptance_length",
                            "ids_sha256", "bytes_per_token", "bandwidth_share", "verify_ms_by_rows", "draft_ms",
                            "slowdown_by_rows", "byte_ratio_by_rows", "windows_by_rows", "verify_ms", "accept_ms",
                            "refresh_ms", "distinct_experts_by_rows", "peak_rss_bytes"}) {
      INFO(key);
      CHECK(arm.contains(key));
    }
    CHECK(arm["ids_sha256"] == json["arms"][0]["ids_sha256"]);
    CHECK(arm["tokens_per_second"].get<double>() > 0);
    CHECK(arm["bytes_per_token"].get<double>() > 0);
  }
  CHECK(json["arms"][0]["acceptance_length"].get<double>() == Approx(1));
  CHECK(json["arms"][0]["speedup"].get<double>() == Approx(1));
  CHECK(json["arms"][1]["verify_ms_by_rows"][3].is_number());
  CHECK(json["arms"][1]["byte_ratio_by_rows"][3].get<double>() > 1);
  CHECK(json["arms"][1]["byte_ratio_by_rows"][3].get<double>() < json["arms"][1]["distinct_experts_by_rows"][3]);
  const std::string csv = read_all(folder.file("b.csv"));
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 1 + 3 * 2);
}

TEST_CASE("bench with forced acceptance accepts all drafts or none, and gives the same ids", "[program][bench]") {
  const auto acceptance_length = [](const std::string& forced) {
    const Outcome outcome = run(
        demo({"-n", "25", "--rounds", "1", "--arms", "off,mtp:3:fixed", "--forced-acceptance", forced, "--json", "-"},
             "bench"));
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    return Json::parse(outcome.out)["arms"][1]["acceptance_length"].get<double>();
  };
  CHECK(acceptance_length("1") == Approx(4));  // 24 tokens after the first: six windows of four
  CHECK(acceptance_length("0") == Approx(1));
}

TEST_CASE("bench can lengthen and cut its prompts", "[program][bench]") {
  for (const int tokens : {3, 100}) {
    const Outcome outcome = run(demo(
        {"-n", "8", "--rounds", "1", "--arms", "off,mtp:1", "--prompt-tokens", std::to_string(tokens), "--json", "-"},
        "bench"));
    INFO(outcome.err);
    REQUIRE(outcome.exit_code == 0);
    const Json json = Json::parse(outcome.out);
    CHECK(json["prompt_tokens"] == Json({tokens, tokens, tokens}));
    CHECK(json["int8_peak_gop_per_s"].get<double>() > 0);
    CHECK(json["load_ms"].get<double>() > 0);
    for (const Json& arm : json["arms"]) {
      CHECK(arm["prompt_int8_share"].get<double>() > 0);
      CHECK(arm["prompt_int8_share"].get<double>() < 1);
    }
  }
}

TEST_CASE("bench stops at the model's context", "[program][bench]") {
  const TempFolder folder;
  const std::string prompts = write_file(folder, "prompt.txt", "import os\n");
  const Outcome outcome =
      run(demo({"--prompts", prompts, "-n", "100000", "--rounds", "1", "--arms", "off", "--ignore-eos", "--json", "-"},
               "bench"));
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  const int64_t passes = Json::parse(outcome.out)["arms"][0]["verify_passes"];
  CHECK(passes > 2000);
  CHECK(passes < 2048);
}

TEST_CASE("selfcheck finds no difference and says what it could not run", "[program][selfcheck]") {
  const Outcome outcome = run(demo({"-n", "8", "--json", "-"}, "selfcheck"));
  INFO(outcome.err);
  INFO(outcome.out);
  REQUIRE(outcome.exit_code == 0);
  const Json json = Json::parse(outcome.out);
  CHECK(json["identical"] == true);
  CHECK(json["cases"].size() > 20);
  for (const Json& check : json["cases"]) CHECK(check["equal"] == true);
  if (run({"--version"}).out.find("CUDA: not built in") != std::string::npos) {
    CHECK(std::any_of(json["not_run"].begin(), json["not_run"].end(),
                      [](const Json& item) { return item["what"] == "cuda"; }));
  }
}

TEST_CASE("inspect lists tensors, bytes and what MTP can gain", "[program][inspect]") {
  const Outcome outcome = run({"inspect", kDemoModel});
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  for (const char* word :
       {"qwen35moe", "token_embd.weight", "interleaved", "look-up", "routed_experts", "GB/s", "published overlap"}) {
    INFO(outcome.out);
    CHECK(outcome.out.find(word) != std::string::npos);
  }
  const Outcome as_json = run({"inspect", kDemoModel, "--json", "-"});
  REQUIRE(as_json.exit_code == 0);
  const Json json = Json::parse(as_json.out);
  CHECK(json["can_run"] == true);
  CHECK(json["unsupported_tensors"].empty());
  CHECK(json["ideal_speedup"].size() == 8);
  CHECK(json["bytes_per_window"].size() == 9);
  double sum = 0;
  for (const auto& [kind, bytes] : json["bytes_per_token"].items()) {
    if (kind != "total") sum += bytes.get<double>();
  }
  CHECK(json["bytes_per_token"]["total"].get<double>() == Approx(sum));
}
