#pragma once

#include <string>

#include "engine/logit_rules.h"
#include "engine/model/model.h"
#include "tools/cli/command_line.h"

namespace foretoken {

/// What of the logits is changed before the choice: --grammar, --grammar-file, --json-schema, --logit-bias and the
/// penalties.
struct RuleFlags {
  std::string grammar, grammar_path, schema, bias;
  LogitRules rules;  // the penalties

  void add_to(CommandLine& line);
  /// REQUIRES: line.parse() was called. Throws UsageError if two grammars were given.
  void resolve(const CommandLine& line) const;
  /// The rules over this model's vocabulary. Throws InputError for a grammar or schema that is wrong, UsageError for a
  /// bias that is.
  [[nodiscard]] LogitRules make(const Model& model) const;
};

}  // namespace foretoken
