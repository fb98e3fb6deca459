#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/device_cycle.h"
#include "mtp/drafter.h"

namespace foretoken {

/// The MTP layer as a drafter: its KV rows follow each sequence's accepted tokens, and its last row gives the first
/// draft. All sequences that draft go through the layer together: step j of all of them is one pass.
///
///   KV rows [0, filled)      from the trunk's true hiddens
///   KV rows [filled, ...)    from chained drafts; overwritten when the next tokens are known
///
/// Tokens behind which no draft is wanted are not computed at once: while drafting does not pay, they wait with their
/// hiddens and are computed together when a draft is wanted again, or when kMaxDeferred of them wait.
class MtpDrafter final : public Drafter {
 public:
  /// REQUIRES: engine.options().with_mtp; the engine stays.
  explicit MtpDrafter(Engine& engine);
  /// What it takes beside the engine's memory.
  [[nodiscard]] static size_t size_bytes(const ModelConfig& config, const SessionOptions& options);

  static constexpr int kMaxDeferred = DeviceCycle::kMaxDeferred;

  bool needs_hidden() const override { return true; }
  DraftTimes follow(std::span<const KnownTokens> known) override;
  bool offers(const Sequence& sequence) const override { return state(sequence).has_first; }
  int waiting(const Sequence& sequence) const override { return static_cast<int>(state(sequence).ids.size()); }
  DraftTimes extend(std::span<DraftWindow* const> windows) override;
  void replaced_last(const DraftWindow& window) override { state(*window.sequence).last_draft = window.drafts.back(); }
  const std::optional<std::string>& fault(const Sequence& sequence) const override { return state(sequence).fault; }
  void leave(const Sequence& sequence) override;
  int64_t settled_positions(const Sequence& sequence) const override {
    return std::min(state(sequence).filled, sequence.length());
  }
  void save(const Sequence& sequence, std::vector<std::byte>& to) const override;
  void restore(const Sequence& sequence, std::span<const std::byte>& from) override;
  void copy(const Sequence& from, const Sequence& to) override;

  /// Stands with the sequence, at a commit point, where a device's cycles have come to.
  void take_over(const Sequence& sequence, const DeviceCycle::Kept& kept);

  /// Positions of the sequence whose keys and values come from the trunk's true hiddens.
  [[nodiscard]] int64_t filled(const Sequence& sequence) const { return state(sequence).filled; }

 private:
  struct State {
    int64_t filled = 0;
    int num_drafts = 0;      // of the coming window; the first is made by follow()
    bool has_first = false;  // first_draft follows the last known token
    TokenId first_draft = 0;
    float first_confidence = 0;
    TokenId last_draft = 0;
    std::optional<std::string> fault;
    std::vector<float> hidden;  // [hidden_dim] of the layer's last row: what the next chained step continues from
    std::vector<TokenId> ids;   // deferred
    std::vector<float> deferred_hidden;  // [kMaxDeferred, hidden_dim]
  };
  /// Rows of one sequence on their way through the layer; the last of them gives the first draft, if one is wanted.
  struct Rows {
    const KnownTokens* known;
    size_t begin, end;  // of the sequence's deferred tokens and then `known`
    bool with_output;
  };

  [[nodiscard]] State& state(const Sequence& sequence) { return states_[sequence.state().slot]; }
  [[nodiscard]] const State& state(const Sequence& sequence) const { return states_[sequence.state().slot]; }
  void defer(const KnownTokens& known);
  void run(std::span<const Rows> rows, DraftTimes& times);
  // After a pass, and after the head: input `input` of it was this sequence's.
  void look_for_fault(const Sequence& sequence, int input) {
    State& s = state(sequence);
    if (!s.fault) s.fault = engine_.mtp_fault(input);
  }

  Engine& engine_;
  const size_t hidden_dim_;
  std::vector<State> states_;  // [parallel]

  // Of a running pass.
  std::vector<Rows> rows_;
  std::vector<TokenId> ids_;
  std::vector<const float*> hidden_;
  std::vector<Engine::MtpInput> inputs_;
  std::vector<int32_t> outputs_;
};

}  // namespace foretoken
