#pragma once

#include <memory>
#include <vector>

#include "mtp/drafter.h"

namespace foretoken {

/// Drafters in order of preference: each window is drafted by the first of them that has something to offer for it; the
/// others only take in what is known.
class ChainDrafter final : public Drafter {
 public:
  /// REQUIRES: at least one drafter.
  ChainDrafter(const Engine& engine, std::vector<std::unique_ptr<Drafter>> drafters);

  bool needs_hidden() const override;
  DraftTimes follow(std::span<const KnownTokens> known) override;
  bool offers(const Sequence& sequence) const override;
  DraftTimes extend(std::span<DraftWindow* const> windows) override;
  const std::optional<std::string>& fault(const Sequence& sequence) const override;
  void replaced_last(const DraftWindow& window) override;
  void leave(const Sequence& sequence) override;
  void save(const Sequence& sequence, std::vector<std::byte>& to) const override;
  void restore(const Sequence& sequence, std::span<const std::byte>& from) override;
  void copy(const Sequence& from, const Sequence& to) override;

 private:
  [[nodiscard]] size_t& source(const Sequence& sequence) { return sources_[sequence.state().slot]; }

  const std::vector<std::unique_ptr<Drafter>> drafters_;
  std::vector<size_t> sources_;  // [parallel] who drafts the coming window
  std::vector<KnownTokens> known_;
  std::vector<DraftWindow*> windows_;
};

}  // namespace foretoken
