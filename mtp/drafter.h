#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"

namespace foretoken {

/// The drafts of one sequence's coming window, as they grow.
struct DraftWindow {
  Sequence* sequence = nullptr;
  const SamplingOptions* sampling = nullptr;
  int64_t position = 0;            // of the first draft
  std::vector<TokenId> drafts;     // at positions [position, position + drafts.size())
  std::vector<float> confidences;  // [drafts.size()] how sure the drafter is of each
};

/// Tokens of one sequence that have become known, in order of their positions.
struct KnownTokens {
  Sequence* sequence = nullptr;
  const SamplingOptions* sampling = nullptr;
  std::span<const TokenId> ids;
  /// hidden[i] [hidden_dim]: the trunk's at the position before ids[i], zeros before the first token. Empty where
  /// needs_hidden() is false.
  std::span<const float* const> hidden;
  /// Drafts are wanted behind the last of them in the next step.
  bool drafts_next = false;
  /// They must not wait: somebody else goes on from what the drafter has computed.
  bool at_once = false;
};

/// What drafting took, as far as passes of a model were run for it.
struct DraftTimes {
  double follow_ms = 0;      // taking in known tokens
  int follow_sequences = 0;  // that drafts are wanted of
  double first_ms = 0;       // making their first drafts
  double step_ms = 0;        // a further draft
  int step_sequences = 0;    // of so many sequences
};

/// Proposes tokens for any number of sequences. A sequence is known by its slot in the engine; what a drafter keeps of
/// it lasts from its first known token to leave().
class Drafter {
 public:
  virtual ~Drafter() = default;

  /// follow() has to be given the trunk's hidden rows.
  [[nodiscard]] virtual bool needs_hidden() const { return false; }

  /// These tokens are known now. Several sequences may be in one call, each once.
  virtual DraftTimes follow(std::span<const KnownTokens> known) = 0;

  /// There will be a first draft in the sequence's next window, as far as is known after its last follow().
  [[nodiscard]] virtual bool offers(const Sequence& sequence) const {
    static_cast<void>(sequence);
    return true;
  }

  /// Known tokens of the sequence that a first draft would have to wait for, because they were not computed yet.
  [[nodiscard]] virtual int waiting(const Sequence& sequence) const {
    static_cast<void>(sequence);
    return 0;
  }

  /// Makes one more draft for each of these windows; a window that it has nothing to offer for stays as it is.
  /// REQUIRES: drafts_next was set in each sequence's last follow().
  virtual DraftTimes extend(std::span<DraftWindow* const> windows) = 0;

  /// What was not finite in what it computed for this sequence, if anything was: it drafts no more for it.
  [[nodiscard]] virtual const std::optional<std::string>& fault(const Sequence& sequence) const {
    static const std::optional<std::string> none;
    static_cast<void>(sequence);
    return none;
  }

  /// The last draft of the window was given another id by somebody else.
  virtual void replaced_last(const DraftWindow& window) { static_cast<void>(window); }

  /// Forgets the sequence.
  virtual void leave(const Sequence& sequence) = 0;

  /// Positions of the sequence, from the first on, whose memory in the engine it does not write to any more: copies may
  /// share it.
  [[nodiscard]] virtual int64_t settled_positions(const Sequence& sequence) const { return sequence.length(); }

  /// What it keeps of a sequence at a commit point, appended to `to`; restore() of a drafter of the same kind takes it
  /// back from the front of `from`. Throws InputError if it cannot be.
  virtual void save(const Sequence& sequence, std::vector<std::byte>& to) const = 0;
  virtual void restore(const Sequence& sequence, std::span<const std::byte>& from) = 0;
  /// `to` becomes what `from` is.
  virtual void copy(const Sequence& from, const Sequence& to) = 0;
};

}  // namespace foretoken
