#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"
#include "moe/moe_verify.h"
#include "mtp/statistics.h"

namespace foretoken {

/// One setting under measurement. Written as off, mtp:K or auto, then any of :per-token, :grouped, :fixed.
struct BenchArm {
  std::string name;
  int mtp = 0;
  bool controller = true;
  MoeVerify moe_verify = MoeVerify::kGrouped;
};

/// Comma-separated arms; `defaults` gives what an arm does not say itself. Throws UsageError.
[[nodiscard]] std::vector<BenchArm> parse_arms(std::string_view text, const BenchArm& defaults);

/// What one arm made of one prompt.
struct ArmRun {
  std::vector<TokenId> ids;
  DecodeStatistics statistics;
};

/// Runs one arm over one prompt. Round 0 is the one that is dropped: it takes the arms one after the other, so that a
/// runner can set up and tear down an arm alone; the other rounds interleave them.
using RunArm = std::function<ArmRun(int round, size_t arm_idx, size_t prompt_idx)>;

/// The first place where an arm's ids part from the first arm's.
struct IdDifference {
  size_t arm_idx = 0;
  size_t prompt_idx = 0;
  size_t token_idx = 0;
  TokenId expected = -1;  // -1: the first arm's text ends here
  TokenId got = -1;       // -1: this arm's text ends here
};

struct BenchSamples {
  std::vector<std::vector<TokenId>> ids;                   // [num_prompts] of the first arm
  std::vector<std::vector<std::vector<TokenId>>> arm_ids;  // [num_arms][num_prompts] of round 0
  std::vector<std::vector<DecodeStatistics>> rounds;       // [num_arms][num_rounds] sums over the prompts
  std::optional<IdDifference> difference;                  // set: the measurement ended with the round that showed it
};

/// Round 0, then `num_rounds` rounds: prompt after prompt, the arms in order and in reverse order by turns (A B B A
/// ...), so that a drift of the machine's speed meets all arms alike.
[[nodiscard]] BenchSamples measure_arms(size_t num_arms, size_t num_prompts, int num_rounds, const RunArm& run);

/// Adds the counts and times of `from`.
void accumulate(DecodeStatistics& to, const DecodeStatistics& from);

}  // namespace foretoken
