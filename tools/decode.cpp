#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "kernels/base/error.h"
#include "tools/cli/cluster_program.h"
#include "tools/cli/interruption.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/cli/rule_flags.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"
#include "tools/decode_prompts.h"

namespace foretoken {

namespace {

struct DecodeFlags {
  ModelFlags model;
  PromptFlags prompt;
  RuleFlags rules;
  int64_t max_new_tokens = 128;
  bool print_ids = false;
  bool ignore_eos = false;
  std::string json_path, prompts_path;

  [[nodiscard]] bool parse(int argc, const char* const* argv) {
    CommandLine line(
        "decode", "-m MODEL [-p TEXT | -f FILE | --ids FILE | --prompts FILE]",
        "Continues a prompt. The text goes to standard output as it is made, statistics to standard error.\n"
        "Ctrl-C ends the generation cleanly (exit 130); a second one ends the program at once.");
    prompt.offers_chat = true;
    prompt.add_to(line);
    line.add_text("prompts", &prompts_path, "FILE",
                  "continue several prompts, separated by blank lines; results in their order, or with --json one "
                  "object a line as they end");
    line.add_int("n-predict,n", &max_new_tokens, 1, INT32_MAX, "N", "tokens to make at most");
    line.add_switch("ignore-eos", &ignore_eos, "do not stop at an end-of-text token");
    line.add_switch("print-ids", &print_ids, "print token ids, one a line, instead of text");
    line.add_output("json", &json_path, "FILE",
                    "write the result and the statistics as JSON; -: to standard output, in place of the text");
    model.parallel = 4;
    model.add_draft(line);
    model.add_batch(line);
    model.add_to(line);
    rules.add_to(line);
    if (!line.parse(argc, argv)) return false;
    prompt.resolve(line);
    rules.resolve(line);
    if (prompts_path.empty()) {
      for (const char* flag : {"parallel", "kv-memory", "step-ms"}) {
        if (line.given(flag)) throw UsageError(fmt::format("{} belongs to --prompts FILE", line.typed(flag)));
      }
      model.parallel = 1;
    } else if (prompt.any()) {
      throw UsageError("--prompts FILE: the prompts are there; give no other one");
    }
    model.resolve(line);
    return true;
  }
};

/// Puts each token on standard output as soon as its characters are whole (under mpirun: within 10 ms of the next one),
/// and keeps the text.
class TokenPrinter {
 public:
  TokenPrinter(const Tokenizer& tokenizer, bool print_ids, bool silent)
      : tokenizer_(tokenizer), print_ids_(print_ids), silent_(silent) {}

  /// False once nobody reads standard output any more.
  bool print(TokenId id) {
    const std::string whole = stream_.push(tokenizer_.piece(id));
    text_ += whole;
    if (silent_) return true;
    pending_ += print_ids_ ? fmt::format("{}\n", id) : whole;
    // mpirun takes a core for a moment with every piece that it passes on; at this pace nobody can tell.
    constexpr std::chrono::milliseconds kPiece{10};
    const auto now = std::chrono::steady_clock::now();
    if (program_cluster() != nullptr && now - written_ < kPiece) return !out_.reader_gone();
    written_ = now;
    return write_pending();
  }

  void finish() {
    const std::string rest = stream_.finish();
    text_ += rest;
    if (silent_) return;
    write_pending();
    if (!print_ids_) out_.write(rest);
    // A prompt of the shell glued to the last word reads badly; a pipe gets the text alone.
    if (!print_ids_ && !text_.empty() && text_.back() != '\n' && stdout_is_terminal()) out_.write("\n");
  }

  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  bool write_pending() {
    const bool goes_on = out_.write(pending_);
    pending_.clear();
    return goes_on;
  }

  const Tokenizer& tokenizer_;
  const bool print_ids_, silent_;
  Utf8Stream stream_;
  ResultStream out_;
  std::string pending_;
  std::chrono::steady_clock::time_point written_;
  std::string text_;
};

int run_prompts(DecodeFlags& flags, OutputFile& json_file) {
  const std::vector<Prompt> prompts = read_prompts(flags.prompts_path, flags.prompt);
  PromptsRun run;
  LogitRules rules;
  run.max_new_tokens = flags.max_new_tokens;
  run.ignore_eos = flags.ignore_eos;
  run.print_ids = flags.print_ids;
  const Model model = flags.model.load([&](const Model& header) {
    flags.model.check_drafts(header, flags.model.mtp);
    rules = flags.rules.make(header);
    for (const Prompt& prompt : prompts) {
      run.prompts.push_back(tokenize_prompt(prompt, header.tokenizer()));
      flags.model.check_room(header.config(), prompt.source, run.prompts.back().size(), /*takes_what_it_needs=*/false,
                             "shorten the prompt");
    }
    flags.model.plan_memory(header);
  });
  run.rules = std::move(rules);
  return decode_prompts(model, flags.model, run, json_file);
}

}  // namespace

int run_decode(int argc, const char* const* argv) {
  DecodeFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  OutputFile json_file(flags.json_path, "--json");
  if (!flags.prompts_path.empty()) return run_prompts(flags, json_file);
  const Prompt prompt = read_prompt(flags.prompt);

  std::vector<TokenId> prompt_ids;
  LogitRules rules;
  const Model model = flags.model.load([&](const Model& header) {
    flags.model.check_drafts(header, flags.model.mtp);
    rules = flags.rules.make(header);
    prompt_ids = tokenize_prompt(prompt, header.tokenizer());
    flags.model.check_room(header.config(), prompt.source, prompt_ids.size(), /*takes_what_it_needs=*/false,
                           "shorten the prompt");
    flags.model.plan_memory(header);
  });
  Session session(model, flags.model.session_options(flags.model.mtp));
  print_message("{}", describe_run(flags.model, model));

  TokenPrinter printer(model.tokenizer(), flags.print_ids, /*silent=*/json_file.is_stdout());
  DecodeOptions options = flags.model.decode_options();
  options.max_new_tokens = flags.max_new_tokens;
  options.rules = std::move(rules);
  options.ignore_eos = flags.ignore_eos;
  options.stop = &interrupted();
  ProgressBar bar("reading the prompt", Unit::kTokens);
  bar.show(0, prompt_ids.size());
  options.on_prompt = [&](int64_t done) { bar.show(static_cast<size_t>(done), prompt_ids.size()); };
  // Once there is text, it is worth keeping: a signal lets the statistics follow it.
  std::optional<PolledInterrupts> polled;
  options.on_token = [&](TokenId id) {
    if (!polled) {
      polled.emplace();
      bar.wipe();
    }
    return printer.print(id);
  };
  const DecodeResult result = decode(session, prompt_ids, options);
  bar.wipe();
  printer.finish();

  print_message("\n{}{}{:<22} {}\n", describe_statistics(result.statistics, flags.model.mtp),
                describe_reads(session.engine().reads_by_place()), "stopped by", stop_reason_name(result.stop_reason));
  model.check_unchanged();
  nlohmann::ordered_json object;
  object["prompt_ids"] = prompt_ids;
  object["ids"] = result.ids;
  object["text"] = printer.text();
  object["ids_sha256"] = ids_sha256(result.ids);
  object["stop_reason"] = stop_reason_name(result.stop_reason);
  add_statistics(object, result.statistics);
  add_reads(object, session.engine().reads_by_place());
  add_run(object, flags.model, model);
  write_json(json_file, object);
  return interrupted() ? kExitInterrupted : 0;
}

}  // namespace foretoken
