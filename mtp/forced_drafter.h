#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "mtp/drafter.h"

namespace foretoken {

/// A text whose continuation is known: drafts are taken from it, each right with probability `acceptance`, else a wrong
/// token. What a benchmark separates the engine's cost from the drafter's luck by. The confidence in such a draft is
/// `acceptance`: what a drafter knows of its own drafts says nothing about these.
struct ForcedText {
  std::span<const TokenId>
      continuation;  // stands at [first_position, ...); where it ends, drafts are the drafter's own
  int64_t first_position = 0;
  double acceptance = 1.0;
  uint64_t seed =
      0;  // of the coins, which are keyed by position: the same drafts are right in every arm of a benchmark

  [[nodiscard]] bool reaches(int64_t position) const {
    return position >= first_position && position - first_position < static_cast<int64_t>(continuation.size());
  }
  /// What a draft at this position is made to be.
  [[nodiscard]] std::optional<TokenId> draft(int64_t position, int64_t vocab_size) const;
};

/// True with probability `p`, keyed by (seed, position): whether a forced draft is right.
[[nodiscard]] bool forced_coin(uint64_t seed, int64_t position, double p);

/// Puts forced drafts in the place of another drafter's, which does all its work nevertheless.
class ForcedDrafter final : public Drafter {
 public:
  ForcedDrafter(Drafter& drafter, const Engine& engine);

  /// From now on, until it leaves, the drafts of this sequence are taken from `text`.
  void force(const Sequence& sequence, const ForcedText& text) { texts_[sequence.state().slot] = text; }

  bool needs_hidden() const override { return drafter_.needs_hidden(); }
  DraftTimes follow(std::span<const KnownTokens> known) override { return drafter_.follow(known); }
  bool offers(const Sequence& sequence) const override { return drafter_.offers(sequence); }
  int waiting(const Sequence& sequence) const override { return drafter_.waiting(sequence); }
  DraftTimes extend(std::span<DraftWindow* const> windows) override;
  const std::optional<std::string>& fault(const Sequence& sequence) const override { return drafter_.fault(sequence); }
  void replaced_last(const DraftWindow& window) override { drafter_.replaced_last(window); }
  void leave(const Sequence& sequence) override;
  int64_t settled_positions(const Sequence& sequence) const override { return drafter_.settled_positions(sequence); }
  void save(const Sequence& sequence, std::vector<std::byte>& to) const override { drafter_.save(sequence, to); }
  void restore(const Sequence& sequence, std::span<const std::byte>& from) override {
    drafter_.restore(sequence, from);
  }
  void copy(const Sequence& from, const Sequence& to) override { drafter_.copy(from, to); }

 private:
  Drafter& drafter_;
  const int64_t vocab_size_;
  std::vector<std::optional<ForcedText>> texts_;  // [parallel]
};

}  // namespace foretoken
