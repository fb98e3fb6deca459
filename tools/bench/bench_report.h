#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/bench/bench_arms.h"
#include "tools/bench/byte_model.h"
#include "tools/bench/resampling.h"

namespace foretoken {

/// Memory of one arm on its own.
struct ArmMemory {
  uint64_t peak_rss_bytes = 0;  // while the arm ran alone, weights included
  uint64_t session_bytes = 0;   // KV cache, states and work buffers
};

/// What the byte counts of a report depend on.
struct ByteAccount {
  const ByteModel* model = nullptr;
  int64_t draft_vocab = 0;
  KvType kv_type = KvType::kF16;
  double kv_len = 0;     // mean length of the context while decoding
  double bandwidth = 0;  // read bandwidth of this machine, bytes a second, measured in the same run
  double int8_peak = 0;  // multiplications and additions of int8 a second, measured in the same run; 0: not measured
};

/// The figures of one arm. Vectors by rows are indexed by the rows of a window; an entry is -1 where no such window
/// ran.
struct ArmReport {
  std::string name;
  std::string ids_sha256;
  std::vector<double> tokens_per_second;  // one a round
  double median_tokens_per_second = 0;
  Interval tokens_interval;
  double speedup = 0;  // to the first arm: median of the rounds' ratios
  Interval speedup_interval;
  DecodeStatistics total;               // over all rounds
  double prompt_tokens_per_second = 0;  // median over rounds
  double prompt_speedup = 0;            // to the first arm: median of the rounds' ratios
  double prompt_int8_share = 0;         // of the int8 peak
  double time_to_first_token_ms = 0;    // median over rounds of the mean over prompts
  std::vector<double> verify_ms_by_rows;
  std::vector<double> slowdown_by_rows;          // V(n)
  std::vector<double> distinct_experts_by_rows;  // U(n)
  std::vector<double> byte_ratio_by_rows;        // bytes of a pass over n rows / over one: what V(n) cannot go below
  double bytes_per_token = 0;
  double bytes_per_second = 0;
  double bandwidth_share = 0;
  ArmMemory memory;
};

/// REQUIRES: samples without a difference, at least one round with decode time in every arm.
[[nodiscard]] std::vector<ArmReport> report_arms(const std::vector<BenchArm>& arms, const BenchSamples& samples,
                                                 const ByteAccount& account, const std::vector<ArmMemory>& memory);

/// The table for a person.
[[nodiscard]] std::string format_table(const std::vector<ArmReport>& reports);
/// The array "arms" of the JSON result.
[[nodiscard]] nlohmann::ordered_json arms_json(const std::vector<ArmReport>& reports);
/// One line an arm and round.
[[nodiscard]] std::string format_csv(const std::vector<ArmReport>& reports, const BenchSamples& samples);

/// "arm mtp:2, prompt 1, token 17: id 5, where arm off has 9".
[[nodiscard]] std::string describe_difference(const std::vector<BenchArm>& arms, const IdDifference& difference);

/// What a finished measurement says and how the command ends.
struct BenchOutcome {
  int exit_code = 0;            // kExitCheckFailed if an arm's ids differ: then no speed stands in any of the texts
  std::string text;             // for a person
  nlohmann::ordered_json json;  // "identical", "bandwidth_gb_per_s", "arms"
  std::string csv;
};
/// REQUIRES: !samples.interrupted.
[[nodiscard]] BenchOutcome conclude_bench(const std::vector<BenchArm>& arms, const BenchSamples& samples,
                                          const ByteAccount& account, const std::vector<ArmMemory>& memory);

}  // namespace foretoken
