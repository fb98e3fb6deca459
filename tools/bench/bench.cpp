#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "engine/machine.h"
#include "engine/model/model_file.h"
#include "kernels/base/error.h"
#include "kernels/probe/int8_peak.h"
#include "kernels/threads/thread_team.h"
#include "tools/bench/bench_arms.h"
#include "tools/bench/bench_batch.h"
#include "tools/bench/bench_report.h"
#include "tools/bench/profile_report.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

using Json = nlohmann::ordered_json;

// Real text: random tokens distort acceptance and routing alike.
constexpr std::array<std::string_view, 3> kDefaultPrompts = {
    "def read_lines(path):\n    \"\"\"Return the lines of a text file without their line ends.\"\"\"\n",
    "import os\nimport sys\n\nclass Parser:\n    def __init__(self, name, parent=None):\n        self.name = name\n",
    "The lighthouse stood at the end of the long stone pier. Every evening the keeper climbed its stairs, and",
};

struct BenchFlags {
  ModelFlags model;
  std::string arms_text, prompts_path, json_path, csv_path, batch_text;
  std::vector<int> batches;  // of batch_text; empty: one text at a time
  int rounds = 5;
  int64_t max_new_tokens = 128;
  int64_t prompt_tokens = 0;                // 0: the prompts as they are
  std::optional<double> forced_acceptance;  // nothing: the MTP layer's own drafts count
  bool ignore_eos = false, parse_special = false;
  bool profile = false;

  [[nodiscard]] bool parse(int argc, const char* const* argv) {
    CommandLine line(
        "bench", "-m MODEL [--arms LIST]",
        "Measures settings against each other on the same prompts, interleaved (A B B A ...), first round dropped.\n"
        "A result counts only if all arms give the same ids: exit 3 where they do not.\n"
        "An arm is off, mtp:K or auto, with :per-token, :grouped or :fixed behind it.");
    line.add_text("arms", &arms_text, "LIST",
                  "arms, comma-separated; the first is what the others are compared with\n"
                  "(default off,mtp:1,mtp:2,mtp:3,mtp:3:per-token; with --mtp K: off,mtp:K)");
    line.add_text("batch", &batch_text, "LIST",
                  "decode so many texts together, as 1,2,4,8: tok/s in all and of each text, by arm");
    line.add_int("rounds", &rounds, 1, 1000, "N", "rounds that count");
    line.add_int("n-predict,n", &max_new_tokens, 2, INT32_MAX, "N", "tokens to make from each prompt");
    line.add_text("prompts", &prompts_path, "FILE", "prompts, separated by blank lines (default three built-in ones)");
    line.add_int("prompt-tokens", &prompt_tokens, 0, int64_t{1} << 24, "N",
                 "repeat each prompt, or cut it, to N tokens; 0: as it is. Prompt speed needs some hundreds");
    line.add_float("forced-acceptance", &forced_acceptance, 0, 1, "A",
                   "take drafts from the known continuation, each right with probability A");
    line.add_switch("profile", &profile,
                    "then run each arm once more and show where a cycle's time goes, by kind of work");
    line.add_switch("parse-special", &parse_special,
                    "text of prompts that spells a special token (<|im_end|>) becomes that token");
    line.add_switch("ignore-eos", &ignore_eos, "do not stop at an end-of-text token");
    line.add_output("json", &json_path, "FILE",
                    "write the result as JSON; -: to standard output, in place of the table");
    line.add_output("csv", &csv_path, "FILE", "write one line an arm and round");
    model.needs_mtp = true;
    model.add_draft(line);
    model.add_to(line);
    if (!line.parse(argc, argv)) return false;
    if (!batch_text.empty()) {
      batches = parse_batches(batch_text);
      if (arms_text.empty()) arms_text = "off,auto";
      if (profile || !csv_path.empty()) throw UsageError("--batch goes neither with --profile nor with --csv");
    }
    model.resolve(line);
    return true;
  }

  [[nodiscard]] std::vector<TokenId> ids_of(const Prompt& text, const Model& loaded) const;

  [[nodiscard]] std::vector<BenchArm> arms(const Model& loaded) const {
    std::string text = arms_text;
    if (text == "off,auto" && !loaded.has_mtp()) text = "off";
    if (text.empty() && model.mtp > 0) text = fmt::format("off,mtp:{}", model.mtp);
    if (text.empty()) text = loaded.has_mtp() ? "off,mtp:1,mtp:2,mtp:3,mtp:3:per-token" : "off,off:per-token";
    BenchArm defaults;
    defaults.controller = !model.mtp_fixed;
    defaults.moe_verify = model.moe_verify();
    return parse_arms(text, defaults);
  }
};

/// The prompt's ids, lengthened or cut to --prompt-tokens.
std::vector<TokenId> BenchFlags::ids_of(const Prompt& text, const Model& loaded) const {
  std::vector<TokenId> ids = tokenize_prompt(text, loaded.tokenizer());
  const auto wanted = static_cast<size_t>(prompt_tokens);
  const size_t size = wanted > 0 ? wanted : ids.size();
  model.check_room(loaded.config(), text.source, size, /*takes_what_it_needs=*/true,
                   wanted > 0 ? "lower --prompt-tokens"
                              : "cut prompts with --prompt-tokens N, or give shorter ones with "
                                "--prompts FILE");
  const size_t whole = ids.size();
  for (size_t i = whole; i < size; ++i) ids.push_back(ids[i - whole]);
  ids.resize(size);
  return ids;
}

std::vector<Prompt> prompts_of(const BenchFlags& flags) {
  if (!flags.prompts_path.empty()) {
    PromptFlags form;
    form.parse_special = flags.parse_special;
    return read_prompts(flags.prompts_path, form);
  }
  std::vector<Prompt> prompts;
  for (std::string_view text : kDefaultPrompts) {
    Prompt prompt;
    prompt.text = text;
    prompt.source = "a built-in prompt";
    prompt.parse_special = flags.parse_special;
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

/// Runs arms, each with a session of its own.
class ArmRunner {
 public:
  ArmRunner(const Model& model, const BenchFlags& flags, const std::vector<BenchArm>& arms,
            const std::vector<std::vector<TokenId>>& prompts)
      : model_(model), flags_(flags), arms_(arms), prompts_(prompts), sessions_(arms.size()), memory_(arms.size()) {
    size_t longest = 0;
    for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
    ctx_size_ =
        std::min(static_cast<int64_t>(longest) + flags.max_new_tokens + kMaxDraft + 1, model.config().context_length);
    if (flags.model.ctx_size > 0) ctx_size_ = flags.model.ctx_size;
    new_tokens_ = std::min(flags.max_new_tokens, ctx_size_);
    if (flags.model.device == Device::kCpu) return;
    SessionOptions options = flags.model.session_options(0);
    options.ctx_size = options.prompt_chunk = 1;
    options.with_mtp = model.has_mtp();
    keeps_weights_.emplace(model, options);
  }

  /// Plain greedy continuations, long enough for the last window: the drafts of --forced-acceptance.
  void learn_continuations() {
    Session session(model_, options_of(BenchArm{}));
    for (size_t prompt_idx = 0; prompt_idx < prompts_.size(); ++prompt_idx) {
      const std::vector<TokenId>& prompt = prompts_[prompt_idx];
      DecodeOptions options = flags_.model.decode_options();
      options.mtp = 0;
      options.max_new_tokens = new_tokens_ + kMaxDraft;
      options.ignore_eos = flags_.ignore_eos;
      DecodeResult result = decode(session, prompt, options);
      continuations_.push_back(std::move(result.ids));
      forced_seeds_.push_back(fair_seed(prompt_idx, static_cast<int64_t>(prompt.size())));
    }
  }

  /// A seed whose coins come out right about as often as asked for: of a hundred tosses at 0.85, one seed in six is off
  /// by more than 0.035, which is a tenth of a token a window.
  [[nodiscard]] uint64_t fair_seed(size_t prompt_idx, int64_t prompt_length) const {
    constexpr uint64_t kCandidates = 64;
    const double p = *flags_.forced_acceptance;
    uint64_t best = 0;
    double best_error = 2;
    for (uint64_t seed = prompt_idx * kCandidates; seed < (prompt_idx + 1) * kCandidates; ++seed) {
      int64_t right = 0;
      for (int64_t i = 1; i < new_tokens_; ++i) right += forced_coin(seed, prompt_length + i, p) ? 1 : 0;
      const double error =
          std::abs(static_cast<double>(right) / static_cast<double>(std::max<int64_t>(new_tokens_ - 1, 1)) - p);
      if (error >= best_error) continue;
      best = seed;
      best_error = error;
    }
    return best;
  }

  ArmRun run(int round, size_t arm_idx, size_t prompt_idx) {
    const bool alone = round == 0;
    if (alone && prompt_idx == 0) {
      for (auto& session : sessions_) session.reset();
      reset_peak_rss();
    }
    std::unique_ptr<Session>& session = sessions_[arm_idx];
    if (session == nullptr) session = std::make_unique<Session>(model_, options_of(arms_[arm_idx]));
    const DecodeResult result = decode(*session, prompts_[prompt_idx], decode_options(arms_[arm_idx], prompt_idx));
    refuse_draft_fault(model_, result.statistics);
    if (alone && arm_idx == 0) {
      measured_.push_back(result.statistics.decode_tokens);
      if (measured_.size() == prompts_.size()) check_lengths(result.stop_reason);
    }
    if (alone) memory_[arm_idx] = {peak_rss_bytes(), session->memory().total()};
    return {result.ids, result.statistics};
  }

  /// Refuses prompts that end at once: their times say nothing. `reason` is that of the last one.
  void check_lengths(StopReason reason) const {
    const auto all = static_cast<ptrdiff_t>(measured_.size());
    const auto ended = std::count(measured_.begin(), measured_.end(), 0);
    if (ended == 0) return;
    const std::string remedy = reason == StopReason::kContextFull
                                   ? "their context is full then: raise --ctx-size or shorten the prompts"
                                   : "an end token follows them: --ignore-eos goes on behind it, --prompts FILE gives "
                                     "other prompts";
    if (ended == all) {
      throw InputError(fmt::format("{} prompts, no token to time after the first of each; {}", all, remedy));
    }
    print_message("note: {} of {} prompts have no token to time after the first; {}\n", ended, all, remedy);
  }

  /// One more run of an arm over the first prompt with every work item timed; adds to the arm's JSON and returns the
  /// table.
  std::string profile(size_t arm_idx, Json& json) {
    SessionOptions session_options = options_of(arms_[arm_idx]);
    session_options.profile = true;
    Session session(model_, session_options);
    DecodeOptions options = decode_options(arms_[arm_idx], 0);
    bool first = true;
    options.on_token = [&](TokenId) {
      if (first) session.engine().profile()->clear();  // the prompt is another story
      first = false;
      return true;
    };
    const DecodeResult result = decode(session, prompts_[0], options);
    json["profile"] = profile_json(*session.engine().profile(), result.statistics);
    return fmt::format("\n{}\n{}", arms_[arm_idx].name,
                       describe_profile(*session.engine().profile(), result.statistics));
  }

  [[nodiscard]] const std::vector<ArmMemory>& memory() const { return memory_; }

 private:
  [[nodiscard]] SessionOptions options_of(const BenchArm& arm) const {
    SessionOptions options = flags_.model.session_options(arm.mtp);
    options.moe_verify = arm.moe_verify;
    options.ctx_size = ctx_size_;
    return options;
  }

  [[nodiscard]] DecodeOptions decode_options(const BenchArm& arm, size_t prompt_idx) const {
    DecodeOptions options = flags_.model.decode_options();
    options.mtp = arm.mtp;
    options.controller = arm.controller;
    options.max_new_tokens = new_tokens_;
    options.ignore_eos = flags_.ignore_eos;
    if (!continuations_.empty()) {
      options.forced_continuation = continuations_[prompt_idx];
      options.forced_acceptance = *flags_.forced_acceptance;
      options.forced_seed = forced_seeds_[prompt_idx];
    }
    return options;
  }

  const Model& model_;
  const BenchFlags& flags_;
  const std::vector<BenchArm>& arms_;
  const std::vector<std::vector<TokenId>>& prompts_;
  std::vector<std::vector<TokenId>> continuations_;
  std::vector<uint64_t> forced_seeds_;    // of each prompt
  std::optional<Session> keeps_weights_;  // on a GPU: all arms' sessions share what it holds, and may come and go
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<ArmMemory> memory_;
  int64_t ctx_size_ = 0;
  int64_t new_tokens_ = 0;         // made from each prompt at most
  std::vector<int64_t> measured_;  // new tokens of each prompt that can be timed: all but the first
};

double mean_kv_len(const std::vector<std::vector<TokenId>>& prompts, const BenchSamples& samples) {
  double sum = 0;
  for (size_t p = 0; p < prompts.size(); ++p) {
    sum += static_cast<double>(prompts[p].size()) + 0.5 * static_cast<double>(samples.ids[p].size());
  }
  return sum / static_cast<double>(prompts.size());
}

Json run_json(const BenchFlags& flags, const Model& model, const std::vector<std::vector<TokenId>>& prompts) {
  Json object;
  add_run(object, flags.model, model);
  object.erase("mtp");  // the arms say it
  object["expert_count"] = model.config().num_experts;
  object["expert_used_count"] = model.config().experts_per_token;
  object["processor"] = cpu_model_name();
  object["compiler"] = __VERSION__;
  object["rounds"] = flags.rounds;
  object["n_predict"] = flags.max_new_tokens;
  object["prompts"] = prompts.size();
  object["prompt_tokens"] = Json::array();
  for (const auto& prompt : prompts) object["prompt_tokens"].push_back(prompt.size());
  object["forced_acceptance"] = flags.forced_acceptance ? Json(*flags.forced_acceptance) : Json(nullptr);
  return object;
}

/// What the figures belong to.
std::string describe_machine(const Json& run) {
  return fmt::format(
      "{}, model sha256 {}\n{}, {} threads, {}, read bandwidth {:.1f} GB/s, int8 peak {}; foretoken {} (commit {})\n",
      run["model"].get<std::string>(), run["model_sha256"].get<std::string>().substr(0, 16),
      run["processor"].get<std::string>(), run["threads"].get<int>(), run["isa"].get<std::string>(),
      run["bandwidth_gb_per_s"].get<double>(),
      run["int8_peak_gop_per_s"].is_null() ? "not measured"
                                           : fmt::format("{:.0f} Gop/s", run["int8_peak_gop_per_s"].get<double>()),
      run["version"].get<std::string>(), run["commit"].get<std::string>());
}

}  // namespace

namespace {

int run_batches(const BenchFlags& flags, const Model& model, const std::vector<BenchArm>& arms,
                std::vector<std::vector<TokenId>> prompts, OutputFile& json_file) {
  BatchBench bench;
  bench.batches = flags.batches;
  bench.arms = arms;
  bench.prompts = std::move(prompts);
  bench.new_tokens = flags.max_new_tokens;
  bench.rounds = flags.rounds;
  bench.forced_acceptance = flags.forced_acceptance;
  bench.ignore_eos = flags.ignore_eos;
  print_message("{}{} rounds of {} tokens a text, and one that is dropped\n", describe_run(flags.model, model),
                flags.rounds, flags.max_new_tokens);
  const BatchOutcome outcome = measure_batches(model, flags.model, bench);
  model.check_unchanged();
  Json object = outcome.json;
  object.update(run_json(flags, model, bench.prompts));
  if (!json_file.is_stdout() && outcome.exit_code == 0) ResultStream().write(outcome.text);
  if (outcome.exit_code != 0) print_message("foretoken: {}", outcome.text);
  write_json(json_file, object);
  return outcome.exit_code;
}

}  // namespace

int run_bench(int argc, const char* const* argv) {
  BenchFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  OutputFile json_file(flags.json_path, "--json");
  OutputFile csv_file(flags.csv_path, "--csv");
  check_one_stdout({{"--json", json_file.is_stdout()}, {"--csv", csv_file.is_stdout()}});
  const std::vector<Prompt> texts = prompts_of(flags);

  std::vector<BenchArm> arms;
  std::vector<std::vector<TokenId>> prompts;
  const Model model = flags.model.load([&](const Model& header) {
    arms = flags.arms(header);
    for (const BenchArm& arm : arms) flags.model.check_drafts(header, arm.mtp);
    for (const Prompt& text : texts) prompts.push_back(flags.ids_of(text, header));
  });
  if (!flags.batches.empty()) return run_batches(flags, model, arms, std::move(prompts), json_file);
  print_message("{}{} rounds of {} prompts x {} tokens, and one that is dropped\n", describe_run(flags.model, model),
                flags.rounds, prompts.size(), flags.max_new_tokens);
  if (flags.rounds < 3 || static_cast<int64_t>(prompts.size()) * flags.max_new_tokens < 128) {
    print_message("note: fewer than 3 rounds of 128 tokens: take the figures as a trial\n");
  }

  const double bandwidth = flags.model.measure_run_bandwidth();
  double int8_peak = 0;
  if (flags.model.device == Device::kCpu) {
    ThreadTeam team(flags.model.threads, flags.model.nodes);
    int8_peak = measure_int8_peak(flags.model.isa(), team);
  }
  ArmRunner runner(model, flags, arms, prompts);
  ProgressBar bar("measuring", Unit::kRuns);
  const size_t num_runs = arms.size() * prompts.size() * static_cast<size_t>(flags.rounds + 1);
  size_t runs_done = 0;
  bar.show(0, num_runs);
  if (flags.forced_acceptance) runner.learn_continuations();
  const BenchSamples samples =
      measure_arms(arms.size(), prompts.size(), flags.rounds, [&](int round, size_t arm, size_t prompt) {
        bar.show(runs_done++, num_runs,
                 round == 0 ? fmt::format("first round, {}", arms[arm].name)
                            : fmt::format("round {} of {}, {}", round, flags.rounds, arms[arm].name));
        return runner.run(round, arm, prompt);
      });
  bar.wipe();

  model.check_unchanged();
  flags.model.check_same_file(open_model(model.path(), model.mtp_path()).file.fingerprint());
  const ByteModel bytes(model.weights(), model.config());
  const ByteAccount account = {
      &bytes,   flags.model.draft_rows(model.config()), flags.model.kv_type, mean_kv_len(prompts, samples), bandwidth,
      int8_peak};
  const BenchOutcome outcome = conclude_bench(arms, samples, account, runner.memory());
  Json object = outcome.json;
  object.update(run_json(flags, model, prompts));
  std::string profiles;
  for (size_t arm = 0; flags.profile && outcome.exit_code == 0 && arm < arms.size(); ++arm) {
    profiles += runner.profile(arm, object["arms"][arm]);
  }
  if (!json_file.is_stdout() && !csv_file.is_stdout()) {
    ResultStream().write(describe_machine(object) + outcome.text + profiles);
  }
  if (outcome.exit_code != 0) print_message("foretoken: {}", outcome.text);
  write_json(json_file, object);
  csv_file.write(outcome.csv);
  csv_file.commit();
  return outcome.exit_code;
}

}  // namespace foretoken
