#include "tools/bench/bench_arms.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "tools/cli/model_flags.h"

namespace foretoken {

namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

BenchArm parse_arm(std::string_view text, const BenchArm& defaults) {
  const auto fail = [&] {
    throw UsageError(fmt::format(
        "--arms: \"{}\" is no arm; known: off, mtp:K, auto, each with :per-token, :grouped or :fixed behind it", text));
  };
  BenchArm arm = defaults;
  arm.name = text;
  std::vector<std::string_view> parts = split(text, ':');
  size_t options_begin = 1;
  if (parts[0] == "off") {
    arm.mtp = 0;
  } else if (parts[0] == "auto") {
    arm.mtp = kMaxDraft;
    arm.controller = true;
  } else if (parts[0] == "mtp" && parts.size() >= 2) {
    arm.mtp = static_cast<int>(parse_int("--arms: mtp:", parts[1], 0, kMaxDraft));
    options_begin = 2;
  } else {
    fail();
  }
  for (size_t i = options_begin; i < parts.size(); ++i) {
    if (parts[i] == "per-token") {
      arm.moe_verify = MoeVerify::kPerToken;
    } else if (parts[i] == "grouped") {
      arm.moe_verify = MoeVerify::kGrouped;
    } else if (parts[i] == "fixed" && parts[0] == "mtp") {
      arm.controller = false;
    } else {
      fail();
    }
  }
  return arm;
}

std::optional<IdDifference> compare(const std::vector<TokenId>& expected, const std::vector<TokenId>& got,
                                    size_t arm_idx, size_t prompt_idx) {
  const auto [e, g] = std::mismatch(expected.begin(), expected.end(), got.begin(), got.end());
  if (e == expected.end() && g == got.end()) return std::nullopt;
  return IdDifference{arm_idx, prompt_idx, static_cast<size_t>(e - expected.begin()), e == expected.end() ? -1 : *e,
                      g == got.end() ? -1 : *g};
}

template <class T>
void add_each(std::vector<T>& to, const std::vector<T>& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

}  // namespace

std::vector<BenchArm> parse_arms(std::string_view text, const BenchArm& defaults) {
  std::vector<BenchArm> arms;
  for (std::string_view part : split(text, ',')) {
    BenchArm arm = parse_arm(part, defaults);
    for (const BenchArm& other : arms) {
      if (other.name == arm.name) throw UsageError(fmt::format("--arms: {} stands twice", arm.name));
    }
    arms.push_back(std::move(arm));
  }
  return arms;
}

BenchSamples measure_arms(size_t num_arms, size_t num_prompts, int num_rounds, const RunArm& run) {
  BenchSamples samples;
  samples.ids.resize(num_prompts);
  samples.arm_ids.assign(num_arms, std::vector<std::vector<TokenId>>(num_prompts));
  samples.rounds.assign(num_arms, std::vector<DecodeStatistics>(static_cast<size_t>(num_rounds)));

  const auto one = [&](int round, size_t arm, size_t prompt) {
    ArmRun result = run(round, arm, prompt);
    if (round == 0) {
      if (arm == 0) samples.ids[prompt] = result.ids;
      samples.arm_ids[arm][prompt] = result.ids;
    } else {
      accumulate(samples.rounds[arm][round - 1], result.statistics);
    }
    if (!samples.difference) samples.difference = compare(samples.ids[prompt], result.ids, arm, prompt);
  };

  for (size_t arm = 0; arm < num_arms; ++arm) {
    for (size_t prompt = 0; prompt < num_prompts; ++prompt) {
      one(0, arm, prompt);
    }
  }
  for (int round = 1; round <= num_rounds && !samples.difference; ++round) {
    for (size_t prompt = 0; prompt < num_prompts; ++prompt) {
      const bool forward = (static_cast<size_t>(round) + prompt) % 2 == 1;
      for (size_t i = 0; i < num_arms; ++i) {
        one(round, forward ? i : num_arms - 1 - i, prompt);
      }
    }
  }
  return samples;
}

void accumulate(DecodeStatistics& to, const DecodeStatistics& from) {
  to.prompt_tokens += from.prompt_tokens;
  to.prompt_ms += from.prompt_ms;
  to.prompt_mtp_ms += from.prompt_mtp_ms;
  to.time_to_first_token_ms += from.time_to_first_token_ms;
  to.new_tokens += from.new_tokens;
  to.decode_ms += from.decode_ms;
  to.decode_tokens += from.decode_tokens;
  to.verify_passes += from.verify_passes;
  to.verified_tokens += from.verified_tokens;
  to.drafted += from.drafted;
  to.accepted += from.accepted;
  add_each(to.drafted_by_position, from.drafted_by_position);
  add_each(to.accepted_by_position, from.accepted_by_position);
  add_each(to.windows_by_k, from.windows_by_k);
  to.draft_ms += from.draft_ms;
  to.verify_ms += from.verify_ms;
  to.accept_ms += from.accept_ms;
  to.refresh_ms += from.refresh_ms;
  add_each(to.verify_ms_by_rows, from.verify_ms_by_rows);
  add_each(to.windows_by_rows, from.windows_by_rows);
  add_each(to.distinct_experts_by_rows, from.distinct_experts_by_rows);
  to.draft_step_ms += from.draft_step_ms;
  to.draft_steps += from.draft_steps;
}

}  // namespace foretoken
