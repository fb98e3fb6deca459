#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "tools/bench/bench_arms.h"
#include "tools/cli/model_flags.h"

namespace foretoken {

/// What bench --batch measures: every arm at every number of texts that are decoded together.
struct BatchBench {
  std::vector<int> batches;  // numbers of texts, e.g. 1, 2, 4, 8
  std::vector<BenchArm> arms;
  std::vector<std::vector<TokenId>> prompts;
  int64_t new_tokens = 128;  // of each text
  int rounds = 3;
  std::optional<double> forced_acceptance;  // nothing: the drafter's own drafts count
  bool ignore_eos = false;
};

struct BatchOutcome {
  std::string text;             // the table, or where ids differ
  nlohmann::ordered_json json;  // "identical" and "batches"
  int exit_code = 0;            // 3 where an arm's ids differ from the first arm's
};

/// Numbers of texts, comma-separated. Throws UsageError.
[[nodiscard]] std::vector<int> parse_batches(std::string_view text);

/// Runs all arms and batches in turn, first round dropped. Only steps count in which all texts of a batch have a
/// window: no prompt is read in them and nobody has ended.
[[nodiscard]] BatchOutcome measure_batches(const Model& model, const ModelFlags& flags, const BatchBench& bench);

}  // namespace foretoken
