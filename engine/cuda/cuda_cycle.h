#pragma once

#include <span>
#include <vector>

#include "engine/cuda/cuda_engine.h"
#include "engine/device_cycle.h"

namespace foretoken::cuda {

/// The cycle in recorded pieces, replayed one behind the other without the host between them. Windows stand in the
/// order of their MTP drafts, the most first, so that whoever is in a step was in all steps before it.
///
///   first[n]      the first draft of n windows, made by the refresh before
///   step[n]       one draft more for n windows: MTP layer, draft head, choice
///   trunk[rows]   the verify pass: the same recording as the host's calls use
///   decide[rows]  head, the target's choices, the longest accepted prefix of each window
///   take_in[rows] the MTP layer's keys and values of the accepted tokens of the windows that drafted
///   next[n]       the rest of the layer for the last of them, and the first drafts of the next windows
///
/// The hidden rows of windows that did not draft are kept (deferred_hidden), their tokens wait here on the host.
class CudaCycle final : public DeviceCycle {
 public:
  explicit CudaCycle(CudaEngine& engine);

  void begin(SequenceState& sequence, const SamplingOptions& sampling, TokenId first, int row) override;
  float first_confidence(const SequenceState& sequence) const override;
  Kept kept(SequenceState& sequence) override;
  const Outcome& run(std::span<const Window> windows) override;

 private:
  /// What the cycle knows of the sequence in a slot.
  struct Known {
    std::vector<TokenId> deferred;  // tokens that the MTP layer has not followed
    bool has_draft = false;         // the first draft behind the last known token is made
  };
  [[nodiscard]] Known& known(const SequenceState& sequence) { return known_[sequence.slot]; }

  void check(std::span<const Window> windows) const;
  void drop_outdated_recordings();
  void run_checked(std::span<const Window> windows);
  void catch_up(std::span<const Window> windows);
  void take_in_deferred();
  void fill_input(std::span<const Window> windows);
  void first(int num_windows);
  void step(int num_windows);
  void extend(int num_windows);
  void decide(int num_rows);
  void next_drafts(int num_windows);
  void read_result(std::span<const Window> windows);
  [[nodiscard]] int drafts_of(const Window& window) const { return window.mtp_drafts ? window.num_drafts : 0; }

  CudaEngine& engine_;
  std::vector<Recorded> first_, step_, next_;  // by number of windows
  std::vector<Recorded> decide_, take_in_;     // by number of rows
  int num_draft_heads_ = 0;                    // the engine's, when step_ and next_ were empty
  Event began_{/*with_time=*/true}, drafted_{true}, verified_{true}, refreshed_{true};
  std::vector<Known> known_;   // by slot
  std::vector<size_t> order_;  // of the running windows
  // Of the running windows, in that order: windows whose MTP layer makes more than i drafts, and rows of those that
  // make any.
  std::vector<int> drafting_;
  int drafting_rows_ = 0;
  Outcome outcome_;
};

}  // namespace foretoken::cuda
