#pragma once

#include <memory>
#include <mutex>

#include "engine/logit_rules.h"
#include "tools/serve/fields.h"

namespace foretoken {

/// The vocabulary's tree for grammars, made when the first request needs it (half a second for 250,000 tokens). Any thread.
class SharedTrie {
 public:
  [[nodiscard]] std::shared_ptr<const TokenTrie> get(const Tokenizer& tokenizer);

 private:
  std::mutex mutex_;
  std::shared_ptr<const TokenTrie> tree_;
};

/// What a request asks of the choice of its tokens: logit_bias, repeat_penalty, repeat_last_n, presence_penalty,
/// frequency_penalty, and one of grammar (GBNF), json_schema, response_format. Throws ApiError (400) that names the field
/// and, of a schema, what is not supported.
[[nodiscard]] LogitRules parse_rules(const Fields& fields, const Tokenizer& tokenizer, SharedTrie& trie);

}  // namespace foretoken
