#include "mtp/forced_drafter.h"

namespace foretoken {

bool forced_coin(uint64_t seed, int64_t position, double p) {
  uint64_t x = seed ^ (static_cast<uint64_t>(position) * 0x9e3779b97f4a7c15ull);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53 < p;
}

std::optional<TokenId> ForcedText::draft(int64_t position, int64_t vocab_size) const {
  if (!reaches(position)) return std::nullopt;
  const TokenId right = continuation[position - first_position];
  return forced_coin(seed, position, acceptance) ? right : static_cast<TokenId>((right + 1) % vocab_size);
}

ForcedDrafter::ForcedDrafter(Drafter& drafter, const Engine& engine)
    : drafter_(drafter),
      vocab_size_(engine.model().config().vocab_size),
      texts_(static_cast<size_t>(engine.options().parallel)) {}

DraftTimes ForcedDrafter::extend(std::span<DraftWindow* const> windows) {
  const DraftTimes times = drafter_.extend(windows);
  for (DraftWindow* window : windows) {
    const std::optional<ForcedText>& text = texts_[window->sequence->state().slot];
    if (!text || window->drafts.empty()) continue;
    const auto last = static_cast<int64_t>(window->drafts.size()) - 1;
    const std::optional<TokenId> forced = text->draft(window->position + last, vocab_size_);
    if (!forced) continue;
    window->drafts.back() = *forced;
    window->confidences.back() = static_cast<float>(text->acceptance);
    drafter_.replaced_last(*window);
  }
  return times;
}

void ForcedDrafter::leave(const Sequence& sequence) {
  texts_[sequence.state().slot].reset();
  drafter_.leave(sequence);
}

}  // namespace foretoken
