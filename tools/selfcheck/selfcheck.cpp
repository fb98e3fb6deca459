#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>

#include "engine/cuda/placement.h"
#include "engine/gguf/sha256.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/rows/elementwise.h"
#include "mtp/scheduler.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"
#include "tools/selfcheck/selfcheck_plan.h"

namespace foretoken {

namespace {

// Long enough that a chunk of 64 leaves a remainder; code and prose, so that experts differ.
constexpr std::string_view kDefaultPrompt =
    "import os\n\ndef find_files(root, suffix):\n    \"\"\"Yield the paths below root whose names end with "
    "suffix.\"\"\"\n"
    "    for folder, _, names in os.walk(root):\n        for name in sorted(names):\n            if "
    "name.endswith(suffix):\n"
    "                yield os.path.join(folder, name)\n\n"
    "# The keeper of the lighthouse wrote down the wind, the weather and the ships that passed, as he had done for "
    "years.\n"
    "def count_lines(path):\n";

struct SelfcheckFlags {
  ModelFlags model;
  PromptFlags prompt;
  int64_t max_new_tokens = 32;
  bool full = false;
  std::string json_path;

  [[nodiscard]] bool parse(int argc, const char* const* argv) {
    CommandLine line("selfcheck", "-m MODEL",
                     "Checks on your model and machine that no setting changes a bit: the same prompt under "
                     "combinations of draft length,\n"
                     "expert core, threads, instruction set, prompt chunk, weight layout, device and other texts in "
                     "the same passes, "
                     "greedy and with a seeded sample. One hash of the\n"
                     "logits at all positions each; exit 3 on any difference.");
    prompt.add_to(line);
    line.add_int("n-predict,n", &max_new_tokens, 1, INT32_MAX, "N",
                 "tokens to make in each case; without it, or without a prompt, fewer where the model is slow");
    line.add_switch("full", &full, "the whole product of all values, not a plan that covers them");
    line.add_output("json", &json_path, "FILE",
                    "write the result as JSON; -: to standard output, in place of the table");
    model.mtp_text = std::to_string(kMaxDraft);
    model.sampling.seed = 1;
    model.offers_cublas = false;
    model.add_to(line);
    if (!line.parse(argc, argv)) return false;
    mtp_given = line.given("mtp");
    new_tokens_given = line.given("n-predict");
    prompt.resolve(line);
    model.needs_mtp = true;
    model.resolve(line);
    some_experts = parse_experts("--gpu-experts", model.gpu_experts_text).value_or(0);
    model.device = Device::kCpu;  // all devices are checked; the cases name theirs
    return true;
  }

  bool mtp_given = false;
  int some_experts = 0;
  bool new_tokens_given = false;
};

// What the cases of all instruction sets together may take, unless the user says how much text to decode. A real model
// takes 0.03 s a row with AVX2 and over a second with the scalar kernels: the whole built-in prompt would take the
// latter an hour.
constexpr double kMaxSeconds = 480;

/// The size that was chosen for the cases of one instruction set.
struct ChosenSize {
  Isa isa;
  CheckSize size;
  double row_seconds = 0;  // 0: not measured
  double estimate = 0;     // seconds for its cases at most
};

struct NotRun {
  std::string what, why;
};

std::vector<NotRun> list_not_run(const Model& model, const std::vector<Isa>& isas) {
  std::vector<NotRun> list;
  for (Isa isa : compiled_isas()) {
    const std::string name(isa_name(isa));
    if (!isa_supported(isa)) {
      list.push_back({name, "this processor lacks " + name});
    } else if (std::find(isas.begin(), isas.end(), isa) == isas.end()) {
      list.push_back({name, "FORETOKEN_ISA asks for another one"});
    }
  }
  if (!model.has_mtp()) list.push_back({"k=1..8", "this model has no MTP layer"});
  const std::string missing = cuda_missing();
  if (!missing.empty()) {
    list.push_back({"cuda", missing});
    list.push_back({"split", missing});
  }
  return list;
}

/// The places with a GPU that can serve this model; the others go to `not_run`.
std::vector<CheckPlace> list_places(const Model& model, const SelfcheckFlags& flags, std::vector<NotRun>& not_run) {
  if (!cuda_missing().empty()) return {};
  const ModelSizes sizes = ModelSizes::of(model.weights(), model.config());
  std::vector<CheckPlace> places;
  for (const CheckPlace& place : gpu_places(model.config().num_experts, flags.some_experts)) {
    PlacementRequest request =
        flags.model.placement_request(model.weights(), model.config(), cuda::free_memory_bytes());
    request.whole_model = place.device == Device::kCuda;
    request.gpu_experts = place.gpu_experts;
    request.cache_entries = place.gpu_cache;
    try {
      static_cast<void>(plan_placement(sizes, request));
      places.push_back(place);
    } catch (const InputError& error) {
      not_run.push_back({describe(place), error.what()});
    }
  }
  return places;
}

DecodeResult decode_alone(const Model& model, const SessionOptions& session_options, std::span<const TokenId> prompt,
                          const DecodeOptions& options) {
  Session session(model, session_options);
  return decode(session, prompt, options);
}

/// The same text, with the case's others in the same passes.
DecodeResult decode_beside(const Model& model, SessionOptions session_options, std::span<const TokenId> prompt,
                           const DecodeOptions& options, const CheckCase& check) {
  session_options.parallel = check.neighbours + 1;
  session_options.with_mtp = options.mtp > 0;
  Engine engine(model, session_options);
  SchedulerOptions scheduling;
  scheduling.generator = options.generator();
  Scheduler scheduler(engine, scheduling);
  const std::vector<CheckNeighbour> others = check_neighbours(check);
  const auto add_others = [&](bool first) {
    for (const CheckNeighbour& other : others) {
      if (other.is_first != first) continue;
      const auto text = prompt.subspan(other.first_token, static_cast<size_t>(other.prompt_tokens));
      GenerationOptions generation;
      generation.max_new_tokens = other.new_tokens;
      generation.max_drafts = other.max_drafts;
      generation.ignore_eos = true;
      scheduler.add({text.begin(), text.end()}, generation);
    }
  };
  add_others(true);
  (void)scheduler.step();
  Scheduler::Request& request =
      scheduler.add({prompt.begin(), prompt.end()}, options.generation(static_cast<int64_t>(prompt.size())));
  add_others(false);
  while (!request.is_finished() && scheduler.step()) {
  }
  if (request.stop_reason() == StopReason::kFailed) throw InputError(request.failure());
  return {request.ids(), request.stop_reason(), request.statistics()};
}

CheckResult run_case(const Model& model, const SelfcheckFlags& flags, const std::vector<TokenId>& prompt,
                     const CheckCase& check) {
  const auto start = std::chrono::steady_clock::now();
  SessionOptions session_options = flags.model.session_options(check.mtp);
  const CheckSize size = check.size;
  if (session_options.ctx_size == 0)
    session_options.ctx_size =
        std::min<int64_t>(int64_t{size.prompt_tokens} + size.new_tokens + kMaxDraft + 1, model.config().context_length);
  session_options.moe_verify = check.moe_verify;
  session_options.threads = check.threads;
  session_options.isa = check.isa;
  session_options.prompt_chunk = check.prompt_chunk == 0 ? size.prompt_tokens : check.prompt_chunk;
  session_options.device = check.place.device;
  session_options.split = {std::vector<int>(static_cast<size_t>(model.config().num_layers), check.place.gpu_experts),
                           check.place.gpu_cache};

  DecodeOptions options = flags.model.decode_options();
  options.max_new_tokens = size.new_tokens;
  options.mtp = check.mtp;
  options.controller = check.controller;
  options.ignore_eos = true;  // the same number of positions in every case
  if (!check.sampled) {
    options.sampling.temperature = 0;
  } else if (options.sampling.temperature == 0) {
    options.sampling.temperature = 0.8f;
  }
  Sha256 logits_hash;
  int64_t next_position = 0;
  options.all_prompt_logits = true;
  options.on_logits = [&](int64_t position, const float* logits) {
    // A position out of its turn is a difference too: its number goes into the hash where it is not the next one.
    if (position != next_position) logits_hash.update(std::as_bytes(std::span(&position, 1)));
    next_position = position + 1;
    // A session ends such a run itself, with the layer. Equal bits of NaN would be no agreement.
    if (!std::isfinite(largest_magnitude(check.isa, logits, model.config().vocab_size))) {
      throw InputError(fmt::format("{}: position {}, output head: the logits are not finite", model.path(), position));
    }
    logits_hash.update(std::as_bytes(std::span(logits, static_cast<size_t>(model.config().vocab_size))));
  };
  const auto text = std::span(prompt).first(size.prompt_tokens);
  const DecodeResult result = check.neighbours == 0 ? decode_alone(model, session_options, text, options)
                                                    : decode_beside(model, session_options, text, options, check);
  refuse_draft_fault(model, result.statistics);  // without drafts there is little to check
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return CheckResult{check, logits_hash.hex(), ids_sha256(result.ids), seconds.count(), false};
}

/// Chooses for each instruction set how much text its cases decode, sets it in the plan, and says what was chosen.
/// REQUIRES: isas begins with that of plan[0].
std::vector<ChosenSize> choose_sizes(std::vector<CheckCase>& plan, const Model& model, const SelfcheckFlags& flags,
                                     const std::vector<TokenId>& prompt, const std::vector<Isa>& isas) {
  const CheckSize whole{static_cast<int>(prompt.size()), static_cast<int>(flags.max_new_tokens)};
  const std::vector<CheckSize> sizes = check_sizes(whole, flags.prompt.any(), flags.new_tokens_given);
  std::vector<ChosenSize> chosen;
  for (Isa isa : isas) chosen.push_back({isa, whole});
  if (!flags.full && sizes.size() > 1) {
    for (ChosenSize& item : chosen) {
      CheckCase probe = plan[0];
      probe.isa = item.isa;
      probe.size = {std::min(4, whole.prompt_tokens), 2};
      item.row_seconds = run_case(model, flags, prompt, probe).seconds /
                         (probe.size.prompt_tokens + 1);  // the last new token needs no pass
      const double seconds = kMaxSeconds / static_cast<double>(isas.size());
      item.size = choose_size(plan, item.isa, sizes, item.row_seconds, available_cores(), seconds);
      item.estimate = estimate_seconds(plan, item.isa, item.size, item.row_seconds, available_cores());
    }
  }
  for (const ChosenSize& item : chosen) set_size(plan, item.isa, item.size);
  return chosen;
}

std::string describe(const ChosenSize& chosen, CheckSize whole) {
  std::string text = fmt::format("{}: {} prompt tokens and {} new ones a case", isa_name(chosen.isa),
                                 chosen.size.prompt_tokens, chosen.size.new_tokens);
  if (chosen.row_seconds > 0) {
    text += fmt::format(" ({}{:.2g} s a token: its cases take {:.0f} s at most)",
                        chosen.size == whole ? "" : "shortened: ", chosen.row_seconds, chosen.estimate);
  }
  if (chosen.size.prompt_tokens <= 64) text += "; chunks of 64 are the whole prompt here";
  return text + "\n";
}

std::string table(const std::vector<CheckResult>& results, const std::vector<NotRun>& not_run) {
  std::string text;
  for (const CheckResult& r : results) {
    text += fmt::format("{}  logits {}  ids {}  {:6.2f} s  {}\n", describe(r.check), r.logits_sha256.substr(0, 16),
                        r.ids_sha256.substr(0, 8), r.seconds, r.equal ? "same" : "DIFFERENT");
  }
  for (const NotRun& n : not_run) text += fmt::format("{}: not run ({})\n", n.what, n.why);
  return text;
}

nlohmann::ordered_json to_json(const std::vector<CheckResult>& results, const std::vector<NotRun>& not_run,
                               bool identical) {
  nlohmann::ordered_json object;
  object["identical"] = identical;
  object["cases"] = nlohmann::ordered_json::array();
  for (const CheckResult& r : results) {
    nlohmann::ordered_json item;
    item["mtp"] = r.check.mtp;
    item["controller"] = r.check.controller;
    item["moe_verify"] = moe_verify_name(r.check.moe_verify);
    item["threads"] = r.check.threads;
    item["isa"] = isa_name(r.check.isa);
    item["prompt_chunk"] =
        r.check.prompt_chunk == 0 ? nlohmann::ordered_json("whole") : nlohmann::ordered_json(r.check.prompt_chunk);
    item["repack"] = r.check.repack;
    item["device"] = describe(r.check.place);
    item["neighbours"] = r.check.neighbours;
    item["sampled"] = r.check.sampled;
    item["prompt_tokens"] = r.check.size.prompt_tokens;
    item["n_predict"] = r.check.size.new_tokens;
    item["logits_sha256"] = r.logits_sha256;
    item["ids_sha256"] = r.ids_sha256;
    item["seconds"] = r.seconds;
    item["equal"] = r.equal;
    object["cases"].push_back(std::move(item));
  }
  object["not_run"] = nlohmann::ordered_json::array();
  for (const NotRun& n : not_run) object["not_run"].push_back({{"what", n.what}, {"why", n.why}});
  return object;
}

}  // namespace

int run_selfcheck(int argc, const char* const* argv) {
  SelfcheckFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  OutputFile json_file(flags.json_path, "--json");
  Prompt text;
  if (flags.prompt.any()) {
    text = read_prompt(flags.prompt);
  } else {
    text.text = kDefaultPrompt;
    text.source = "the built-in prompt";
  }

  flags.model.no_repack = false;
  std::vector<TokenId> prompt;
  std::optional<Model> model = flags.model.load([&](const Model& header) {
    if (flags.mtp_given) check_mtp(header, flags.model.mtp);
    prompt = tokenize_prompt(text, header.tokenizer());
    flags.model.check_room(header.config(), text.source, prompt.size(), /*takes_what_it_needs=*/true,
                           "give a shorter prompt with -p TEXT or -f FILE");
  });
  std::vector<Isa> isas = supported_isas();
  if (flags.model.environment.isa) isas = {*flags.model.environment.isa};
  std::vector<NotRun> not_run = list_not_run(*model, isas);
  CheckAxes axes = check_axes(model->has_mtp() ? flags.model.mtp : 0, flags.model.threads, isas,
                              list_places(*model, flags, not_run));
  if (model->is_repacked()) {
    axes.repack = {true};
    not_run.push_back({"file layout", "the file is repacked"});
  }
  std::vector<CheckCase> plan = flags.full ? full_plan(axes) : covering_plan(axes);
  nlohmann::ordered_json run;
  add_run(run, flags.model, *model);

  const std::vector<ChosenSize> chosen = choose_sizes(plan, *model, flags, prompt, axes.isas);
  const CheckSize whole{static_cast<int>(prompt.size()), static_cast<int>(flags.max_new_tokens)};
  std::string sizes;
  for (const ChosenSize& item : chosen) sizes += describe(item, whole);
  print_message("{}: {} cases\n{}", model->path(), plan.size(), sizes);
  std::vector<CheckResult> results;
  ProgressBar bar("checking", Unit::kCases);
  for (const CheckCase& check : plan) {
    bar.show(results.size(), plan.size(), describe(check));
    if (check.repack == flags.model.no_repack) {
      model->check_unchanged();
      flags.model.no_repack = !check.repack;
      model.reset();  // before loading again: a model may fill most of the memory
      model = flags.model.load();
    }
    results.push_back(run_case(*model, flags, prompt, check));
  }

  model->check_unchanged();
  const bool identical = compare_with_references(results);
  const std::string verdict =
      identical ? fmt::format("all {} cases give the same bits\n", results.size()) : "cases DIFFER\n";
  if (!json_file.is_stdout()) ResultStream().write(sizes + table(results, not_run) + verdict);
  if (!identical)
    print_message("foretoken: the cases marked DIFFERENT part from the first of their kind; please report them\n");
  nlohmann::ordered_json object = to_json(results, not_run, identical);
  for (const char* key : {"version", "commit", "model", "model_sha256", "kv_type", "repacked_file"})
    object[key] = run[key];
  object["prompt_tokens"] = prompt.size();
  object["n_predict"] = flags.max_new_tokens;
  object["sizes"] = nlohmann::ordered_json::array();
  for (const ChosenSize& item : chosen) {
    object["sizes"].push_back({{"isa", isa_name(item.isa)},
                               {"prompt_tokens", item.size.prompt_tokens},
                               {"n_predict", item.size.new_tokens},
                               {"seconds_per_token", item.row_seconds > 0 ? nlohmann::ordered_json(item.row_seconds)
                                                                          : nlohmann::ordered_json(nullptr)}});
  }
  write_json(json_file, object);
  return identical ? 0 : kExitCheckFailed;
}

}  // namespace foretoken
