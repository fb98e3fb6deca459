#include "tools/serve/stop_matcher.h"

#include <algorithm>

namespace foretoken {

namespace {

std::vector<std::string> without_empty(std::vector<std::string> stops) {
  std::erase_if(stops, [](const std::string& stop) { return stop.empty(); });
  return stops;
}

/// Bytes at the end of `text` that `stop` begins with, fewer than all of it.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (text.ends_with(stop.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(without_empty(std::move(stops))) {}

std::string StopMatcher::push(std::string_view piece) {
  if (!found_.empty()) return {};
  held_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos || at > first || (at == first && stop.size() <= found_.size())) continue;
    first = at;
    found_ = stop;
  }
  size_t free = held_.size();
  if (first != std::string::npos) {
    free = first;
  } else {
    for (const std::string& stop : stops_) free = std::min(free, held_.size() - overlap(held_, stop));
  }
  std::string out = held_.substr(0, free);
  held_.erase(0, free);
  return out;
}

std::string StopMatcher::finish() {
  std::string rest = found_.empty() ? std::move(held_) : std::string();
  held_.clear();
  return rest;
}

}  // namespace foretoken
