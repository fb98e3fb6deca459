#pragma once

#include <array>
#include <vector>

#include "engine/cuda/cuda_engine.h"
#include "engine/device_cycle.h"

namespace foretoken::cuda {

/// The cycle in four recorded pieces, replayed one behind the other without the host between them:
///
///   draft[k]    the command arrives; the first draft (made by the refresh before) and k - 1 chained steps
///   trunk[k+1]  the verify pass: the same recording as the host's calls use
///   decide[k]   head, the target's choices, the longest accepted prefix
///   refresh[k]  the MTP layer over the accepted tokens, the next window's first draft; the result leaves
///
/// A window of no drafts has no refresh: its hidden row is put by (follow_hidden), its token waits here on the host.
class CudaCycle final : public DeviceCycle {
 public:
  explicit CudaCycle(CudaEngine& engine);

  void begin(SequenceState& sequence, const SamplingOptions& sampling, TokenId first, int row) override;
  float first_confidence() const override { return has_draft_ ? host_result().next_share : -1.0f; }
  const Outcome& run(const Window& window) override;

 private:
  void send_command(const Window& window);
  void catch_up();
  void draft(int num_drafts);
  void decide(int num_drafts);
  void refresh(int num_drafts);
  void first_draft();
  void fetch_result();
  [[nodiscard]] const CycleResult& host_result() const { return *engine_.host.result.data<const CycleResult>(); }
  [[nodiscard]] int deferred_capacity() const;

  CudaEngine& engine_;
  SequenceState* sequence_ = nullptr;               // that runs
  std::vector<Recorded> draft_, decide_, refresh_;  // by number of drafts
  Event began_, drafted_, verified_, refreshed_;
  std::vector<TokenId> deferred_;  // tokens that the MTP layer has not followed; their hiddens are in follow_hidden
  bool has_draft_ = false;         // result->next_draft is the first draft behind the last known token
  Outcome outcome_;
};

}  // namespace foretoken::cuda
