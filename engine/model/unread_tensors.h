#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/model/model_config.h"

namespace foretoken {

/// What check_unread_tensors() would throw, for each such tensor.
[[nodiscard]] std::vector<std::string> find_unread_tensors(const GgufFile& file, const ModelConfig& config,
                                                           const std::set<std::string_view, std::less<>>& read);

/// Throws InputError for a tensor that the model as declared does not read and whose absence would change the text:
/// the line names it and says what it does. Accepted are tensors of other modalities, tensors that change drafts alone,
/// and values that change nothing (a scale of 1, a bias of 0).
void check_unread_tensors(const GgufFile& file, const ModelConfig& config,
                          const std::set<std::string_view, std::less<>>& read);

}  // namespace foretoken
