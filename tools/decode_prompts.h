#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/model.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"

namespace foretoken {

/// What decode --prompts asks for.
struct PromptsRun {
  std::vector<std::vector<TokenId>> prompts;
  LogitRules rules;
  int64_t max_new_tokens = 128;
  bool ignore_eos = false;
  bool print_ids = false;
};

/// Continues all prompts, flags.parallel at a time. The texts go to standard output in the order of the prompts, a
/// blank line between them; with --json FILE one object a line and prompt, as they end. Returns the exit code.
[[nodiscard]] int decode_prompts(const Model& model, const ModelFlags& flags, const PromptsRun& run, OutputFile& json);

}  // namespace foretoken
