#include "tools/cli/rule_flags.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "tools/cli/prompt.h"

namespace foretoken {

namespace {

// "15+1.5,20-2,7=-inf": an id, then what is added to its logit.
std::vector<std::pair<TokenId, float>> parse_bias(std::string_view text) {
  std::vector<std::pair<TokenId, float>> bias;
  while (!text.empty()) {
    const std::string_view entry = text.substr(0, text.find(','));
    text.remove_prefix(std::min(entry.size() + 1, text.size()));
    TokenId id = 0;
    const auto number = std::from_chars(entry.data(), entry.data() + entry.size(), id);
    std::string_view value = entry.substr(static_cast<size_t>(number.ptr - entry.data()));
    if (value.starts_with('=') || value.starts_with('+')) value.remove_prefix(1);
    float added = 0;
    const auto end = std::from_chars(value.data(), value.data() + value.size(), added);
    if (number.ec != std::errc() || value.empty() || end.ec != std::errc() || end.ptr != value.data() + value.size())
      throw UsageError(
          fmt::format("--logit-bias: \"{}\" is no ID+X, ID-X or ID=X, as 15+1.5 or 15=-inf", printable(entry)));
    bias.emplace_back(id, added);
  }
  return bias;
}

}  // namespace

void RuleFlags::add_to(CommandLine& line) {
  line.section("What the text may be");
  line.add_text("grammar", &grammar, "GBNF", "only texts of this grammar");
  line.add_text("grammar-file", &grammar_path, "FILE", "the same from a file");
  line.add_text("json-schema", &schema, "JSON", "only JSON that this schema allows; @FILE: from a file");
  line.add_text("logit-bias", &bias, "LIST", "add to logits: ID+X, ID-X or ID=X, separated by commas; =-inf: never");
  line.add_float("repeat-penalty", &rules.repeat_penalty, 1e-3, 1e3, "X", "divide the logits of recent tokens; 1: off");
  line.add_float("frequency-penalty", &rules.frequency_penalty, -1e3, 1e3, "X",
                 "take off for each time a token came; 0: off");
  line.add_float("presence-penalty", &rules.presence_penalty, -1e3, 1e3, "X", "take off once if a token came; 0: off");
  line.add_int("repeat-last-n", &rules.repeat_last_n, -1, INT32_MAX, "N",
               "tokens that count as recent; 0: none, -1: all");
}

void RuleFlags::resolve(const CommandLine& line) const {
  std::string first;
  for (const char* flag : {"grammar", "grammar-file", "json-schema"}) {
    if (!line.given(flag)) continue;
    if (!first.empty()) throw UsageError(fmt::format("{} and {}: give one grammar", first, line.typed(flag)));
    first = line.typed(flag);
  }
}

LogitRules RuleFlags::make(const Model& model) const {
  LogitRules made = rules;
  made.bias = parse_bias(bias);
  made.check(model.config().vocab_size);
  std::shared_ptr<const Grammar> compiled;
  if (!schema.empty()) {
    const std::string text = schema.starts_with('@') ? read_file(schema.substr(1)) : schema;
    const auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) throw InputError("--json-schema: it is no JSON");
    compiled = std::make_shared<const Grammar>(Grammar::from_json_schema(json));
  } else if (!grammar.empty() || !grammar_path.empty()) {
    compiled =
        std::make_shared<const Grammar>(Grammar::parse(grammar_path.empty() ? grammar : read_file(grammar_path)));
  }
  if (compiled) made.grammar = std::make_shared<GrammarMatcher>(compiled, TokenTrie::build(model.tokenizer()));
  return made;
}

}  // namespace foretoken
