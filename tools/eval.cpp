#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "mtp/draft_vocabulary.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/npy_writer.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

struct EvalFlags {
  ModelFlags model;
  PromptFlags prompt;
  std::string logits_path, mtp_logits_path, json_path;

  [[nodiscard]] bool parse(int argc, const char* const* argv) {
    CommandLine line(
        "eval", "-m MODEL (-f TEXT | --ids FILE)",
        "Perplexity of a text: exp of the mean negative log-likelihood (natural log) of its tokens, the first one left "
        "out.\n"
        "A text longer than the context is cut into parts of --ctx-size tokens, each from an empty context.");
    prompt.add_to(line);
    line.add_output("logits", &logits_path, "OUT.npy", "write the logits, float32 [positions, vocabulary]");
    line.add_output("mtp-logits", &mtp_logits_path, "OUT.npy",
                    "write the draft logits; row p: token p and the hidden of p-1, zeros at 0");
    line.add_output("json", &json_path, "FILE",
                    "write the result as JSON; -: to standard output, in place of the text");
    model.draft_vocab = 0;  // a measurement of the model, not of a shortened head
    model.add_model(line);
    model.add_session(line);
    model.add_mtp(line);
    line.epilogue(environment_help());
    if (!line.parse(argc, argv)) return false;
    prompt.resolve(line);
    model.needs_mtp = !mtp_logits_path.empty();
    model.resolve(line);
    return true;
  }

  [[nodiscard]] bool needs_mtp() const { return model.mtp > 0 || !mtp_logits_path.empty(); }
};

TokenId argmax(const float* logits, int64_t vocab_size) {
  return static_cast<TokenId>(std::max_element(logits, logits + vocab_size) -
                              logits);  // the first of equals: the lower id
}

/// -log p(token) under softmax(logits).
double negative_log_likelihood(const float* logits, int64_t vocab_size, TokenId token) {
  const double max = *std::max_element(logits, logits + vocab_size);
  double sum = 0;
  for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[i]) - max);
  return std::log(sum) + max - static_cast<double>(logits[token]);
}

struct EvalResult {
  double nll = 0;
  int64_t counted = 0;            // tokens that nll sums over
  std::vector<int64_t> compared;  // [mtp] drafts at each position of a window
  std::vector<int64_t> agreed;    // [mtp] of them, equal to the trunk's argmax
};

/// Runs a text through the trunk and, beside it, the MTP layer.
class Evaluation {
 public:
  Evaluation(Session& session, int mtp, NpyWriter& logits_file, NpyWriter& mtp_file)
      : session_(session),
        vocab_size_(session.model().config().vocab_size),
        hidden_dim_(session.model().config().hidden_dim),
        mtp_(mtp),
        logits_file_(logits_file),
        mtp_file_(mtp_file) {
    result_.compared.assign(mtp, 0);
    result_.agreed.assign(mtp, 0);
  }

  /// One part of the text, from an empty context. `progress` is told how many of its tokens are done.
  void run(std::span<const TokenId> ids, const std::function<void(size_t)>& progress) {
    session_.reset();
    ids_ = ids;
    choices_.clear();
    hidden_.assign(mtp_ > 0 || mtp_file_.wanted() ? static_cast<size_t>(hidden_dim_) : 0, 0.0f);
    for (size_t begin = 0; begin < ids.size();) {
      const size_t end = std::min(ids.size(), begin + static_cast<size_t>(session_.max_rows()));
      session_.forward(ids.subspan(begin, end - begin));
      trunk_rows(begin, end);
      session_.commit(static_cast<int>(end - begin));
      if (!hidden_.empty()) mtp_rows(begin, end);
      begin = end;
      progress(end);
    }
    compare_drafts();
  }

  [[nodiscard]] const EvalResult& result() const { return result_; }

 private:
  void trunk_rows(size_t begin, size_t end) {
    const int num_rows = static_cast<int>(end - begin);
    for (int row = 0; row < num_rows; row += session_.logits_capacity()) {
      const int row_end = std::min(num_rows, row + session_.logits_capacity());
      session_.compute_logits(row, row_end);
      for (int r = row; r < row_end; ++r) {
        session_.check_row(r);
        const float* logits = session_.logits(r);
        const size_t position = begin + static_cast<size_t>(r);
        logits_file_.write_row({logits, static_cast<size_t>(vocab_size_)});
        if (mtp_ > 0) choices_.push_back(argmax(logits, vocab_size_));
        if (position + 1 < ids_.size()) {
          result_.nll += negative_log_likelihood(logits, vocab_size_, ids_[position + 1]);
          ++result_.counted;
        }
      }
    }
  }

  /// Draft logits for the positions of the last trunk pass. hidden_ is the hidden of position begin - 1.
  void mtp_rows(size_t begin, size_t end) {
    std::vector<const float*> hidden(end - begin);
    hidden[0] = hidden_.data();
    for (size_t r = 1; r < hidden.size(); ++r) hidden[r] = session_.hidden(static_cast<int>(r - 1));
    if (mtp_ > 1) {
      for (size_t r = 0; r < hidden.size(); ++r) chain(begin + r, hidden[r]);
    } else {
      session_.mtp_forward(ids_.subspan(begin, end - begin), static_cast<int64_t>(begin), hidden);
      const int num_rows = static_cast<int>(end - begin);
      for (int row = 0; row < num_rows; row += session_.logits_capacity()) {
        const int row_end = std::min(num_rows, row + session_.logits_capacity());
        session_.mtp_compute_logits(row, row_end);
        check_mtp_rows();
        for (int r = row; r < row_end; ++r) first_draft(session_.mtp_logits(r));
      }
    }
    const float* last = session_.hidden(static_cast<int>(end - begin) - 1);
    std::copy_n(last, hidden_dim_, hidden_.data());
  }

  /// All drafts that start after `position`: the first from the trunk's hidden, each further one from the MTP layer's
  /// own. The text's own tokens are fed, so draft i+1 is asked under the condition that drafts 1..i were right. The
  /// rows that the chain leaves in the MTP layer's cache are written again when the next positions get their true
  /// hidden.
  void chain(size_t position, const float* hidden) {
    for (size_t i = 0; i < static_cast<size_t>(mtp_) && position + i < ids_.size(); ++i) {
      session_.mtp_forward(ids_.subspan(position + i, 1), static_cast<int64_t>(position + i), {&hidden, 1});
      session_.mtp_compute_logits(0, 1);
      check_mtp_rows();
      if (i == 0) {
        first_draft(session_.mtp_logits(0));
      } else {
        drafts_.push_back({i, position + i, argmax(session_.mtp_logits(0), vocab_size_)});
      }
      hidden = session_.mtp_hidden(0);
    }
  }

  // Here the drafts are the result, not only a help.
  void check_mtp_rows() const {
    if (const std::optional<std::string> fault = session_.mtp_fault())
      throw InputError(fmt::format("{}: {}", session_.model().path(), *fault));
  }

  void first_draft(const float* logits) {
    mtp_file_.write_row({logits, static_cast<size_t>(vocab_size_)});
    if (mtp_ > 0) drafts_.push_back({0, num_first_++, argmax(logits, vocab_size_)});
  }

  /// Chains look ahead of the trunk's pass, so they are judged when all its choices are known.
  void compare_drafts() {
    for (const Draft& draft : drafts_) {
      ++result_.compared[draft.index];
      if (draft.token == choices_[draft.position]) ++result_.agreed[draft.index];
    }
    drafts_.clear();
    num_first_ = 0;
  }

  struct Draft {
    size_t index;     // in its window
    size_t position;  // whose next token it proposes
    TokenId token;
  };

  Session& session_;
  const int64_t vocab_size_, hidden_dim_;
  const int mtp_;
  NpyWriter& logits_file_;
  NpyWriter& mtp_file_;
  std::span<const TokenId> ids_;
  std::vector<float>
      hidden_;  // [hidden_dim] of the last position seen, zeros at first; empty where the MTP layer is not asked
  std::vector<TokenId> choices_;  // the trunk's argmax at each position
  std::vector<Draft> drafts_;
  size_t num_first_ = 0;
  EvalResult result_;
};

std::string describe(const EvalResult& result, double perplexity, int64_t num_tokens, size_t num_parts) {
  std::string text;
  if (result.counted == 0) {
    text = "perplexity: none, a text of one token has nothing to predict\n";
  } else {
    // Beyond 709 nats a token the perplexity is no double any more.
    text = fmt::format("perplexity {} over {} of {} tokens{}; {:.4f} nats a token\n",
                       std::isfinite(perplexity) ? fmt::format("{:.4f}", perplexity) : "above 1e308", result.counted,
                       num_tokens, num_parts > 1 ? fmt::format(" in {} parts", num_parts) : "",
                       result.nll / static_cast<double>(result.counted));
  }
  for (size_t i = 0; i < result.compared.size(); ++i) {
    text += fmt::format(
        "draft {}: {:.1f}% equal to the trunk's choice ({} of {})\n", i + 1,
        100.0 * static_cast<double>(result.agreed[i]) / static_cast<double>(std::max<int64_t>(result.compared[i], 1)),
        result.agreed[i], result.compared[i]);
  }
  return text;
}

}  // namespace

int run_eval(int argc, const char* const* argv) {
  EvalFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  OutputFile json_file(flags.json_path, "--json");
  NpyWriter logits_file(flags.logits_path, "--logits");
  NpyWriter mtp_file(flags.mtp_logits_path, "--mtp-logits");
  check_one_stdout({{"--json", json_file.is_stdout()},
                    {"--logits", logits_file.is_stdout()},
                    {"--mtp-logits", mtp_file.is_stdout()}});
  const Prompt text = read_prompt(flags.prompt);

  std::vector<TokenId> ids;
  const Model model = flags.model.load([&](const Model& header) {
    if (flags.needs_mtp()) check_mtp(header, std::max(flags.model.mtp, 1));
    ids = tokenize_prompt(text, header.tokenizer());
  });
  const int64_t num_tokens = static_cast<int64_t>(ids.size());
  const int64_t vocab_size = model.config().vocab_size;

  SessionOptions options = flags.model.session_options(std::max(flags.model.mtp, flags.needs_mtp() ? 1 : 0));
  if (options.ctx_size == 0) options.ctx_size = std::min(num_tokens, model.config().context_length);
  Session session(model, options);
  const int64_t part_size = session.options().ctx_size;
  const size_t num_parts = static_cast<size_t>((num_tokens + part_size - 1) / part_size);
  print_message("{}", describe_run(flags.model, model));

  logits_file.begin(num_tokens, vocab_size);
  mtp_file.begin(num_tokens, vocab_size);
  if (flags.needs_mtp() && flags.model.draft_vocab.value_or(0) > 0) {
    DraftVocabulary(session.engine(), *flags.model.draft_vocab).see(session.sequence(), ids);
  }
  Evaluation evaluation(session, flags.model.mtp, logits_file, mtp_file);
  ProgressBar bar("evaluating", Unit::kTokens);
  for (int64_t begin = 0; begin < num_tokens; begin += part_size) {
    const int64_t size = std::min(part_size, num_tokens - begin);
    const auto first = static_cast<size_t>(begin);
    evaluation.run(std::span(ids).subspan(first, static_cast<size_t>(size)),
                   [&](size_t done) { bar.show(first + done, ids.size()); });
  }
  model.check_unchanged();
  logits_file.commit();
  mtp_file.commit();

  const EvalResult& result = evaluation.result();
  const double mean = result.counted > 0 ? result.nll / static_cast<double>(result.counted) : 0;
  if (!json_file.is_stdout() && !logits_file.is_stdout() && !mtp_file.is_stdout())
    ResultStream().write(describe(result, std::exp(mean), num_tokens, num_parts));
  nlohmann::ordered_json object;
  const double perplexity = std::exp(mean);
  object["perplexity"] = result.counted > 0 && std::isfinite(perplexity) ? nlohmann::ordered_json(perplexity)
                                                                         : nlohmann::ordered_json(nullptr);
  object["nats_per_token"] = result.counted > 0 ? nlohmann::ordered_json(mean) : nlohmann::ordered_json(nullptr);
  object["tokens"] = num_tokens;
  object["tokens_counted"] = result.counted;
  object["parts"] = num_parts;
  object["draft_agreement_by_position"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < result.compared.size(); ++i) {
    object["draft_agreement_by_position"].push_back(static_cast<double>(result.agreed[i]) /
                                                    static_cast<double>(std::max<int64_t>(result.compared[i], 1)));
  }
  object["drafts_compared_by_position"] = result.compared;
  add_run(object, flags.model, model);
  write_json(json_file, object);
  return 0;
}

}  // namespace foretoken
