#include "tools/serve/rules.h"

#include <fmt/format.h>

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
  return value.get<float>();
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

// Set where one of the fields is: which one, and the grammar.
struct Source {
  std::string field;
  std::shared_ptr<const Grammar> grammar;
};

class Grammars {
 public:
  explicit Grammars(const Fields& fields) : fields_(fields) {}

  template <class Make>
  void add(const std::string& field, const Make& make) {
    if (source_.grammar != nullptr)
      fields_.fail(field, fmt::format("\"{}\" is given too; one of them says what the text may be", source_.field));
    try {
      source_ = {field, std::make_shared<const Grammar>(make())};
    } catch (const InputError& error) {
      fields_.fail(field, error.what());
    }
  }
  [[nodiscard]] std::shared_ptr<const Grammar> grammar() const { return source_.grammar; }

 private:
  const Fields& fields_;
  Source source_;
};

std::shared_ptr<const Grammar> parse_grammar(const Fields& fields) {
  Grammars grammars(fields);
  if (const std::optional<std::string> text = fields.text("grammar"); text && !text->empty())
    grammars.add("grammar", [&] { return Grammar::parse(*text); });
  if (const Json* schema = fields.find("json_schema"); schema != nullptr && !(schema->is_object() && schema->empty()))
    grammars.add("json_schema", [&] { return Grammar::from_json_schema(*schema); });
  const Json* format = fields.object("response_format");
  if (format == nullptr) return grammars.grammar();
  const Fields inner(*format, "response_format");
  const std::string type = inner.text("type").value_or("text");
  if (type == "json_object") {
    const Json* schema = inner.object("schema");  // llama.cpp's addition
    grammars.add("response_format", [&] {
      return Grammar::from_json_schema(schema != nullptr ? *schema : Json{{"type", "object"}});
    });
  } else if (type == "json_schema") {
    const Json* named = inner.object("json_schema");
    if (named == nullptr) inner.fail("json_schema", "is missing");
    const Json* schema = Fields(*named, "response_format.json_schema").find("schema");
    if (schema == nullptr) inner.fail("json_schema", "has no \"schema\"");
    grammars.add("response_format", [&] { return Grammar::from_json_schema(*schema); });
  } else if (type != "text") {
    inner.fail("type", fmt::format("\"{}\" is none of text, json_object, json_schema", type));
  }
  return grammars.grammar();
}

}  // namespace

std::shared_ptr<const TokenTrie> SharedTrie::get(const Tokenizer& tokenizer) {
  const std::lock_guard lock(mutex_);
  if (tree_ == nullptr) tree_ = TokenTrie::build(tokenizer);
  return tree_;
}

LogitRules parse_rules(const Fields& fields, const Tokenizer& tokenizer, SharedTrie& trie) {
  LogitRules rules;
  if (const auto value = fields.number("repeat_penalty", 1e-3, 1e3)) rules.repeat_penalty = static_cast<float>(*value);
  if (const auto value = fields.number("presence_penalty", -1e3, 1e3))
    rules.presence_penalty = static_cast<float>(*value);
  if (const auto value = fields.number("frequency_penalty", -1e3, 1e3))
    rules.frequency_penalty = static_cast<float>(*value);
  if (const auto value = fields.integer("repeat_last_n", -1, INT32_MAX)) rules.repeat_last_n = *value;
  parse_bias(fields, tokenizer, rules);
  if (const std::shared_ptr<const Grammar> grammar = parse_grammar(fields))
    rules.grammar = std::make_shared<GrammarMatcher>(grammar, trie.get(tokenizer));
  return rules;
}

}  // namespace foretoken
