#include "engine/logit_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/math.h"

namespace foretoken {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

void LogitRules::check(int64_t vocab_size) const {
  const auto refuse = [](const char* flag, auto value, const char* range) {
    throw UsageError(fmt::format("{} {}: out of range; it takes {}", flag, value, range));
  };
  if (!(repeat_penalty > 0) || !std::isfinite(repeat_penalty))
    refuse("--repeat-penalty", repeat_penalty, "a finite number above 0 (1: off)");
  if (!std::isfinite(frequency_penalty)) refuse("--frequency-penalty", frequency_penalty, "a finite number (0: off)");
  if (!std::isfinite(presence_penalty)) refuse("--presence-penalty", presence_penalty, "a finite number (0: off)");
  if (repeat_last_n < -1) refuse("--repeat-last-n", repeat_last_n, "-1 (the whole text) or more");
  std::vector<TokenId> ids;
  for (const auto& [id, value] : bias) {
    if (id < 0 || id >= vocab_size) refuse("--logit-bias: token", id, "an id of the vocabulary");
    if (std::isnan(value) || value == kInfinity) refuse("--logit-bias: value", value, "a number, or -inf for never");
    ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  if (const auto twice = std::adjacent_find(ids.begin(), ids.end()); twice != ids.end())
    throw UsageError(fmt::format("--logit-bias: token {} is there twice", *twice));
}

RuledChoice::RuledChoice(const LogitRules& rules, std::span<const TokenId> prompt)
    : rules_(rules), text_(prompt.begin(), prompt.end()) {
  if (rules.penalises()) {
    const size_t begin =
        rules.repeat_last_n < 0 ? 0 : text_.size() - std::min(text_.size(), static_cast<size_t>(rules.repeat_last_n));
    for (size_t i = begin; i < text_.size(); ++i) ++counts_[text_[i]];
  }
  if (rules.grammar) states_.push_back(rules.grammar->start());
}

void RuledChoice::push(TokenId id) {
  if (rules_.grammar) {
    const GrammarMatcher::State next = rules_.grammar->accept(states_.back(), id);
    if (next == GrammarMatcher::kDead) throw InputError(fmt::format("grammar: token {} does not go on with it", id));
    states_.push_back(next);
  }
  text_.push_back(id);
  ++num_new_;
  if (!rules_.penalises()) return;
  ++counts_[id];
  const auto window = static_cast<size_t>(rules_.repeat_last_n);
  if (rules_.repeat_last_n >= 0 && text_.size() > window) {
    const auto left = counts_.find(text_[text_.size() - 1 - window]);
    if (--left->second == 0) counts_.erase(left);
  }
}

void RuledChoice::pop() {
  FT_CHECK(num_new_ > 0);
  const TokenId id = text_.back();
  if (rules_.penalises()) {
    const auto window = static_cast<size_t>(rules_.repeat_last_n);
    if (rules_.repeat_last_n >= 0 && text_.size() > window) ++counts_[text_[text_.size() - 1 - window]];
    const auto gone = counts_.find(id);
    if (--gone->second == 0) counts_.erase(gone);
  }
  text_.pop_back();
  --num_new_;
  if (rules_.grammar) states_.pop_back();
}

bool RuledChoice::grammar_allows(TokenId id) {
  return !rules_.grammar || rules_.grammar->accept(states_.back(), id) != GrammarMatcher::kDead;
}

TokenId RuledChoice::choose(Isa isa, const float* logits, int64_t vocab_size, const SamplingOptions& options,
                            int64_t position) {
  static thread_local std::vector<float> changed;
  changed.assign(logits, logits + vocab_size);
  for (const auto& [id, value] : rules_.bias) changed[id] += value;
  for (const auto& [id, count] : counts_) {
    float& logit = changed[id];
    logit = logit > 0 ? logit / rules_.repeat_penalty : logit * rules_.repeat_penalty;
    logit -= static_cast<float>(count) * rules_.frequency_penalty + rules_.presence_penalty;
  }
  if (rules_.grammar) {
    const std::span<const uint64_t> mask = rules_.grammar->mask(states_.back());
    uint64_t any = 0;
    for (size_t word = 0; word < mask.size(); ++word) {
      any |= mask[word];
      if (mask[word] == ~uint64_t{0}) continue;
      const size_t end = std::min((word + 1) * 64, changed.size());
      for (size_t id = word * 64; id < end; ++id) {
        if ((mask[word] >> (id % 64) & 1) == 0) changed[id] = -kInfinity;
      }
    }
    if (any == 0) throw InputError("grammar: no token of the vocabulary goes on with it");
    // Where the bias forbids all that the grammar allows, the grammar holds.
    const TokenId chosen = choose_token(isa, changed.data(), vocab_size, options, position);
    if ((mask[static_cast<size_t>(chosen) / 64] >> (chosen % 64) & 1) != 0) return chosen;
    for (size_t word = 0; word < mask.size(); ++word) {
      if (mask[word] != 0) return static_cast<TokenId>(word * 64 + static_cast<size_t>(__builtin_ctzll(mask[word])));
    }
  }
  return choose_token(isa, changed.data(), vocab_size, options, position);
}

std::vector<TokenProbability> top_log_probabilities(const float* logits, int64_t vocab_size, int n, TokenId chosen) {
  const auto size = static_cast<size_t>(vocab_size);
  std::vector<TokenId> order(size);
  for (size_t i = 0; i < size; ++i) order[i] = static_cast<TokenId>(i);
  const auto key = [&](TokenId id) {
    const float x = logits[id];
    return std::isnan(x) ? -kInfinity : x;
  };
  const size_t count = std::min(size, static_cast<size_t>(std::max(n, 0)));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(count, 1)), order.end(),
                    [&](TokenId a, TokenId b) { return key(a) > key(b) || (key(a) == key(b) && a < b); });
  // In double and in the order of ids: the same sum on every machine.
  const double largest = key(order[0]);
  double sum = 0;
  for (size_t i = 0; i < size; ++i)
    sum += static_cast<double>(math::exp(static_cast<float>(key(static_cast<TokenId>(i)) - largest)));
  const double log_sum = largest + std::log(sum);
  std::vector<TokenProbability> out;
  for (size_t i = 0; i < count; ++i) out.push_back({order[i], static_cast<float>(key(order[i]) - log_sum)});
  const auto is_chosen = [&](const TokenProbability& p) { return p.id == chosen; };
  if (chosen >= 0 && chosen < vocab_size && std::none_of(out.begin(), out.end(), is_chosen))
    out.push_back({chosen, static_cast<float>(key(chosen) - log_sum)});
  return out;
}

}  // namespace foretoken
