#include "tools/serve/rules.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "kernels/base/error.h"
#include "tools/serve/api_error.h"

namespace foretoken {

namespace {

constexpr size_t kMostBiased = 4096;

// A number, or false: never.
float bias_of(const Fields& fields, const Json& value) {
  if (value.is_boolean() && !value.get<bool>()) return -std::numeric_limits<float>::infinity();
  if (!value.is_number()) fields.fail("logit_bias", "expected a number for each token, or false to ban it");
  const double bias = value.get<double>();
  if (!(std::abs(bias) <= 1e9)) fields.fail("logit_bias", fmt::format("{} is outside -1e9 to 1e9", to_text(value)));
  return static_cast<float>(bias);
}

// [[token or text, bias], ...], {"token or text": bias, ...} or [{"token": ..., "bias": ...}, ...]. Of a text, each token.
void parse_bias(const Fields& fields, const Tokenizer& tokenizer, LogitRules& rules) {
  const Json* biases = fields.find("logit_bias");
  if (biases == nullptr || biases->empty()) return;
  if (biases->size() > kMostBiased) fields.fail("logit_bias", fmt::format("more than {} tokens", kMostBiased));
  const auto set = [&](TokenId id, float bias) {
    for (auto& [known, value] : rules.bias) {
      if (known == id) {
        value = bias;
        return;
      }
    }
    rules.bias.emplace_back(id, bias);
  };
  const auto add = [&](const Json& token, const Json& value) {
    const float bias = bias_of(fields, value);
    if (token.is_number_integer()) {
      const auto id = token.get<int64_t>();
      if (id < 0 || id >= tokenizer.vocab_size())
        fields.fail("logit_bias", fmt::format("{} is outside the vocabulary of {} tokens", id, tokenizer.vocab_size()));
      set(static_cast<TokenId>(id), bias);
    } else if (token.is_string()) {
      for (const TokenId id : tokenizer.encode(token.get<std::string>(), /*parse_special=*/true)) set(id, bias);
    } else {
      fields.fail("logit_bias", "expected a token's id or a text");
    }
  };
  if (biases->is_object()) {
    for (const auto& [name, value] : biases->items()) {
      const bool is_id = !name.empty() && name.size() < 10 && name.find_first_not_of("0123456789") == std::string::npos;
      add(is_id ? Json(std::stoll(name)) : Json(name), value);
    }
  } else if (biases->is_array()) {
    for (const Json& pair : *biases) {
      if (pair.is_object() && pair.contains("token") && pair.contains("bias")) {
        add(pair["token"], pair["bias"]);
      } else if (pair.is_array() && pair.size() == 2) {
        add(pair[0], pair[1]);
      } else {
        fields.fail("logit_bias", "expected pairs of a token and a number");
      }
    }
  } else {
    fields.fail("logit_bias", "expected an object, or an array of pairs");
  }
}

/// Takes one grammar, and refuses a second one.
class GrammarField {
 public:
  explicit GrammarField(const Fields& fields) : fields_(fields) {}

  template <class Make>
  void add(const std::string& field, const Make& make) {
    if (found_)
      fields_.fail(field, fmt::format("\"{}\" is given too; one of them says what the text may be", found_->field));
    try {
      found_ = RequestGrammar{field, make()};
    } catch (const InputError& error) {
      fields_.fail(field, error.what());
    }
  }
  /// {"type": "json_object" or "json_schema"}; the schema's place is what the two APIs differ in.
  void add_format(const std::string& field, const Json& format, const char* schema_in) {
    const Fields inner(format, field);
    const std::string type = inner.text("type").value_or("text");
    if (type == "json_object") {
      const Json* schema = inner.object("schema");  // llama.cpp's addition
      add(field, [&] { return json_schema_to_gbnf(schema != nullptr ? *schema : Json{{"type", "object"}}); });
    } else if (type == "json_schema") {
      const Json* holder = schema_in == nullptr ? &format : inner.object(schema_in);
      if (holder == nullptr) inner.fail(schema_in, "is missing");
      const Json* schema = Fields(*holder, field).find("schema");
      if (schema == nullptr) inner.fail("schema", "is missing");
      add(field, [&] { return json_schema_to_gbnf(*schema); });
    } else if (type != "text") {
      inner.fail("type", fmt::format("\"{}\" is none of text, json_object, json_schema", type));
    }
  }
  [[nodiscard]] std::optional<RequestGrammar> found() const { return found_; }

 private:
  const Fields& fields_;
  std::optional<RequestGrammar> found_;
};

}  // namespace

std::optional<RequestGrammar> parse_request_grammar(const Fields& fields) {
  GrammarField grammar(fields);
  if (const std::optional<std::string> text = fields.text("grammar"); text && !text->empty())
    grammar.add("grammar", [&] { return *text; });
  if (const Json* schema = fields.find("json_schema"); schema != nullptr && !(schema->is_object() && schema->empty()))
    grammar.add("json_schema", [&] { return json_schema_to_gbnf(*schema); });
  if (const Json* format = fields.object("response_format"))
    grammar.add_format("response_format", *format, "json_schema");
  // Responses have the same in another place.
  const Json* text = fields.has("input") ? fields.object("text") : nullptr;
  if (const Json* format = text == nullptr ? nullptr : Fields(*text, "text").object("format"))
    grammar.add_format("text.format", *format, nullptr);
  return grammar.found();
}

std::shared_ptr<GrammarMatcher> make_matcher(const Fields& fields, const RequestGrammar& grammar,
                                             std::shared_ptr<const TokenTrie> trie) {
  try {
    return std::make_shared<GrammarMatcher>(std::make_shared<const Grammar>(Grammar::parse(grammar.gbnf)),
                                            std::move(trie));
  } catch (const InputError& error) {
    fields.fail(grammar.field, error.what());
  }
}

std::shared_ptr<const TokenTrie> SharedTrie::get(const Tokenizer& tokenizer, std::span<const TokenId> marks) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const TokenTrie>& tree = marks.empty() ? tree_ : tree_with_marks_;
  if (tree == nullptr) tree = TokenTrie::build(tokenizer, marks);
  return tree;
}

LogitRules parse_rules(const Fields& fields, const Tokenizer& tokenizer) {
  LogitRules rules;
  if (const auto value = fields.number("repeat_penalty", 1e-3, 1e3)) rules.repeat_penalty = static_cast<float>(*value);
  if (const auto value = fields.number("presence_penalty", -1e3, 1e3))
    rules.presence_penalty = static_cast<float>(*value);
  if (const auto value = fields.number("frequency_penalty", -1e3, 1e3))
    rules.frequency_penalty = static_cast<float>(*value);
  if (const auto value = fields.integer("repeat_last_n", -1, INT32_MAX)) rules.repeat_last_n = *value;
  parse_bias(fields, tokenizer, rules);
  return rules;
}

}  // namespace foretoken
