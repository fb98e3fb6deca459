#pragma once

#include <string>
#include <string_view>

namespace foretoken {

/// What to do here instead of a flag that people know from llama.cpp's programs: "--kv-type f16|f32 sets the type of
/// keys and values together". Empty for a flag that is not among them. `flag` is as it was typed, a value behind '='
/// or digits glued to it are left aside; `command` is the command it was typed for.
[[nodiscard]] std::string_view answer_to_habit(std::string_view flag, std::string_view command);

}  // namespace foretoken
