#include "mtp/mtp_drafter.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/error.h"
#include "mtp/byte_stream.h"
#include "mtp/stopwatch.h"

namespace foretoken {

MtpDrafter::MtpDrafter(Engine& engine)
    : engine_(engine),
      hidden_dim_(static_cast<size_t>(engine.model().config().hidden_dim)),
      states_(static_cast<size_t>(engine.options().parallel)) {
  FT_CHECK(engine.options().with_mtp);
  for (State& s : states_) {
    s.hidden.resize(hidden_dim_);
    s.ids.reserve(kMaxDeferred);
    s.deferred_hidden.resize(kMaxDeferred * hidden_dim_);
  }
  const auto max_rows = static_cast<size_t>(engine.max_rows());
  rows_.reserve(states_.size());
  inputs_.reserve(states_.size());
  outputs_.reserve(states_.size());
  ids_.reserve(max_rows);
  hidden_.reserve(max_rows);
}

size_t MtpDrafter::size_bytes(const ModelConfig& config, const SessionOptions& options) {
  const size_t row_bytes = static_cast<size_t>(config.hidden_dim) * sizeof(float);
  return static_cast<size_t>(options.parallel) * ((1 + kMaxDeferred) * row_bytes + kMaxDeferred * sizeof(TokenId));
}

void MtpDrafter::leave(const Sequence& sequence) {
  State& s = state(sequence);
  s.filled = 0;
  s.num_drafts = 0;
  s.has_first = false;
  s.fault.reset();
  s.ids.clear();
}

void MtpDrafter::defer(const KnownTokens& known) {
  State& s = state(*known.sequence);
  s.has_first = false;
  for (size_t i = 0; i < known.ids.size(); ++i) {
    std::copy_n(known.hidden[i], hidden_dim_, &s.deferred_hidden[s.ids.size() * hidden_dim_]);
    s.ids.push_back(known.ids[i]);
  }
}

// Who drafts next goes through the layer now, deferred tokens first; so does who has no more room to wait. All of them
// share passes, as far as the engine's rows reach.
DraftTimes MtpDrafter::follow(std::span<const KnownTokens> known) {
  DraftTimes times;
  const auto max_rows = static_cast<size_t>(engine_.max_rows());
  size_t used = 0;
  rows_.clear();
  const auto flush = [&] {
    if (!rows_.empty()) run(rows_, times);
    rows_.clear();
    used = 0;
  };
  for (const KnownTokens& tokens : known) {
    State& s = state(*tokens.sequence);
    FT_CHECK_EQ(tokens.ids.size(), tokens.hidden.size());
    s.num_drafts = 0;
    times.follow_sequences += tokens.drafts_next ? 1 : 0;
    const size_t count = s.ids.size() + tokens.ids.size();
    if (!tokens.drafts_next && !tokens.at_once && count <= kMaxDeferred) {
      defer(tokens);
      continue;
    }
    // A sequence with more rows than a pass has left goes on in the next one.
    for (size_t begin = 0; begin < count;) {
      if (used == max_rows) flush();
      const size_t end = std::min(count, begin + max_rows - used);
      rows_.push_back({&tokens, begin, end, tokens.drafts_next && end == count});
      used += end - begin;
      begin = end;
      if (begin < count) flush();
    }
  }
  flush();
  for (const KnownTokens& tokens : known) {
    if (tokens.drafts_next) FT_CHECK(state(*tokens.sequence).has_first);
  }
  return times;
}

void MtpDrafter::run(std::span<const Rows> rows, DraftTimes& times) {
  Stopwatch watch;
  ids_.clear();
  hidden_.clear();
  inputs_.clear();
  outputs_.clear();
  for (const Rows& r : rows) {
    const State& s = state(*r.known->sequence);
    for (size_t i = r.begin; i < r.end; ++i) {
      const bool deferred = i < s.ids.size();
      ids_.push_back(deferred ? s.ids[i] : r.known->ids[i - s.ids.size()]);
      hidden_.push_back(deferred ? &s.deferred_hidden[i * hidden_dim_] : r.known->hidden[i - s.ids.size()]);
    }
  }
  size_t at = 0;
  for (const Rows& r : rows) {
    const size_t count = r.end - r.begin;
    const State& s = state(*r.known->sequence);
    inputs_.push_back({r.known->sequence, s.filled, std::span(ids_).subspan(at, count),
                       std::span(hidden_).subspan(at, count), static_cast<int>(r.with_output ? count - 1 : count)});
    if (r.with_output) outputs_.push_back(static_cast<int32_t>(outputs_.size()));
    at += count;
  }
  engine_.mtp_forward(inputs_);
  for (const Rows& r : rows) {
    State& s = state(*r.known->sequence);
    s.filled += static_cast<int64_t>(r.end - r.begin);
    s.has_first = false;
    if (r.end == s.ids.size() + r.known->ids.size()) s.ids.clear();
  }
  times.follow_ms += watch.lap_ms();
  if (!outputs_.empty()) engine_.mtp_compute_logits(outputs_);
  for (size_t i = 0; i < rows.size(); ++i) look_for_fault(*rows[i].known->sequence, static_cast<int>(i));
  if (outputs_.empty()) return;
  int output = 0;
  for (const Rows& r : rows) {
    if (!r.with_output) continue;
    State& s = state(*r.known->sequence);
    const Engine::DraftChoice choice = engine_.mtp_choose(output, *r.known->sampling, s.filled);
    s.first_draft = choice.id;
    s.first_confidence = choice.confidence;
    std::copy_n(engine_.mtp_hidden(output), hidden_dim_, s.hidden.data());
    s.has_first = true;
    ++output;
  }
  times.first_ms += watch.lap_ms();
}

DraftTimes MtpDrafter::extend(std::span<DraftWindow* const> windows) {
  Stopwatch watch;
  ids_.clear();
  hidden_.clear();
  inputs_.clear();
  outputs_.clear();
  for (DraftWindow* window : windows) {
    State& s = state(*window->sequence);
    if (s.num_drafts == 0) {
      FT_CHECK(s.has_first);
      window->drafts.push_back(s.first_draft);
      window->confidences.push_back(s.first_confidence);
      s.last_draft = s.first_draft;
    } else {
      ids_.push_back(s.last_draft);
      hidden_.push_back(s.hidden.data());
    }
  }
  size_t at = 0;
  for (DraftWindow* window : windows) {
    const State& s = state(*window->sequence);
    if (s.num_drafts == 0) continue;
    outputs_.push_back(static_cast<int32_t>(at));
    inputs_.push_back({window->sequence, s.filled + s.num_drafts - 1, std::span(ids_).subspan(at, 1),
                       std::span(hidden_).subspan(at, 1), 0});
    ++at;
  }
  if (!inputs_.empty()) {
    engine_.mtp_forward(inputs_);
    engine_.mtp_compute_logits(outputs_);
    for (size_t i = 0; i < inputs_.size(); ++i) look_for_fault(*inputs_[i].sequence, static_cast<int>(i));
  }
  int output = 0;
  for (DraftWindow* window : windows) {
    State& s = state(*window->sequence);
    if (s.num_drafts++ == 0) continue;
    if (s.fault) {
      ++output;
      continue;
    }
    const Engine::DraftChoice choice = engine_.mtp_choose(output, *window->sampling, s.filled + s.num_drafts - 1);
    s.last_draft = choice.id;
    window->drafts.push_back(choice.id);
    window->confidences.push_back(choice.confidence);
    std::copy_n(engine_.mtp_hidden(output), hidden_dim_, s.hidden.data());
    ++output;
  }
  DraftTimes times;
  if (output > 0) times.step_ms = watch.lap_ms();
  times.step_sequences = output;
  return times;
}

void MtpDrafter::take_over(const Sequence& sequence, const DeviceCycle::Kept& kept) {
  FT_CHECK(kept.deferred.size() <= kMaxDeferred);
  State& s = state(sequence);
  s.filled = sequence.length() + 1 - static_cast<int64_t>(kept.deferred.size());
  s.num_drafts = 0;
  s.has_first = kept.has_draft;
  s.first_draft = kept.draft;
  s.first_confidence = kept.confidence;
  if (kept.has_draft) s.hidden = kept.draft_hidden;
  s.ids.assign(kept.deferred.begin(), kept.deferred.end());
  std::copy(kept.deferred_hidden.begin(), kept.deferred_hidden.end(), s.deferred_hidden.begin());
}

void MtpDrafter::save(const Sequence& sequence, std::vector<std::byte>& to) const {
  const State& s = state(sequence);
  put(to, s.filled);
  put(to, static_cast<uint8_t>(s.has_first));
  put(to, s.first_draft);
  put(to, s.first_confidence);
  put_all(to, std::span(s.hidden));
  put_all(to, std::span(s.ids));
  put_all(to, std::span(s.deferred_hidden).first(s.ids.size() * hidden_dim_));
}

void MtpDrafter::restore(const Sequence& sequence, std::span<const std::byte>& from) {
  State& s = state(sequence);
  std::vector<float> hidden, deferred;
  std::vector<TokenId> ids;
  take(from, s.filled);
  uint8_t has_first = 0;
  take(from, has_first);
  take(from, s.first_draft);
  take(from, s.first_confidence);
  take_all(from, hidden);
  take_all(from, ids);
  take_all(from, deferred);
  const int64_t vocab_size = engine_.model().config().vocab_size;
  const auto known = [&](TokenId id) { return id >= 0 && id < vocab_size; };
  if (s.filled < 0 || s.filled > sequence.length() + 1 || hidden.size() != hidden_dim_ || ids.size() > kMaxDeferred ||
      deferred.size() != ids.size() * hidden_dim_ || !known(s.first_draft) ||
      !std::all_of(ids.begin(), ids.end(), known)) {
    throw InputError("the saved sequence is damaged: its drafts do not fit its text");
  }
  s.num_drafts = 0;
  s.has_first = has_first != 0;
  s.hidden = hidden;
  s.ids.assign(ids.begin(), ids.end());
  std::copy(deferred.begin(), deferred.end(), s.deferred_hidden.begin());
}

void MtpDrafter::copy(const Sequence& from, const Sequence& to) {
  const State& source = state(from);
  State& s = state(to);
  s.filled = source.filled;
  s.num_drafts = 0;
  s.has_first = source.has_first;
  s.first_draft = source.first_draft;
  s.first_confidence = source.first_confidence;
  s.hidden = source.hidden;
  s.ids.assign(source.ids.begin(), source.ids.end());
  std::copy_n(source.deferred_hidden.begin(), source.ids.size() * hidden_dim_, s.deferred_hidden.begin());
}

}  // namespace foretoken
