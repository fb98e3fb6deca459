#include "engine/gguf/tensor_name.h"

#include <charconv>
#include <system_error>

namespace foretoken {

std::pair<int, std::string_view> split_tensor_name(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return {-1, name};
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return {-1, name};
  return {layer, name.substr(static_cast<size_t>(end + 1 - name.data()))};
}

}  // namespace foretoken
