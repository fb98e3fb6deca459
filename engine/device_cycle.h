#pragma once

#include <span>
#include <vector>

#include "engine/sampler.h"
#include "engine/sequence/sequence_state.h"
#include "engine/text/tokenizer.h"

namespace foretoken {

/// A cycle of decoding that a device runs by itself for any number of sequences, from their known tokens to the
/// refreshed MTP layer: draft, verify, accept, commit, refresh. The host says how many drafts there shall be and reads
/// which tokens came out; logits and hidden rows stay where they are. The text of each sequence is that of the same
/// steps taken one by one through an Engine, whoever else is in the cycle.
///
/// The last thing a cycle with the MTP layer's drafts does is the first draft of the next window, so that the host
/// knows how sure it is when it chooses that window's width. While the MTP layer does not draft for a sequence, its
/// tokens wait with their hidden rows on the device, and the MTP layer takes them in together when it has to draft
/// again, or when kMaxDeferred wait.
class DeviceCycle {
 public:
  static constexpr int kMaxDeferred = 256;

  virtual ~DeviceCycle() = default;

  /// True if devices make the choices of these options: greedy, and temperature without filters.
  [[nodiscard]] static bool supports(const SamplingOptions& options) {
    return options.temperature == 0.0f ||
           (options.top_k == 0 && options.typical_p == 1.0f && options.top_p == 1.0f && options.min_p == 0.0f);
  }

  /// A generation begins behind the committed rows of `sequence`, which run() moves on. `first`, the token that stands
  /// at its length, follows from row `row` of the last forward(); the MTP layer (if there is one) has followed all
  /// positions before it. REQUIRES: supports(sampling); nothing of the sequence is pending; its length is not 0.
  virtual void begin(SequenceState& sequence, const SamplingOptions& sampling, TokenId first, int row) = 0;

  /// How sure the MTP layer is of the first draft of the sequence's next window; negative where that is not known yet.
  [[nodiscard]] virtual float first_confidence(const SequenceState& sequence) const = 0;

  /// Where the MTP layer stands with a sequence between two cycles: enough for somebody else to go on from.
  struct Kept {
    std::vector<TokenId> deferred;       // known tokens that it has not followed, at most kMaxDeferred
    std::vector<float> deferred_hidden;  // [deferred, hidden_dim] the trunk's at the position before each
    bool has_draft = false;              // the first draft behind the last known token is made
    TokenId draft = 0;
    float confidence = 0;
    std::vector<float> draft_hidden;  // [hidden_dim] that its chain goes on from
  };
  /// REQUIRES: options().with_mtp; begin() was called for the sequence.
  [[nodiscard]] virtual Kept kept(SequenceState& sequence) = 0;

  /// The next window of one sequence.
  struct Window {
    SequenceState* sequence = nullptr;
    TokenId last = 0;    // the known token, which stands at the sequence's length
    int num_drafts = 0;  // below max_window
    /// Drafts that the host gives, from the first on; they count instead of the MTP layer's own.
    std::span<const TokenId> given;
    /// The MTP layer drafts too: what is not given, and how sure it would have been of the rest. False: all drafts are
    /// given, and the MTP layer rests. REQUIRES if true: options().with_mtp, or num_drafts == 0.
    bool mtp_drafts = true;
  };
  /// What has become of one window.
  struct Verified {
    int num_accepted = 0;
    std::vector<TokenId> choices;    // [num_drafts + 1] the target's own after each row; [num_accepted] is the new last
    std::vector<float> confidences;  // [num_drafts] of the MTP layer; empty where it did not draft
  };
  struct Outcome {
    std::vector<Verified> windows;  // in the order of run()'s
    double distinct_experts = 0;    // as Engine::distinct_experts
    bool is_steady = false;         // false: times hold what is done once, as loading kernels and recording graphs
    double draft_ms = 0;            // chained steps: one less than the most drafts of the MTP layer in a window
    double verify_ms = 0;
    double refresh_ms = 0;  // MTP layer over the accepted tokens, and the next windows' first drafts
  };

  /// Runs one cycle and commits the accepted rows of each window. REQUIRES: each sequence once, with pages for
  /// positions up to and with length + num_drafts + 1, which is below ctx_size. The outcome stays until the next run().
  [[nodiscard]] virtual const Outcome& run(std::span<const Window> windows) = 0;
};

}  // namespace foretoken
