#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "engine/logit_rules.h"
#include "tools/serve/fields.h"

namespace foretoken {

/// The vocabulary's tree for grammars, made when the first request needs it (half a second for 250,000 tokens). Any thread.
class SharedTrie {
 public:
  /// marks: as TokenTrie::build's; the same at each call.
  [[nodiscard]] std::shared_ptr<const TokenTrie> get(const Tokenizer& tokenizer, std::span<const TokenId> marks);

 private:
  std::mutex mutex_;
  std::shared_ptr<const TokenTrie> tree_, tree_with_marks_;
};

/// What a request asks of the choice of its tokens, but for grammars: logit_bias, repeat_penalty, repeat_last_n,
/// presence_penalty, frequency_penalty. Throws ApiError (400) that names the field.
[[nodiscard]] LogitRules parse_rules(const Fields& fields, const Tokenizer& tokenizer);

/// A grammar that a request brings.
struct RequestGrammar {
  std::string field;  // grammar, json_schema, response_format or text.format
  std::string gbnf;
  [[nodiscard]] bool is_schema() const { return field != "grammar"; }
};
/// The one of the fields that is there. Throws ApiError (400) that names the field and, of a schema, what is not
/// supported.
[[nodiscard]] std::optional<RequestGrammar> parse_request_grammar(const Fields& fields);

/// The grammar over a vocabulary. Throws ApiError (400) that names the grammar's field.
[[nodiscard]] std::shared_ptr<GrammarMatcher> make_matcher(const Fields& fields, const RequestGrammar& grammar,
                                                           std::shared_ptr<const TokenTrie> trie);

}  // namespace foretoken
