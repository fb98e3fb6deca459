#include "tools/bench/bench_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

constexpr double kNone = -1;

double ratio(double a, double b) {
  return b > 0 ? a / b : 0;
}

/// Sums over windows of n rows -> means; kNone where there was no such window.
std::vector<double> means(const std::vector<double>& sums, const std::vector<int64_t>& windows) {
  std::vector<double> result(windows.size(), kNone);
  for (size_t n = 0; n < windows.size() && n < sums.size(); ++n) {
    if (windows[n] > 0) result[n] = sums[n] / static_cast<double>(windows[n]);
  }
  return result;
}

/// Bytes that a pass over n rows has to read, of which distinct_experts = U(n).
double pass_bytes(const BenchArm& arm, size_t n, double distinct_experts, const ByteAccount& account) {
  // The per-token core reads an expert again for every row that it serves.
  const double experts = arm.moe_verify == MoeVerify::kPerToken ? static_cast<double>(n) : distinct_experts;
  return account.model->trunk_pass(experts, account.kv_len, account.kv_type).total();
}

/// Bytes that all the arm's windows together had to read.
double bytes_read(const BenchArm& arm, const DecodeStatistics& s, const std::vector<double>& distinct_experts,
                  const ByteAccount& account) {
  double bytes = 0;
  for (size_t n = 1; n < s.windows_by_rows.size(); ++n) {
    if (s.windows_by_rows[n] == 0) continue;
    bytes += static_cast<double>(s.windows_by_rows[n]) * pass_bytes(arm, n, distinct_experts[n], account);
  }
  if (arm.mtp > 0) {
    // The MTP layer runs once over the accepted tokens before a window that drafts (refresh) and once for each further
    // draft; its head once a draft. Windows that draft nothing leave it waiting.
    const int64_t without_drafts = s.windows_by_k.empty() ? 0 : s.windows_by_k[0];
    const double passes = static_cast<double>(s.verify_passes - without_drafts + s.draft_steps);
    bytes += passes * account.model->mtp_layer_pass(1, account.kv_len, account.kv_type);
    bytes += static_cast<double>(s.drafted) * account.model->draft_head(account.draft_vocab);
  }
  return bytes;
}

/// Mean ms of a one-row pass: of the first arm that had some.
double one_row_ms(const std::vector<ArmReport>& reports) {
  for (const ArmReport& report : reports) {
    if (report.verify_ms_by_rows.size() > 1 && report.verify_ms_by_rows[1] > 0) return report.verify_ms_by_rows[1];
  }
  return 0;
}

nlohmann::ordered_json by_rows_json(const std::vector<double>& values) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (double value : values)
    list.push_back(value == kNone ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(value));
  return list;
}

/// null for 0: not measured.
nlohmann::ordered_json or_null(double value) {
  return value > 0 ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

std::string by_rows_text(const std::vector<double>& values) {
  std::string text;
  for (size_t n = 1; n < values.size(); ++n) {
    if (values[n] != kNone) text += fmt::format("  {}: {:.2f}", n, values[n]);
  }
  return text;
}

std::string acceptance_text(const DecodeStatistics& s) {
  std::string text;
  for (size_t i = 0; i < s.drafted_by_position.size() && s.drafted_by_position[i] > 0; ++i) {
    text += fmt::format("  {:.0f}%", 100 * ratio(static_cast<double>(s.accepted_by_position[i]),
                                                 static_cast<double>(s.drafted_by_position[i])));
  }
  return text;
}

std::string histogram_text(const DecodeStatistics& s) {
  std::string text;
  for (size_t k = 0; k < s.windows_by_k.size(); ++k) {
    if (s.windows_by_k[k] > 0) {
      text += fmt::format("  {}: {:.0f}%", k,
                          100 * ratio(static_cast<double>(s.windows_by_k[k]), static_cast<double>(s.verify_passes)));
    }
  }
  return text;
}

/// One hash over the ids of all prompts, in order.
std::string joined_ids_sha256(const std::vector<std::vector<TokenId>>& ids_by_prompt) {
  std::vector<TokenId> all;
  for (const auto& ids : ids_by_prompt) all.insert(all.end(), ids.begin(), ids.end());
  return ids_sha256(all);
}

ArmReport report_arm(const BenchArm& arm, const std::vector<DecodeStatistics>& rounds,
                     const std::vector<DecodeStatistics>& first, size_t num_prompts) {
  ArmReport report;
  report.name = arm.name;
  std::vector<double> speedups, prompt_speeds, prompt_speedups, first_tokens;
  for (size_t r = 0; r < rounds.size(); ++r) {
    report.tokens_per_second.push_back(rounds[r].decode_tokens_per_second());
    speedups.push_back(ratio(rounds[r].decode_tokens_per_second(), first[r].decode_tokens_per_second()));
    prompt_speeds.push_back(rounds[r].prompt_tokens_per_second());
    prompt_speedups.push_back(ratio(prompt_speeds.back(), first[r].prompt_tokens_per_second()));
    first_tokens.push_back(rounds[r].time_to_first_token_ms / static_cast<double>(num_prompts));
    accumulate(report.total, rounds[r]);
  }
  report.median_tokens_per_second = median(report.tokens_per_second);
  report.tokens_interval = bootstrap_median(report.tokens_per_second);
  report.speedup = median(speedups);
  report.speedup_interval = bootstrap_median(speedups);
  report.prompt_tokens_per_second = median(prompt_speeds);
  report.prompt_speedup = median(prompt_speedups);
  report.time_to_first_token_ms = median(first_tokens);
  report.verify_ms_by_rows = means(report.total.verify_ms_by_rows, report.total.windows_by_rows);
  report.distinct_experts_by_rows = means(report.total.distinct_experts_by_rows, report.total.windows_by_rows);
  return report;
}

}  // namespace

std::vector<ArmReport> report_arms(const std::vector<BenchArm>& arms, const BenchSamples& samples,
                                   const ByteAccount& account, const std::vector<ArmMemory>& memory) {
  FT_CHECK(!samples.difference);
  std::vector<ArmReport> reports;
  for (size_t a = 0; a < arms.size(); ++a) {
    ArmReport report = report_arm(arms[a], samples.rounds[a], samples.rounds[0], samples.ids.size());
    report.ids_sha256 = joined_ids_sha256(samples.arm_ids[a]);
    const double tokens = static_cast<double>(report.total.decode_tokens);
    report.bytes_per_token = ratio(bytes_read(arms[a], report.total, report.distinct_experts_by_rows, account), tokens);
    report.bytes_per_second = report.bytes_per_token * report.median_tokens_per_second;
    report.bandwidth_share = ratio(report.bytes_per_second, account.bandwidth);
    report.prompt_int8_share =
        ratio(report.prompt_tokens_per_second * account.model->prompt_operations(), account.int8_peak);
    report.byte_ratio_by_rows.assign(report.distinct_experts_by_rows.size(), kNone);
    for (size_t n = 1; n < report.byte_ratio_by_rows.size(); ++n) {
      const double experts = report.distinct_experts_by_rows[n];
      if (experts == kNone) continue;
      report.byte_ratio_by_rows[n] = pass_bytes(arms[a], n, experts, account) / pass_bytes(arms[a], 1, 1, account);
    }
    report.memory = memory[a];
    reports.push_back(std::move(report));
  }
  const double one_row = one_row_ms(reports);
  for (ArmReport& report : reports) {
    report.slowdown_by_rows.assign(report.verify_ms_by_rows.size(), kNone);
    for (size_t n = 1; n < report.verify_ms_by_rows.size() && one_row > 0; ++n) {
      if (report.verify_ms_by_rows[n] != kNone) report.slowdown_by_rows[n] = report.verify_ms_by_rows[n] / one_row;
    }
  }
  return reports;
}

std::string format_table(const std::vector<ArmReport>& reports) {
  size_t width = 3;
  for (const ArmReport& report : reports) width = std::max(width, report.name.size());
  std::string text = fmt::format("{:<{}}  {:>9} {:^19}  {:>6} {:^15}  {:>5} {:>5}  {:>9} {:>7} {:>6}\n", "arm", width,
                                 "tok/s", "95%", "ratio", "95%", "AL", "k", "MB/token", "GB/s", "share");
  for (const ArmReport& r : reports) {
    text += fmt::format(
        "{:<{}}  {:>9.2f} [{:>8.2f} {:>8.2f}]  {:>6.3f} [{:>6.3f} {:>6.3f}]  {:>5.2f} {:>5.2f}  {:>9.2f} {:>7.2f} "
        "{:>5.0f}%\n",
        r.name, width, r.median_tokens_per_second, r.tokens_interval.low, r.tokens_interval.high, r.speedup,
        r.speedup_interval.low, r.speedup_interval.high, r.total.acceptance_length(), r.total.mean_k(),
        r.bytes_per_token / 1e6, r.bytes_per_second / 1e9, 100 * r.bandwidth_share);
  }
  text += fmt::format("\n{:<{}}  {:>8} {:>8} {:>8} {:>8}  {:>12} {:>6} {:>9} {:>12}  {:>10} {:>10}\n", "ms a cycle",
                      width, "draft", "verify", "accept", "refresh", "prompt tok/s", "ratio", "int8 peak",
                      "1st token ms", "session", "peak");
  for (const ArmReport& r : reports) {
    const double passes = static_cast<double>(std::max<int64_t>(r.total.verify_passes, 1));
    text +=
        fmt::format("{:<{}}  {:>8.3f} {:>8.3f} {:>8.3f} {:>8.3f}  {:>12.1f} {:>6.3f} {:>9} {:>12.1f}  {:>10} {:>10}\n",
                    r.name, width, r.total.draft_ms / passes, r.total.verify_ms / passes, r.total.accept_ms / passes,
                    r.total.refresh_ms / passes, r.prompt_tokens_per_second, r.prompt_speedup,
                    r.prompt_int8_share > 0 ? fmt::format("{:.0f}%", 100 * r.prompt_int8_share) : "-",
                    r.time_to_first_token_ms, format_bytes(static_cast<double>(r.memory.session_bytes)),
                    format_bytes(static_cast<double>(r.memory.peak_rss_bytes)));
  }
  text += "\n";
  for (const ArmReport& r : reports) {
    text += fmt::format("{:<{}}  V(n){}\n", r.name, width, by_rows_text(r.slowdown_by_rows));
    text += fmt::format("{:<{}}  of bytes{}\n", "", width, by_rows_text(r.byte_ratio_by_rows));
    text += fmt::format("{:<{}}  U(n){}\n", "", width, by_rows_text(r.distinct_experts_by_rows));
    if (r.total.drafted > 0) {
      text += fmt::format("{:<{}}  accepted by position{}; windows by k{}\n", "", width, acceptance_text(r.total),
                          histogram_text(r.total));
    }
  }
  return text;
}

nlohmann::ordered_json arms_json(const std::vector<ArmReport>& reports) {
  nlohmann::ordered_json arms = nlohmann::ordered_json::array();
  for (const ArmReport& r : reports) {
    const double passes = static_cast<double>(std::max<int64_t>(r.total.verify_passes, 1));
    nlohmann::ordered_json arm;
    arm["name"] = r.name;
    arm["tokens_per_second"] = r.median_tokens_per_second;
    arm["ci95"] = {r.tokens_interval.low, r.tokens_interval.high};
    arm["speedup"] = r.speedup;
    arm["speedup_ci95"] = {r.speedup_interval.low, r.speedup_interval.high};
    arm["acceptance_length"] = r.total.acceptance_length();
    arm["mean_k"] = r.total.mean_k();
    arm["ids_sha256"] = r.ids_sha256;
    arm["bytes_per_token"] = r.bytes_per_token;
    arm["gb_per_s"] = r.bytes_per_second / 1e9;
    arm["bandwidth_share"] = r.bandwidth_share;
    arm["draft_ms"] = r.total.draft_ms / passes;
    arm["verify_ms"] = r.total.verify_ms / passes;
    arm["accept_ms"] = r.total.accept_ms / passes;
    arm["refresh_ms"] = r.total.refresh_ms / passes;
    arm["verify_ms_by_rows"] = by_rows_json(r.verify_ms_by_rows);
    arm["slowdown_by_rows"] = by_rows_json(r.slowdown_by_rows);
    arm["byte_ratio_by_rows"] = by_rows_json(r.byte_ratio_by_rows);
    arm["distinct_experts_by_rows"] = by_rows_json(r.distinct_experts_by_rows);
    arm["windows_by_rows"] = r.total.windows_by_rows;
    arm["windows_by_k"] = r.total.windows_by_k;
    arm["drafted_by_position"] = r.total.drafted_by_position;
    arm["accepted_by_position"] = r.total.accepted_by_position;
    arm["verify_passes"] = r.total.verify_passes;
    arm["prompt_tokens_per_second"] = r.prompt_tokens_per_second;
    arm["prompt_speedup"] = r.prompt_speedup;
    arm["prompt_int8_share"] = or_null(r.prompt_int8_share);
    arm["time_to_first_token_ms"] = r.time_to_first_token_ms;
    arm["peak_rss_bytes"] = r.memory.peak_rss_bytes;
    arm["session_bytes"] = r.memory.session_bytes;
    arm["rounds_tokens_per_second"] = r.tokens_per_second;
    arms.push_back(std::move(arm));
  }
  return arms;
}

std::string format_csv(const std::vector<ArmReport>& reports, const BenchSamples& samples) {
  std::string text =
      "arm,round,tokens,decode_ms,tokens_per_second,verify_passes,acceptance_length,draft_ms,verify_ms,accept_ms,"
      "refresh_ms,"
      "prompt_tokens_per_second,time_to_first_token_ms\n";
  for (size_t a = 0; a < reports.size(); ++a) {
    for (size_t r = 0; r < samples.rounds[a].size(); ++r) {
      const DecodeStatistics& s = samples.rounds[a][r];
      text +=
          fmt::format("{},{},{},{:.3f},{:.4f},{},{:.4f},{:.3f},{:.3f},{:.3f},{:.3f},{:.3f},{:.3f}\n", reports[a].name,
                      r + 1, s.decode_tokens, s.decode_ms, s.decode_tokens_per_second(), s.verify_passes,
                      s.acceptance_length(), s.draft_ms, s.verify_ms, s.accept_ms, s.refresh_ms,
                      s.prompt_tokens_per_second(), s.time_to_first_token_ms / static_cast<double>(samples.ids.size()));
    }
  }
  return text;
}

std::string describe_difference(const std::vector<BenchArm>& arms, const IdDifference& d) {
  const auto id = [](TokenId value) { return value < 0 ? std::string("the end") : fmt::format("id {}", value); };
  if (d.arm_idx == 0) {
    return fmt::format("arm {}, prompt {}, new token {}: {} where an earlier round had {}", arms[0].name,
                       d.prompt_idx + 1, d.token_idx + 1, id(d.got), id(d.expected));
  }
  return fmt::format("arm {}, prompt {}, new token {}: {} where arm {} has {}", arms[d.arm_idx].name, d.prompt_idx + 1,
                     d.token_idx + 1, id(d.got), arms[0].name, id(d.expected));
}

BenchOutcome conclude_bench(const std::vector<BenchArm>& arms, const BenchSamples& samples, const ByteAccount& account,
                            const std::vector<ArmMemory>& memory) {
  BenchOutcome outcome;
  outcome.json["identical"] = !samples.difference.has_value();
  outcome.json["bandwidth_gb_per_s"] = account.bandwidth / 1e9;
  outcome.json["int8_peak_gop_per_s"] = or_null(account.int8_peak / 1e9);
  if (samples.difference) {
    // Hashes alone: the speed of a wrong result is no result.
    outcome.exit_code = kExitCheckFailed;
    outcome.text = fmt::format("The arms' ids DIFFER: {}\n", describe_difference(arms, *samples.difference));
    outcome.json["difference"] = describe_difference(arms, *samples.difference);
    outcome.json["arms"] = nlohmann::ordered_json::array();
    for (size_t a = 0; a < arms.size(); ++a) {
      nlohmann::ordered_json arm;
      arm["name"] = arms[a].name;
      arm["ids_sha256"] = joined_ids_sha256(samples.arm_ids[a]);
      outcome.json["arms"].push_back(std::move(arm));
    }
    return outcome;
  }
  const std::vector<ArmReport> reports = report_arms(arms, samples, account, memory);
  outcome.text = fmt::format("ids identical in all arms and rounds, sha256 {}\n\n{}", reports[0].ids_sha256,
                             format_table(reports));
  outcome.json["arms"] = arms_json(reports);
  outcome.csv = format_csv(reports, samples);
  return outcome;
}

}  // namespace foretoken
