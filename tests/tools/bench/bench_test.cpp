#include <catch2/catch.hpp>
#include <vector>

#include "engine/gguf/gguf.h"
#include "kernels/base/error.h"
#include "mtp/decoder.h"
#include "tools/bench/bench_arms.h"
#include "tools/bench/bench_report.h"
#include "tools/commands.h"

using namespace foretoken;

namespace {

/// A run that made `tokens` tokens in `ms`.
ArmRun made(std::vector<TokenId> ids, double ms) {
  ArmRun run;
  run.statistics.new_tokens = static_cast<int64_t>(ids.size());
  run.statistics.decode_tokens = run.statistics.new_tokens - 1;
  run.statistics.decode_ms = ms;
  run.statistics.prompt_tokens = 100;
  run.statistics.prompt_ms = 2 * ms;
  run.statistics.verify_passes = run.statistics.decode_tokens;
  run.statistics.verified_tokens = run.statistics.decode_tokens;
  run.statistics.windows_by_rows.assign(kMaxDraft + 2, 0);
  run.statistics.verify_ms_by_rows.assign(kMaxDraft + 2, 0);
  run.statistics.distinct_experts_by_rows.assign(kMaxDraft + 2, 0);
  run.statistics.windows_by_rows[1] = run.statistics.decode_tokens;
  run.statistics.verify_ms_by_rows[1] = ms;
  run.statistics.distinct_experts_by_rows[1] = static_cast<double>(run.statistics.decode_tokens);
  run.ids = std::move(ids);
  return run;
}

BenchOutcome conclude(const std::vector<BenchArm>& arms, const BenchSamples& samples) {
  const GgufFile file = GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf");
  const ModelOutline outline = Model::outline(file);
  const ByteModel bytes(outline.weights, outline.config);
  ByteAccount account;
  account.model = &bytes;
  account.kv_len = 100;
  account.bandwidth = 10e9;
  account.int8_peak = 500e9;
  return conclude_bench(arms, samples, account, std::vector<ArmMemory>(arms.size()));
}

}  // namespace

TEST_CASE("Arms are read from text", "[bench]") {
  BenchArm defaults;
  const auto arms = parse_arms("off,mtp:2,mtp:3:per-token,mtp:8:fixed:grouped,auto", defaults);
  REQUIRE(arms.size() == 5);
  CHECK(arms[0].name == "off");
  CHECK(arms[0].mtp == 0);
  CHECK(arms[1].mtp == 2);
  CHECK(arms[1].controller);
  CHECK(arms[1].moe_verify == MoeVerify::kGrouped);
  CHECK(arms[2].moe_verify == MoeVerify::kPerToken);
  CHECK(arms[3].mtp == 8);
  CHECK_FALSE(arms[3].controller);
  CHECK(arms[4].mtp == kMaxDraft);
  CHECK(arms[4].controller);
}

TEST_CASE("What an arm does not say comes from the defaults", "[bench]") {
  BenchArm defaults;
  defaults.controller = false;
  defaults.moe_verify = MoeVerify::kPerToken;
  const auto arms = parse_arms("mtp:2,mtp:3:grouped,auto", defaults);
  CHECK_FALSE(arms[0].controller);
  CHECK(arms[0].moe_verify == MoeVerify::kPerToken);
  CHECK(arms[1].moe_verify == MoeVerify::kGrouped);
  CHECK(arms[2].controller);
}

TEST_CASE("Bad arms are refused", "[bench]") {
  for (const char* text : {"", "on", "mtp", "mtp:", "mtp:9", "mtp:-1", "mtp:x", "off,off", "off,,mtp:1", "mtp:2:fast",
                           "off:fixed", "mtp:2:"}) {
    INFO(text);
    CHECK_THROWS_AS(parse_arms(text, BenchArm()), UsageError);
  }
}

TEST_CASE("Rounds interleave A B B A, and the first is dropped", "[bench]") {
  std::string order;
  const BenchSamples samples = measure_arms(2, 2, 2, [&](int round, size_t arm, size_t prompt) {
    order += std::to_string(round) + static_cast<char>('A' + arm) + std::to_string(prompt) + " ";
    return made({1, 2, 3}, round == 0 ? 1000 : 10.0 * static_cast<double>(arm + 1));
  });
  CHECK(order == "0A0 0A1 0B0 0B1 1A0 1B0 1B1 1A1 2B0 2A0 2A1 2B1 ");
  CHECK_FALSE(samples.difference);
  REQUIRE(samples.rounds[1].size() == 2);
  CHECK(samples.rounds[0][0].decode_ms == 20);  // two prompts, without round 0
  CHECK(samples.rounds[1][1].decode_ms == 40);
  CHECK(samples.rounds[1][1].decode_tokens == 4);
}

TEST_CASE("The ratio is to the first arm, round by round", "[bench]") {
  const auto arms = parse_arms("off,mtp:1", BenchArm());
  const BenchSamples samples = measure_arms(2, 1, 3, [&](int round, size_t arm, size_t) {
    // The machine slows down from round to round; the ratio stays.
    return made({1, 2, 3, 4, 5}, 40.0 * (1 + round) / (arm == 0 ? 1 : 2));
  });
  const BenchOutcome outcome = conclude(arms, samples);
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.json["identical"] == true);
  const auto& on = outcome.json["arms"][1];
  CHECK(on["name"] == "mtp:1");
  CHECK(on["speedup"].get<double>() == Approx(2));
  CHECK(on["speedup_ci95"][0].get<double>() == Approx(2));
  CHECK(on["tokens_per_second"].get<double>() == Approx(1e3 * 4 / 60));  // round 2 of 80, 120, 160 ms, halved
  CHECK(on["verify_ms_by_rows"][1].get<double>() == Approx((40 + 60 + 80) / 12.0));
  CHECK(on["verify_ms_by_rows"][2].is_null());
  CHECK(on["slowdown_by_rows"][1].get<double>() == Approx(0.5));
  CHECK(on["distinct_experts_by_rows"][1].get<double>() == Approx(1));
  CHECK(on["byte_ratio_by_rows"][1].get<double>() == Approx(1));
  CHECK(on["byte_ratio_by_rows"][2].is_null());
  CHECK(on["bandwidth_share"].get<double>() ==
        Approx(on["bytes_per_token"].get<double>() * on["tokens_per_second"].get<double>() / 10e9));
  CHECK(on["prompt_speedup"].get<double>() == Approx(2));
  CHECK(on["prompt_tokens_per_second"].get<double>() == Approx(1e3 * 100 / 120));
  const GgufFile file = GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf");
  const ModelOutline outline = Model::outline(file);
  const ByteModel bytes(outline.weights, outline.config);
  CHECK(on["prompt_int8_share"].get<double>() == Approx(bytes.prompt_operations() * 1e3 * 100 / 120 / 500e9));
  CHECK(outcome.json["int8_peak_gop_per_s"] == 500);
  CHECK(outcome.json["arms"][0]["ids_sha256"] == on["ids_sha256"]);
}

TEST_CASE("An arm whose ids differ ends the measurement with exit 3 and no speed", "[bench]") {
  const auto arms = parse_arms("off,mtp:2", BenchArm());
  const int bad_round = GENERATE(0, 1, 2);
  int last_round = 0;
  const BenchSamples samples = measure_arms(2, 1, 4, [&](int round, size_t arm, size_t) {
    last_round = round;
    return arm == 1 && round == bad_round ? made({7, 8, 10, 11}, 10) : made({7, 8, 9, 11}, 10);
  });
  CHECK(last_round == bad_round);
  REQUIRE(samples.difference);
  CHECK(samples.difference->arm_idx == 1);
  CHECK(samples.difference->token_idx == 2);
  CHECK(samples.difference->expected == 9);
  CHECK(samples.difference->got == 10);
  const BenchOutcome outcome = conclude(arms, samples);
  CHECK(outcome.exit_code == kExitCheckFailed);
  CHECK(outcome.json["identical"] == false);
  CHECK_FALSE(outcome.json["arms"][1].contains("tokens_per_second"));
  CHECK(outcome.text.find("DIFFER") != std::string::npos);
  CHECK(outcome.text.find("tok/s") == std::string::npos);
  CHECK(outcome.csv.empty());
}

TEST_CASE("A text that ends early is a difference too", "[bench]") {
  const BenchSamples samples = measure_arms(2, 1, 1, [&](int, size_t arm, size_t) {
    return arm == 1 ? made({7, 8}, 10) : made({7, 8, 9}, 10);
  });
  REQUIRE(samples.difference);
  CHECK(samples.difference->token_idx == 2);
  CHECK(samples.difference->expected == 9);
  CHECK(samples.difference->got == -1);
}
