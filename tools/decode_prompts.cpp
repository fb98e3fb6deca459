#include "tools/decode_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "mtp/scheduler.h"
#include "mtp/stopwatch.h"
#include "tools/cli/interruption.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

/// The texts that have ended, handed on in the order of their prompts.
class Results {
 public:
  Results(const Model& model, const ModelFlags& flags, const PromptsRun& run, OutputFile& json)
      : model_(model), flags_(flags), run_(run), json_(json), texts_(run.prompts.size()) {}

  void add(size_t index, const Scheduler::Request& request) {
    Utf8Stream stream;
    std::string text;
    for (const TokenId id : request.ids()) text += stream.push(model_.tokenizer().piece(id));
    text += stream.finish();
    if (json_.wanted()) write_line(index, request, text);
    if (run_.print_ids) {
      text.clear();
      for (const TokenId id : request.ids()) text += fmt::format("{}\n", id);
    }
    texts_[index] = std::move(text);
    for (; next_ < texts_.size() && texts_[next_]; ++next_) print(*texts_[next_]);
  }

  [[nodiscard]] bool reader_gone() const { return out_.reader_gone(); }

 private:
  void write_line(size_t index, const Scheduler::Request& request, const std::string& text) {
    nlohmann::ordered_json object;
    object["index"] = index;
    object["prompt_ids"] = run_.prompts[index];
    object["ids"] = request.ids();
    object["text"] = text;
    object["ids_sha256"] = ids_sha256(request.ids());
    object["stop_reason"] = stop_reason_name(request.stop_reason());
    if (request.stop_reason() == StopReason::kFailed) object["error"] = request.failure();
    add_statistics(object, request.statistics());
    add_run(object, flags_, model_);
    object["parallel"] = flags_.parallel;
    json_.write(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  }

  void print(const std::string& text) {
    if (json_.is_stdout()) return;
    std::string whole = next_ == 0 ? text : "\n" + text;
    if (whole.empty() || whole.back() != '\n') whole += '\n';
    (void)out_.write(whole);
  }

  const Model& model_;
  const ModelFlags& flags_;
  const PromptsRun& run_;
  OutputFile& json_;
  ResultStream out_;
  std::vector<std::optional<std::string>> texts_;  // [prompts]
  size_t next_ = 0;                                // the first that is not printed
};

}  // namespace

int decode_prompts(const Model& model, const ModelFlags& flags, const PromptsRun& run, OutputFile& json) {
  Engine engine(model, flags.session_options(flags.mtp));
  print_message("{}{} prompts, {} at a time, {} pages of {} positions for all\n", describe_run(flags, model),
                run.prompts.size(), flags.parallel, engine.num_pages(), kPagePositions);
  SchedulerOptions scheduling;
  scheduling.generator = flags.decode_options().generator();
  scheduling.step_ms = flags.step_ms;
  Scheduler scheduler(engine, scheduling);
  GenerationOptions generation;
  generation.max_new_tokens = run.max_new_tokens;
  generation.max_drafts = flags.mtp;
  generation.sampling = flags.sampling;
  generation.rules = run.rules;
  generation.ignore_eos = run.ignore_eos;
  std::vector<Scheduler::Request*> requests;
  for (const std::vector<TokenId>& prompt : run.prompts) requests.push_back(&scheduler.add(prompt, generation));

  const PolledInterrupts polled;  // what has ended is worth keeping
  Results results(model, flags, run, json);
  Stopwatch watch, since_step;
  double decode_ms = 0;
  double longest_wait_ms = 0;  // of a running text for its next token
  int64_t steps = 0, rows = 0, new_tokens = 0;
  std::string failure;
  try {
    while (!interrupted() && !results.reader_gone() && scheduler.step()) {
      ++steps;
      rows += scheduler.last_step().window_rows;
      const double step_ms = since_step.lap_ms();
      if (scheduler.last_step().num_windows > 0) longest_wait_ms = std::max(longest_wait_ms, step_ms);
      for (size_t i = 0; i < requests.size(); ++i) {
        if (requests[i] == nullptr || !requests[i]->is_finished()) continue;
        new_tokens += static_cast<int64_t>(requests[i]->ids().size());
        if (requests[i]->stop_reason() == StopReason::kFailed && failure.empty())
          failure = fmt::format("prompt {}: {}", i + 1, requests[i]->failure());
        results.add(i, *requests[i]);
        scheduler.forget(*requests[i]);
        requests[i] = nullptr;
      }
    }
  } catch (const Interrupted&) {
  }
  decode_ms = watch.lap_ms();
  print_message(
      "\n{:<22} {} tokens of {} prompts, {:.2f} tok/s in all\n{:<22} {}, {:.2f} window rows each\n{:<22} {:.0f} ms "
      "between two tokens of a text; --step-ms {:g}\n",
      "decode", new_tokens, run.prompts.size(), decode_ms > 0 ? 1e3 * static_cast<double>(new_tokens) / decode_ms : 0.0,
      "steps", steps, steps > 0 ? static_cast<double>(rows) / static_cast<double>(steps) : 0.0, "longest wait",
      longest_wait_ms, flags.step_ms);
  model.check_unchanged();
  json.commit();
  if (interrupted()) return kExitInterrupted;
  if (!failure.empty()) throw InputError(failure);
  return 0;
}

}  // namespace foretoken
