#include "mtp/chain_drafter.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken {

ChainDrafter::ChainDrafter(const Engine& engine, std::vector<std::unique_ptr<Drafter>> drafters)
    : drafters_(std::move(drafters)), sources_(static_cast<size_t>(engine.options().parallel), 0) {
  FT_CHECK(!drafters_.empty());
  known_.reserve(sources_.size());
  windows_.reserve(sources_.size());
}

bool ChainDrafter::needs_hidden() const {
  return std::any_of(drafters_.begin(), drafters_.end(), [](const auto& d) { return d->needs_hidden(); });
}

// A drafter whose turn does not come may let the tokens wait.
DraftTimes ChainDrafter::follow(std::span<const KnownTokens> known) {
  known_.assign(known.begin(), known.end());
  DraftTimes times;
  for (size_t d = 0; d < drafters_.size(); ++d) {
    const DraftTimes more = drafters_[d]->follow(known_);
    times.follow_ms += more.follow_ms;
    times.first_ms += more.first_ms;
    // Of who runs no pass for it nothing can be learned.
    if (more.follow_ms > 0) times.follow_sequences += more.follow_sequences;
    for (KnownTokens& tokens : known_) {
      if (!tokens.drafts_next) continue;
      source(*tokens.sequence) = d;
      if (d + 1 < drafters_.size() && drafters_[d]->offers(*tokens.sequence)) tokens.drafts_next = false;
    }
  }
  return times;
}

bool ChainDrafter::offers(const Sequence& sequence) const {
  return std::any_of(drafters_.begin(), drafters_.end(), [&](const auto& d) { return d->offers(sequence); });
}

DraftTimes ChainDrafter::extend(std::span<DraftWindow* const> windows) {
  DraftTimes times;
  for (size_t d = 0; d < drafters_.size(); ++d) {
    windows_.clear();
    for (DraftWindow* window : windows) {
      if (source(*window->sequence) == d) windows_.push_back(window);
    }
    if (windows_.empty()) continue;
    const DraftTimes more = drafters_[d]->extend(windows_);
    times.step_ms += more.step_ms;
    times.step_sequences += more.step_sequences;
  }
  return times;
}

const std::optional<std::string>& ChainDrafter::fault(const Sequence& sequence) const {
  for (const auto& drafter : drafters_) {
    if (drafter->fault(sequence)) return drafter->fault(sequence);
  }
  return drafters_.front()->fault(sequence);
}

void ChainDrafter::replaced_last(const DraftWindow& window) {
  drafters_[source(*window.sequence)]->replaced_last(window);
}

void ChainDrafter::leave(const Sequence& sequence) {
  for (const auto& drafter : drafters_) drafter->leave(sequence);
}

void ChainDrafter::save(const Sequence& sequence, std::vector<std::byte>& to) const {
  for (const auto& drafter : drafters_) drafter->save(sequence, to);
}

void ChainDrafter::restore(const Sequence& sequence, std::span<const std::byte>& from) {
  for (const auto& drafter : drafters_) drafter->restore(sequence, from);
}

void ChainDrafter::copy(const Sequence& from, const Sequence& to) {
  for (const auto& drafter : drafters_) drafter->copy(from, to);
}

}  // namespace foretoken
