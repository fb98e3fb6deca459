#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "tools/chat/conversation.h"
#include "tools/chat/line_reader.h"
#include "tools/cli/interruption.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"
#include "tools/serve/api_error.h"

namespace foretoken {

namespace {

constexpr std::string_view kHelp =
    "/regen         make the last answer again (with another seed, where it is sampled)\n"
    "/set NAME X    temp, top-k, top-p, min-p, seed, n (new tokens at most), mtp (drafts), system\n"
    "/save FILE     write the conversation as JSON\n"
    "/stats         what the last answer took\n"
    "/clear         begin a new conversation\n"
    "/quit          the end, as Ctrl-D is\n"
    "A line that ends in \\ goes on with the next one. Ctrl-C stops an answer.\n";

struct ChatFlags {
  ModelFlags model;
  std::string system, chat_template_path;
  int64_t max_new_tokens = INT32_MAX;
  size_t cache_bytes = size_t{512} << 20;
  bool mtp_given = false;

  [[nodiscard]] bool parse(int argc, const char* const* argv) {
    CommandLine line("chat", "-m MODEL",
                     "Talks with a model at the terminal. Each answer goes on from the state that the last one left; "
                     "/help lists what can be\ntyped beside messages.");
    line.add_text("system", &system, "TEXT", "what the model is told first");
    line.add_int("n-predict,n", &max_new_tokens, 1, INT32_MAX, "N", "tokens of an answer at most");
    line.add_text("chat-template-file", &chat_template_path, "FILE", "chat template in place of the file's");
    model.mtp_text = "auto";
    model.add_draft(line);
    model.add_to(line);
    if (!line.parse(argc, argv)) return false;
    mtp_given = line.given("mtp");
    model.resolve(line);
    return true;
  }
};

/// Shows an answer. Its thoughts are dimmed at a terminal; where standard output is none they go to standard error, for
/// the result is the answer alone.
class AnswerWriter {
 public:
  bool write(std::string_view text, bool is_thought) {
    if (is_thought && !kDims) {
      print_message(text);
      return true;
    }
    if (is_thought != is_dim_) {
      if (!out_.write(is_thought ? "\033[2m" : "\033[0m\n\n")) return false;
      is_dim_ = is_thought;
    }
    return out_.write(text);
  }
  /// False: the reader has gone, and nobody will see another answer.
  bool finish() {
    // Ctrl-C while a terminal was slow to take a piece ends the stream of this answer, not the terminal: the end of the
    // line goes through a stream of its own, which finds out.
    return ResultStream().write(is_dim_ ? "\033[0m\n" : "\n");
  }

 private:
  static inline const bool kDims = stdout_is_terminal();
  ResultStream out_;
  bool is_dim_ = false;
};

/// The commands and messages of one sitting.
class Repl {
 public:
  Repl(const ChatFlags& flags, Engine& engine, const ChatPrompts& prompts, const SchedulerOptions& scheduling)
      : model_(engine.model()), most_drafts_(flags.model.mtp), conversation_(engine, prompts, scheduling) {
    conversation_.set_system(flags.system);
    options_.max_new_tokens = flags.max_new_tokens;
    options_.max_drafts = flags.model.mtp;
    options_.sampling = flags.model.sampling;
  }

  /// False: it is the end.
  bool take(const std::string& typed) {
    if (typed.empty()) return true;
    if (typed[0] != '/') {
      ask(typed);
      return !reader_gone_;
    }
    const size_t space = std::min(typed.find(' '), typed.size());
    const std::string command = typed.substr(0, space);
    const std::string rest = space < typed.size() ? typed.substr(space + 1) : "";
    if (command == "/quit" || command == "/exit") return false;
    if (command == "/regen") {
      again();
    } else if (command == "/set") {
      set(rest);
    } else if (command == "/save") {
      save(rest);
    } else if (command == "/stats") {
      print_message("{}", stats_);
    } else if (command == "/clear") {
      conversation_.clear();
    } else {
      if (command != "/help") print_message("{}: no such command\n", command);
      print_message("{}", kHelp);
    }
    return true;
  }

 private:
  void ask(const std::string& text) {
    clear_interrupt();
    AnswerWriter writer;
    const Conversation::Answer answer = conversation_.ask(
        text, options_, [&](std::string_view piece, bool is_thought) { return writer.write(piece, is_thought); },
        [] { return interrupted().load(); });
    const bool is_stopped = interrupted();
    clear_interrupt();
    reader_gone_ = !writer.finish();
    if (!answer.failure.empty()) print_message("{}\n", answer.failure);
    if (is_stopped) print_message("(stopped)\n");
    stats_ = fmt::format("{:<22} {} tokens, {} of them from the state before\n{}", "prompt", answer.prompt_tokens,
                         answer.cached_tokens, describe_statistics(answer.statistics, options_.max_drafts));
  }

  void again() {
    const std::string question = conversation_.take_back();
    if (question.empty()) {
      print_message("there is no answer yet\n");
      return;
    }
    ++options_.sampling.seed;
    ask(question);
  }

  void set(const std::string& rest) {
    const size_t space = std::min(rest.find(' '), rest.size());
    const std::string name = rest.substr(0, space), value = space < rest.size() ? rest.substr(space + 1) : "";
    SamplingOptions& sampling = options_.sampling;
    if (name == "temp") {
      sampling.temperature = static_cast<float>(parse_float(name, value, 0, 1e3));
    } else if (name == "top-k") {
      sampling.top_k = static_cast<int>(parse_int(name, value, 0, INT32_MAX));
    } else if (name == "top-p") {
      sampling.top_p = static_cast<float>(parse_float(name, value, 1e-6, 1));
    } else if (name == "min-p") {
      sampling.min_p = static_cast<float>(parse_float(name, value, 0, 1));
    } else if (name == "seed") {
      sampling.seed = static_cast<uint64_t>(parse_int(name, value, 0, INT64_MAX));
    } else if (name == "n") {
      options_.max_new_tokens = parse_int(name, value, 1, INT32_MAX);
    } else if (name == "mtp") {
      options_.max_drafts = static_cast<int>(parse_int(name, value, 0, most_drafts_));
    } else if (name == "system") {
      conversation_.set_system(value);
    } else {
      print_message("/set {}: no such setting\n{}", name, kHelp);
    }
  }

  void save(const std::string& path) const {
    if (path.empty()) {
      print_message("/save FILE: the name is missing\n");
      return;
    }
    OutputFile file(path, "/save");
    Json messages = Json::array();
    if (!conversation_.system().empty()) messages.push_back({{"role", "system"}, {"content", conversation_.system()}});
    for (const Json& turn : conversation_.turns()) messages.push_back(turn);
    write_json(file, {{"model", model_.path()}, {"messages", std::move(messages)}});
    file.commit();
  }

  const Model& model_;
  const int most_drafts_;
  GenerationOptions options_;
  Conversation conversation_;
  bool reader_gone_ = false;
  std::string stats_ = "there is no answer yet\n";
};

}  // namespace

int run_chat(int argc, const char* const* argv) {
  ChatFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  const Model model = flags.model.load([&](const Model& header) {
    if (!flags.mtp_given && !flags.model.draft_ngram && !header.has_mtp()) flags.model.mtp = 0;
    flags.model.check_drafts(header, flags.model.mtp);
  });
  SessionOptions session = flags.model.session_options(flags.model.mtp);
  session.stop = nullptr;  // Ctrl-C ends an answer, not the passes of the next one
  Engine engine(model, session);
  print_message("{}{}/help lists what can be typed beside messages\n", describe_run(flags.model, model),
                describe_engine(engine));
  const ChatPrompts prompts(model.tokenizer(), flags.chat_template_path.empty()
                                                   ? std::string(model.tokenizer().chat_template())
                                                   : read_file(flags.chat_template_path));
  SchedulerOptions scheduling;
  scheduling.generator = flags.model.decode_options().generator();
  scheduling.cache_bytes = flags.cache_bytes;
  Repl repl(flags, engine, prompts, scheduling);
  LineReader reader;
  const PolledInterrupts polled;
  while (const std::optional<std::string> typed = reader.read("> ")) {
    try {
      if (!repl.take(*typed)) break;
    } catch (const InputError& error) {
      print_message("{}\n", error.what());
    } catch (const UsageError& error) {
      print_message("{}\n", error.what());
    } catch (const ApiError& error) {
      print_message("{}\n", error.what());
    }
  }
  model.check_unchanged();
  return 0;
}

}  // namespace foretoken
