#include "mtp/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "engine/device_cycle.h"
#include "kernels/base/error.h"
#include "mtp/accept.h"
#include "mtp/controller.h"
#include "mtp/draft.h"
#include "mtp/draft_vocabulary.h"
#include "mtp/rollback.h"
#include "mtp/verify.h"

namespace foretoken {

namespace {

class Stopwatch {
 public:
  /// Milliseconds since the last call, or since construction.
  double lap_ms() {
    const auto now = std::chrono::steady_clock::now();
    const double ms = std::chrono::duration<double, std::milli>(now - begin_).count();
    begin_ = now;
    return ms;
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// One generation: the state that the steps of the cycle share.
class Generation {
 public:
  Generation(Session& session, std::span<const TokenId> prompt, const DecodeOptions& options)
      : session_(session), prompt_(prompt), options_(options), controller_(options.mtp, !options.controller) {
    // A device goes through the whole cycle alone, unless somebody wants to see the logits or its choices need the
    // host.
    if (!options.on_logits && DeviceCycle::supports(options.sampling)) device_ = session.engine().device_cycle();
    DecodeStatistics& s = result_.statistics;
    s.drafted_by_position.assign(kMaxDraft, 0);
    s.accepted_by_position.assign(kMaxDraft, 0);
    s.windows_by_k.assign(kMaxDraft + 1, 0);
    s.verify_ms_by_rows.assign(kMaxDraft + 2, 0);
    s.windows_by_rows.assign(kMaxDraft + 2, 0);
    s.distinct_experts_by_rows.assign(kMaxDraft + 2, 0);
    if (options.mtp > 0) {
      drafter_.emplace(session);
      vocabulary_.emplace(session, options.draft_vocab);
      vocabulary_->see(prompt);
    }
  }

  DecodeResult run() {
    session_.reset();
    Stopwatch whole;
    const std::optional<TokenId> first = read_prompt();
    result_.statistics.time_to_first_token_ms = whole.lap_ms();
    bool going = first && options_.max_new_tokens > 0 && emit(*first);
    if (device_ != nullptr && going) {
      device_->begin(session_.sequence().state_for_device(), options_.sampling, *first, last_row_);
      see(std::span(&*first, 1));
    } else if (drafter_ && going) {
      const float* hidden = session_.hidden(last_row_);
      follow(std::span(&*first, 1), std::span(&hidden, 1));
    }
    last_ = first.value_or(0);
    while (going && may_go_on()) going = device_ != nullptr ? device_cycle() : cycle();
    DecodeStatistics& s = result_.statistics;
    s.decode_ms = whole.lap_ms();
    s.new_tokens = static_cast<int64_t>(result_.ids.size());
    s.decode_tokens = std::max<int64_t>(0, s.new_tokens - 1);
    return std::move(result_);
  }

 private:
  // Position of the token after `last_`.
  [[nodiscard]] int64_t next_position() const { return session_.length() + 1; }

  bool is_stopped() {
    if (options_.stop == nullptr || !options_.stop->load(std::memory_order_relaxed)) return false;
    result_.stop_reason = StopReason::kInterrupted;
    return true;
  }

  bool may_go_on() {
    if (is_stopped()) return false;
    if (static_cast<int64_t>(result_.ids.size()) >= options_.max_new_tokens) {
      result_.stop_reason = StopReason::kLength;
      return false;
    }
    if (next_position() >= session_.options().ctx_size) {
      result_.stop_reason = StopReason::kContextFull;
      return false;
    }
    return true;
  }

  // Trunk and MTP layer over the prompt in chunks; returns the first new token, or nothing if it was stopped.
  std::optional<TokenId> read_prompt() {
    const SessionOptions& o = session_.options();
    const auto dim = static_cast<size_t>(session_.model().config().hidden_dim);
    std::vector<float> previous(dim, 0.0f);  // the hidden before a chunk; zeros at the start
    Stopwatch watch;
    std::optional<TokenId> first;
    for (size_t begin = 0; begin < prompt_.size();) {
      if (is_stopped()) return std::nullopt;
      const auto ids = prompt_.subspan(begin, std::min(prompt_.size() - begin, static_cast<size_t>(o.prompt_chunk)));
      const int num_rows = static_cast<int>(ids.size());
      session_.forward(ids);
      if (options_.all_prompt_logits && options_.on_logits) report_logits(num_rows);
      begin += ids.size();
      last_row_ = num_rows - 1;
      if (begin == prompt_.size()) first = choose_first(num_rows);
      session_.commit(num_rows);
      result_.statistics.prompt_ms += watch.lap_ms();
      result_.statistics.prompt_tokens = static_cast<int64_t>(begin);
      if (!drafter_) continue;
      std::vector<const float*> hidden{previous.data()};
      for (int r = 0; r + 1 < num_rows; ++r) hidden.push_back(session_.hidden(r));
      drafter_->follow(ids, hidden);
      stop_drafting_on_fault();
      std::copy_n(session_.hidden(last_row_), dim, previous.data());
      const double ms = watch.lap_ms();
      result_.statistics.prompt_ms += ms;
      result_.statistics.prompt_mtp_ms += ms;
    }
    return first;
  }

  // Logits of all rows of a prompt chunk but the very last of the prompt, which choose_first reports.
  void report_logits(int num_rows) {
    const bool is_last = session_.length() + num_rows == static_cast<int64_t>(prompt_.size());
    const int end = is_last ? num_rows - 1 : num_rows;
    for (int r = 0; r < end;) {
      const int stop = std::min(r + session_.logits_capacity(), end);
      session_.compute_logits(r, stop);
      for (; r < stop; ++r) {
        session_.check_row(r);
        options_.on_logits(session_.length() + r, session_.logits(r));
      }
    }
  }

  TokenId choose_first(int num_rows) {
    session_.compute_logits(num_rows - 1, num_rows);
    for (int r = 0; r < num_rows; ++r) session_.check_row(r);
    const float* logits = session_.logits(num_rows - 1);
    if (options_.on_logits) options_.on_logits(session_.length() + num_rows - 1, logits);
    return choose_token(session_.options().isa, logits, session_.model().config().vocab_size, options_.sampling,
                        session_.length() + num_rows);
  }

  // Hands one new token on; false ends the generation.
  bool emit(TokenId id) {
    if (!options_.ignore_eos && session_.model().tokenizer().is_end_of_generation(id)) {
      result_.stop_reason = StopReason::kEndOfGeneration;
      return false;
    }
    result_.ids.push_back(id);
    if (options_.on_token && !options_.on_token(id)) {
      result_.stop_reason = StopReason::kCallback;
      return false;
    }
    return true;
  }

  // Most drafts that the coming window may have: no token beyond those asked for, none beyond the context.
  [[nodiscard]] int most_drafts() const {
    const int64_t room = std::min(options_.max_new_tokens - static_cast<int64_t>(result_.ids.size()),
                                  session_.options().ctx_size - next_position());
    return static_cast<int>(std::min<int64_t>(options_.mtp, room - 1));
  }

  // Draft, verify, accept, commit, refresh. False ends the generation.
  bool cycle() {
    DecodeStatistics& s = result_.statistics;
    Stopwatch watch;
    draft(most_drafts());
    s.draft_ms += watch.lap_ms();

    verify(session_, last_, drafts_, options_.sampling, choices_);
    count_verify(watch.lap_ms(), session_.distinct_experts());

    const Acceptance acceptance = accept(drafts_, choices_);
    count_accepted(acceptance.num_accepted);
    const int64_t begin = session_.length();
    bool going = true;
    for (int i = 0; i <= acceptance.num_accepted && going; ++i) {
      session_.check_row(i);  // after the tokens before it went out, as in plain decoding
      if (options_.on_logits) options_.on_logits(begin + i, session_.logits(i));
      going = emit(choices_[static_cast<size_t>(i)]);
    }
    rollback(session_, acceptance);
    last_ = acceptance.next;
    s.accept_ms += watch.lap_ms();

    if (drafter_ && going) {
      std::vector<const float*> hidden;
      for (int i = 0; i <= acceptance.num_accepted; ++i) hidden.push_back(session_.hidden(i));
      follow(std::span(choices_).first(hidden.size()), hidden);
    }
    const double refresh_ms = watch.lap_ms();
    s.refresh_ms += refresh_ms;
    if (planned_ > 0) controller_.observe_refresh(refresh_ms);
    return going;
  }

  // The same cycle on the device, which is told the number of drafts and tells the tokens.
  bool device_cycle() {
    DecodeStatistics& s = result_.statistics;
    Stopwatch watch;
    const int num_drafts = plan_device_window(most_drafts());
    forced_.clear();
    for (int i = 0; i < num_drafts; ++i) {
      const std::optional<TokenId> forced = forced_draft(next_position() + i);
      if (!forced) break;
      forced_.push_back(*forced);
    }
    const DeviceCycle::Outcome& outcome = device_->run({last_, num_drafts, forced_});
    confidences_ = outcome.confidences;
    choices_ = outcome.choices;

    count_verify(outcome.verify_ms, outcome.distinct_experts, outcome.is_steady);
    count_accepted(outcome.num_accepted);
    s.draft_ms += outcome.draft_ms;
    s.refresh_ms += outcome.refresh_ms;
    if (num_drafts > 0 && outcome.is_steady) {
      controller_.observe_draft(/*is_first=*/true, 0);  // it was made with the refresh before
      controller_.observe_refresh(outcome.refresh_ms);
    }
    for (int i = 1; i < num_drafts && outcome.is_steady; ++i)
      controller_.observe_draft(false, outcome.draft_ms / (num_drafts - 1));
    s.draft_step_ms += outcome.draft_ms;
    s.draft_steps += std::max(0, num_drafts - 1);

    const auto produced = std::span(choices_).first(static_cast<size_t>(outcome.num_accepted) + 1);
    bool going = true;
    for (size_t i = 0; i < produced.size() && going; ++i) going = emit(produced[i]);
    last_ = produced.back();
    see(produced);
    // What the host adds: waiting for the device, reading its answer, handing tokens on.
    s.accept_ms += watch.lap_ms() - outcome.draft_ms - outcome.verify_ms - outcome.refresh_ms;
    return going;
  }

  // All drafts of a device's window are made in one go, so their number is settled before: by the plan, and by how sure
  // the MTP layer is of the first one, where that is known.
  int plan_device_window(int limit) {
    limit = std::max(limit, 0);
    const int planned = controller_.plan(limit);
    const float confidence = device_->first_confidence();
    return planned == 0 || confidence < 0 ? planned : controller_.plan_after_first(confidence, limit);
  }

  void see(std::span<const TokenId> ids) {
    if (vocabulary_) vocabulary_->see(ids);
  }

  // The MTP layer learns of accepted tokens: at once if the next window will draft, later otherwise.
  void follow(std::span<const TokenId> ids, std::span<const float* const> hidden) {
    see(ids);
    planned_ = controller_.plan(options_.mtp);
    if (planned_ == 0) {
      drafter_->defer(ids, hidden);
    } else if (drafter_->deferred() > 0) {
      drafter_->defer(ids, hidden);
      drafter_->flush();
    } else {
      drafter_->follow(ids, hidden);
    }
    stop_drafting_on_fault();
  }

  // A draft is worth no more than its verification: without the MTP layer the text is the same.
  void stop_drafting_on_fault() {
    if (!drafter_->fault()) return;
    result_.statistics.draft_fault = *drafter_->fault();
    planned_ = 0;
    drafter_.reset();
  }

  void draft(int limit) {
    drafts_.clear();
    confidences_.clear();
    if (planned_ == 0 || limit <= 0) return;
    Stopwatch watch;
    do {
      float confidence = 0;
      drafts_.push_back(drafter_->next_draft(options_.sampling, confidence));
      if (drafter_->fault()) {
        drafts_.pop_back();
        return stop_drafting_on_fault();
      }
      confidences_.push_back(confidence);
      const double ms = watch.lap_ms();
      controller_.observe_draft(drafts_.size() == 1, ms);
      if (drafts_.size() > 1) {
        result_.statistics.draft_step_ms += ms;
        ++result_.statistics.draft_steps;
      }
      force_draft();
    } while (controller_.worth_another(confidences_, limit));
  }

  // Puts a forced draft in the place of the last one.
  void force_draft() {
    const std::optional<TokenId> forced = forced_draft(session_.length() + static_cast<int64_t>(drafts_.size()));
    if (!forced) return;
    drafts_.back() = *forced;
    drafter_->replace_last(*forced);
  }

  // The known token at this position, or a wrong one, if acceptance is forced there.
  [[nodiscard]] std::optional<TokenId> forced_draft(int64_t position) const {
    const auto index = static_cast<size_t>(position - static_cast<int64_t>(prompt_.size()));
    if (index >= options_.forced_continuation.size()) return std::nullopt;
    const TokenId right = options_.forced_continuation[index];
    const auto wrong = static_cast<TokenId>((right + 1) % session_.model().config().vocab_size);
    return forced_coin(options_.forced_seed, position, options_.forced_acceptance) ? right : wrong;
  }

  // Of the running window, whose choices and confidences are known.
  void count_verify(double ms, double distinct_experts, bool is_steady = true) {
    DecodeStatistics& s = result_.statistics;
    const size_t num_rows = choices_.size();
    s.verify_ms += ms;
    s.verify_ms_by_rows[num_rows] += ms;
    ++s.windows_by_rows[num_rows];
    s.distinct_experts_by_rows[num_rows] += distinct_experts;
    // A pass that has to load its kernels first may take a hundred times as long as the next one.
    if (is_steady) controller_.observe_verify(static_cast<int>(num_rows), ms);
  }

  void count_accepted(int num_accepted) {
    DecodeStatistics& s = result_.statistics;
    const size_t num_drafts = confidences_.size();
    ++s.verify_passes;
    ++s.windows_by_k[num_drafts];
    s.drafted += static_cast<int64_t>(num_drafts);
    s.accepted += num_accepted;
    s.verified_tokens += num_accepted + 1;
    for (size_t i = 0; i < num_drafts; ++i) {
      ++s.drafted_by_position[i];
      if (static_cast<int>(i) < num_accepted) ++s.accepted_by_position[i];
    }
    controller_.observe_acceptance(confidences_, num_accepted);
  }

  Session& session_;
  const std::span<const TokenId> prompt_;
  const DecodeOptions& options_;
  DraftController controller_;
  DeviceCycle* device_ = nullptr;  // goes through the cycles after the prompt, if there is one
  std::optional<Drafter> drafter_;
  std::optional<DraftVocabulary> vocabulary_;
  DecodeResult result_;

  TokenId last_ = 0;             // known, not yet in the trunk; stands at session_.length()
  int last_row_ = 0;             // of the last prompt chunk
  int planned_ = 0;              // drafts planned for the coming window
  std::vector<TokenId> drafts_;  // of the running window
  std::vector<float> confidences_;
  std::vector<TokenId> choices_;
  std::vector<TokenId> forced_;
};

}  // namespace

std::string_view stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::kLength:
      return "length";
    case StopReason::kEndOfGeneration:
      return "end_of_generation";
    case StopReason::kContextFull:
      return "context_full";
    case StopReason::kInterrupted:
      return "interrupted";
    case StopReason::kCallback:
      return "callback";
  }
  FT_CHECK(false);
  return {};
}

bool forced_coin(uint64_t seed, int64_t position, double p) {
  uint64_t x = seed ^ (static_cast<uint64_t>(position) * 0x9e3779b97f4a7c15ull);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53 < p;
}

void check_mtp(const Model& model, int mtp) {
  if (mtp < 0 || mtp > kMaxDraft)
    throw UsageError(fmt::format("--mtp {}: 0 to {} drafts are possible", mtp, kMaxDraft));
  if (mtp > 0 && !model.has_mtp()) {
    throw InputError(
        fmt::format("{}: --mtp {}: {}; it runs with --mtp 0 only", model.path(), mtp, model.mtp_absence()));
  }
}

DecodeResult decode(Session& session, std::span<const TokenId> prompt, const DecodeOptions& options) {
  check_mtp(session.model(), options.mtp);
  options.sampling.check();
  FT_CHECK(!prompt.empty());
  FT_CHECK(options.mtp == 0 || (session.options().with_mtp && session.options().max_window > options.mtp));
  if (static_cast<int64_t>(prompt.size()) >= session.options().ctx_size) {
    throw InputError(
        fmt::format("the prompt has {} tokens; a context of {} leaves no room for a new one; raise --ctx-size (this "
                    "model: up to {}) "
                    "or shorten the prompt",
                    prompt.size(), session.options().ctx_size, session.model().config().context_length));
  }
  return Generation(session, prompt, options).run();
}

}  // namespace foretoken
