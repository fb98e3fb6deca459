#include "tools/bench/bench_batch.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "mtp/scheduler.h"
#include "tools/bench/resampling.h"
#include "tools/cli/command_line.h"
#include "tools/cli/interruption.h"
#include "tools/cli/summary.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

constexpr int kMostTexts = 64;

/// What one arm did at one number of texts in one round.
struct BatchRun {
  std::vector<std::vector<TokenId>> ids;  // [texts]
  double ms = 0;                          // of the steps that count
  int64_t tokens = 0;                     // they gave
  int64_t steps = 0, rows = 0, windows = 0;
  double distinct_experts = 0;  // sum over steps

  [[nodiscard]] double tokens_per_second() const { return ms > 0 ? 1e3 * static_cast<double>(tokens) / ms : 0; }
};

class BatchRunner {
 public:
  BatchRunner(const Model& model, const ModelFlags& flags, const BatchBench& bench)
      : model_(model), flags_(flags), bench_(bench) {
    // A prompt that comes up again begins a little later each time: no two texts of a batch are the same.
    const int most = *std::max_element(bench.batches.begin(), bench.batches.end());
    for (int i = 0; i < most; ++i) {
      const std::vector<TokenId>& prompt = bench.prompts[static_cast<size_t>(i) % bench.prompts.size()];
      const size_t skipped = std::min(prompt.size() - 1, 2 * (static_cast<size_t>(i) / bench.prompts.size()));
      texts_.emplace_back(prompt.begin() + static_cast<ptrdiff_t>(skipped), prompt.end());
      longest_ = std::max(longest_, static_cast<int64_t>(texts_.back().size()));
    }
  }

  BatchRun run(const BenchArm& arm, int batch) {
    SessionOptions options = flags_.session_options(arm.mtp);
    options.moe_verify = arm.moe_verify;
    options.parallel = batch;
    options.ctx_size = std::min(longest_ + bench_.new_tokens + kMaxDraft + 1, model_.config().context_length);
    Engine engine(model_, options);
    SchedulerOptions scheduling;
    DecodeOptions drafting = flags_.decode_options();
    drafting.mtp = arm.mtp;
    drafting.controller = arm.controller;
    scheduling.generator = drafting.generator();
    scheduling.step_ms = 1e9;
    Scheduler scheduler(engine, scheduling);
    std::vector<Scheduler::Request*> requests;
    for (int i = 0; i < batch; ++i) {
      const auto at = static_cast<size_t>(i);
      GenerationOptions generation;
      generation.max_new_tokens = bench_.new_tokens;
      generation.max_drafts = arm.mtp;
      generation.sampling = flags_.sampling;
      generation.ignore_eos = bench_.ignore_eos;
      if (bench_.forced_acceptance && at < continuations_.size()) {
        generation.forced = {continuations_[at], static_cast<int64_t>(texts_[at].size()), *bench_.forced_acceptance,
                             static_cast<uint64_t>(i)};
      }
      requests.push_back(&scheduler.add(texts_[at], generation));
    }
    BatchRun result;
    const auto num_tokens = [&] {
      int64_t all = 0;
      for (const Scheduler::Request* request : requests) all += static_cast<int64_t>(request->ids().size());
      return all;
    };
    for (int64_t before = 0;;) {
      if (interrupted()) throw Interrupted();
      if (!scheduler.step()) break;
      const int64_t now = num_tokens();
      const Generator::Step& step = scheduler.last_step();
      const bool counts = step.prompt_rows == 0 && step.num_windows == batch;
      if (counts) {
        result.ms += step.whole_ms;
        result.tokens += now - before;
        result.rows += step.window_rows;
        result.windows += step.num_windows;
        result.distinct_experts += step.distinct_experts;
        ++result.steps;
      }
      before = now;
    }
    for (const Scheduler::Request* request : requests) {
      if (request->stop_reason() == StopReason::kFailed) throw InputError(request->failure());
      result.ids.push_back(request->ids());
    }
    return result;
  }

  /// Drafts of --forced-acceptance come from here.
  void learn_continuations() {
    BenchArm plain;
    BatchRun all = run(plain, static_cast<int>(texts_.size()));
    continuations_ = std::move(all.ids);
  }

 private:
  const Model& model_;
  const ModelFlags& flags_;
  const BatchBench& bench_;
  std::vector<std::vector<TokenId>> texts_;
  std::vector<std::vector<TokenId>> continuations_;
  int64_t longest_ = 0;
};

double median_of(const std::vector<BatchRun>& runs, double (*value)(const BatchRun&)) {
  std::vector<double> values;
  for (const BatchRun& run : runs) values.push_back(value(run));
  return median(values);
}

double per_step(double sum, const BatchRun& run) {
  return run.steps > 0 ? sum / static_cast<double>(run.steps) : 0;
}

}  // namespace

std::vector<int> parse_batches(std::string_view text) {
  std::vector<int> batches;
  while (true) {
    const size_t comma = text.find(',');
    batches.push_back(static_cast<int>(parse_int("--batch", text.substr(0, comma), 1, kMostTexts)));
    if (comma == std::string_view::npos) return batches;
    text.remove_prefix(comma + 1);
  }
}

BatchOutcome measure_batches(const Model& model, const ModelFlags& flags, const BatchBench& bench) {
  BatchRunner runner(model, flags, bench);
  if (bench.forced_acceptance) runner.learn_continuations();
  const size_t num_arms = bench.arms.size(), num_batches = bench.batches.size();
  // [batches][arms][rounds that count]
  std::vector<std::vector<std::vector<BatchRun>>> runs(num_batches, std::vector<std::vector<BatchRun>>(num_arms));
  std::vector<std::vector<std::vector<TokenId>>> ids(num_batches);  // [batches][texts] of the first arm
  BatchOutcome outcome;
  outcome.json["identical"] = true;
  for (int round = 0; round <= bench.rounds; ++round) {
    for (size_t i = 0; i < num_batches * num_arms; ++i) {
      const size_t at = round % 2 == 0 ? i : num_batches * num_arms - 1 - i;
      const size_t b = at / num_arms, a = at % num_arms;
      BatchRun run = runner.run(bench.arms[a], bench.batches[b]);
      if (ids[b].empty()) ids[b] = run.ids;
      if (run.ids != ids[b]) {
        outcome.json["identical"] = false;
        outcome.exit_code = kExitCheckFailed;
        outcome.text = fmt::format("{} with {} texts: the ids differ from those of {}; no speed is reported\n",
                                   bench.arms[a].name, bench.batches[b], bench.arms[0].name);
        return outcome;
      }
      if (run.steps == 0) {
        throw InputError(
            fmt::format("bench --batch {}: no step had all texts in it, so there is nothing to measure; raise -n",
                        bench.batches[b]));
      }
      if (round > 0) runs[b][a].push_back(std::move(run));
    }
  }
  std::string text = fmt::format("{:<6} {:<20} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "texts", "arm", "tok/s",
                                 "each", "ratio", "over 1", "mean k", "rows", "U");
  outcome.json["batches"] = nlohmann::ordered_json::array();
  for (size_t b = 0; b < num_batches; ++b) {
    for (size_t a = 0; a < num_arms; ++a) {
      const std::vector<BatchRun>&counted = runs[b][a], &base = runs[b][0], &alone = runs[0][a];
      const double tokens_per_second = median_of(counted, [](const BatchRun& r) { return r.tokens_per_second(); });
      std::vector<double> ratios;
      for (size_t r = 0; r < counted.size(); ++r)
        ratios.push_back(counted[r].tokens_per_second() / base[r].tokens_per_second());
      const Interval interval = bootstrap_median(ratios);
      const double over_first =
          tokens_per_second / median_of(alone, [](const BatchRun& r) { return r.tokens_per_second(); });
      const double mean_k = median_of(counted, [](const BatchRun& r) {
        return r.windows > 0 ? static_cast<double>(r.rows) / static_cast<double>(r.windows) - 1 : 0;
      });
      const double rows =
          median_of(counted, [](const BatchRun& r) { return per_step(static_cast<double>(r.rows), r); });
      const double distinct = median_of(counted, [](const BatchRun& r) { return per_step(r.distinct_experts, r); });
      const int batch = bench.batches[b];
      text += fmt::format("{:<6} {:<20} {:>10.2f} {:>10.2f} {:>8.3f} {:>8.3f} {:>8.2f} {:>8.2f} {:>8.2f}\n", batch,
                          bench.arms[a].name, tokens_per_second, tokens_per_second / batch, median(ratios), over_first,
                          mean_k, rows, distinct);
      outcome.json["batches"].push_back({{"texts", batch},
                                         {"arm", bench.arms[a].name},
                                         {"tokens_per_second", tokens_per_second},
                                         {"tokens_per_second_per_text", tokens_per_second / batch},
                                         {"speedup", median(ratios)},
                                         {"speedup_ci95", {interval.low, interval.high}},
                                         {"over_first_batch", over_first},
                                         {"mean_k", mean_k},
                                         {"rows_per_pass", rows},
                                         {"distinct_experts", distinct},
                                         {"ids_sha256", ids_sha256(ids[b][0])}});
    }
  }
  outcome.text =
      text + "ratio: to the first arm with as many texts; over 1: to the same arm with the first number of texts\n";
  return outcome;
}

}  // namespace foretoken
