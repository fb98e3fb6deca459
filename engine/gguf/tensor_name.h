#pragma once

#include <string_view>
#include <utility>

namespace foretoken {

/// "blk.12.attn_q.weight" -> 12 and "attn_q.weight"; -1 and the whole name for the others.
[[nodiscard]] std::pair<int, std::string_view> split_tensor_name(std::string_view name);

}  // namespace foretoken
