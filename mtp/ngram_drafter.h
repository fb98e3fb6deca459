#pragma once

#include <vector>

#include "mtp/drafter.h"
#include "mtp/ngram_index.h"

namespace foretoken {

/// Drafts from the sequence's own text: what stood behind its end where that end stood before (prompt look-up). Needs
/// nothing of the model, so it serves every family; costs no pass. Where the end is new, it offers nothing.
///
/// A window that already has drafts, of this drafter or of another, is continued behind them.
class NgramDrafter final : public Drafter {
 public:
  /// All memory is taken here: size_bytes().
  explicit NgramDrafter(const Engine& engine);
  [[nodiscard]] static size_t size_bytes(const SessionOptions& options);

  DraftTimes follow(std::span<const KnownTokens> known) override;
  bool offers(const Sequence& sequence) const override { return index(sequence).find().length > 0; }
  DraftTimes extend(std::span<DraftWindow* const> windows) override;
  void leave(const Sequence& sequence) override { text_of(sequence).rewind(0); }
  void save(const Sequence& sequence, std::vector<std::byte>& to) const override;
  void restore(const Sequence& sequence, std::span<const std::byte>& from) override;
  void copy(const Sequence& from, const Sequence& to) override;

  /// The sequence's text as far as it is known.
  [[nodiscard]] const NgramIndex& index(const Sequence& sequence) const { return indexes_[sequence.state().slot]; }

 private:
  [[nodiscard]] NgramIndex& text_of(const Sequence& sequence) { return indexes_[sequence.state().slot]; }

  const int64_t vocab_size_;
  const int64_t max_tokens_;
  std::vector<NgramIndex> indexes_;  // [parallel]
};

}  // namespace foretoken
