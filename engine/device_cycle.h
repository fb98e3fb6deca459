#pragma once

#include <span>
#include <vector>

#include "engine/sampler.h"
#include "engine/sequence/sequence_state.h"
#include "engine/text/tokenizer.h"

namespace foretoken {

/// A cycle of decoding that a device runs by itself, from the known token to the refreshed MTP layer: draft, verify,
/// accept, commit, refresh. The host says how many drafts there shall be and reads which tokens came out; logits and
/// hidden rows stay where they are. The text is that of the same steps taken one by one through a Session.
///
/// The last thing a cycle with drafts does is the first draft of the next window, so that the host knows how sure it is
/// when it chooses that window's width. While drafting rests (windows of no drafts), tokens wait with their hidden rows
/// on the device and the MTP layer takes them in together when a draft is wanted again, or when kMaxDeferred wait.
class DeviceCycle {
 public:
  static constexpr int kMaxDeferred = 64;

  virtual ~DeviceCycle() = default;

  /// True if devices make the choices of these options: greedy, and temperature without filters.
  [[nodiscard]] static bool supports(const SamplingOptions& options) {
    return options.temperature == 0.0f || (options.top_k == 0 && options.top_p == 1.0f && options.min_p == 0.0f);
  }

  /// A generation begins behind the committed rows of `sequence`, which run() moves on. `first`, the token that stands
  /// at length(), follows from row `row` of the last forward(); the MTP layer (if the session has one) has followed all
  /// positions before it. REQUIRES: supports(sampling); pending() == 0; length() > 0.
  virtual void begin(SequenceState& sequence, const SamplingOptions& sampling, TokenId first, int row) = 0;

  /// How sure the MTP layer is of the next window's first draft; negative where that is not known yet.
  [[nodiscard]] virtual float first_confidence() const = 0;

  struct Window {
    TokenId last = 0;    // stands at length()
    int num_drafts = 0;  // below max_window; 0 in a session without the MTP layer
    /// Drafts that are put in the place of the MTP layer's own, from the first on (forced acceptance). An empty span:
    /// none.
    std::span<const TokenId> forced;
  };
  struct Outcome {
    int num_accepted = 0;
    std::vector<TokenId> choices;    // [num_drafts + 1] the target's own after each row; [num_accepted] is the new last
    std::vector<float> confidences;  // [num_drafts]
    double distinct_experts = 0;     // as Session::distinct_experts
    bool is_steady = false;          // false: times hold what is done once, as loading kernels and recording graphs
    double draft_ms = 0;             // chained steps: num_drafts - 1 of them
    double verify_ms = 0;
    double refresh_ms = 0;  // MTP layer over the accepted tokens, and the next window's first draft
  };

  /// Runs one cycle and commits its accepted rows. REQUIRES: length() + num_drafts + 1 < ctx_size.
  [[nodiscard]] virtual const Outcome& run(const Window& window) = 0;
};

}  // namespace foretoken
