#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/sampler.h"
#include "engine/text/grammar/matcher.h"
#include "kernels/base/isa.h"

namespace foretoken {

/// What is done to the logits of a position before the choice, in this order: bias, penalties, grammar. All of it is a
/// function of the logits and the tokens before the position, so the choice remains one of (logits, seed, position, text
/// before), and a text is the same for every k and in any company.
struct LogitRules {
  /// Added to a token's logit; -infinity bans it. Each token once.
  std::vector<std::pair<TokenId, float>> bias;
  /// Over the tokens among the last repeat_last_n (prompt and new ones; 0: none, -1: all): a positive logit is divided by
  /// repeat_penalty, another multiplied; then count * frequency_penalty + presence_penalty is taken off.
  float repeat_penalty = 1.0f, frequency_penalty = 0.0f, presence_penalty = 0.0f;
  int64_t repeat_last_n = 64;
  /// Tokens that do not go on with it get -infinity; it begins with the first new token. nullptr: none. It is moved on by
  /// the texts that share it, all of them on one thread.
  std::shared_ptr<GrammarMatcher> grammar;

  [[nodiscard]] bool penalises() const {
    return repeat_last_n != 0 && (repeat_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f);
  }
  [[nodiscard]] bool any() const { return !bias.empty() || penalises() || grammar != nullptr; }
  /// Throws UsageError for a value outside its range: repeat_penalty > 0, finite penalties, repeat_last_n >= -1, a bias
  /// that is a number, tokens in the vocabulary and none twice.
  void check(int64_t vocab_size) const;
};

/// The choices along one text under its rules.
class RuledChoice {
 public:
  /// `rules` must stay. The text begins with `prompt`.
  RuledChoice(const LogitRules& rules, std::span<const TokenId> prompt);

  /// The text has one new token more, or one less again. Throws InputError if the grammar does not allow the token.
  void push(TokenId id);
  void pop();
  /// New tokens pushed.
  [[nodiscard]] size_t num_new() const { return num_new_; }

  /// The choice behind the text as it is; as choose_token() over the changed logits. Throws InputError if the grammar
  /// leaves no token, or needs too much memory.
  [[nodiscard]] TokenId choose(Isa isa, const float* logits, int64_t vocab_size, const SamplingOptions& options,
                               int64_t position);
  /// The grammar is at its end: nothing but an end of the text can follow.
  [[nodiscard]] bool grammar_allows(TokenId id);

 private:
  [[nodiscard]] bool in_window(size_t index) const;

  const LogitRules& rules_;
  std::vector<TokenId> text_;
  size_t num_new_ = 0;
  std::unordered_map<TokenId, int64_t> counts_;  // among the last repeat_last_n
  std::vector<GrammarMatcher::State> states_;    // [num_new + 1]
};

/// A token and the logarithm of its probability (natural), softmax over all logits as the model gave them.
struct TokenProbability {
  TokenId id = 0;
  float log_probability = 0;
};
/// The n most probable tokens, the lower id of equals first, and `chosen` behind them if it is not among them.
[[nodiscard]] std::vector<TokenProbability> top_log_probabilities(const float* logits, int64_t vocab_size, int n,
                                                                  TokenId chosen = -1);

}  // namespace foretoken
