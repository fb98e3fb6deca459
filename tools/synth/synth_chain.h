#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken::synth {

/// The text of a chain model: a cycle over up to 16,384 of the lowest printable ids (as in real text, a draft
/// vocabulary of low ids serves it), in an order that the seed picks. Every other id is followed by what follows one of
/// the cycle's.
class Cycle {
 public:
  Cycle(int64_t vocab_size, uint64_t seed);

  [[nodiscard]] int64_t length() const { return static_cast<int64_t>(ids_.size()); }
  [[nodiscard]] TokenId id_at(int64_t place) const { return ids_[place % length()]; }
  /// The place of an id; of the id that it stands for if it is not on the cycle.
  [[nodiscard]] int64_t place_of(TokenId id) const { return places_[id]; }
  [[nodiscard]] bool has(TokenId id) const { return id_at(place_of(id)) == id; }
  [[nodiscard]] TokenId next(TokenId id) const { return id_at(place_of(id) + 1); }
  [[nodiscard]] std::vector<TokenId> continuation(TokenId last, int64_t count) const;

 private:
  std::vector<TokenId> ids_;     // [length] by place
  std::vector<int64_t> places_;  // [vocab]
};

struct ChainSpec {
  int64_t hidden_dim = 0;  // a multiple of 32, at least 64
  int64_t vocab_size = 0;
  int num_experts = 0;  // 0: no router
  int experts_per_token = 0;
  double acceptance = 1;
  double overlap = 0;
  uint64_t seed = 0;
};

/// Weights of a model whose greedy text is known: it goes round the cycle.
///
/// An embedding has entries of +1 and -1. The first three quarters of the dimensions are its content, random signs that
/// name the token. The head's row for an id on the cycle is the content of the id before it, so, the layers adding
/// little, the largest logit is that of next(t): 20, the others' standard deviation is 20 / sqrt(content dims): 0.5 for
/// a hidden_dim of 2048.
///
/// The other dimensions are the code:
///
///   [ flags and their constants, 8 | slow half of the rest | fast half ]
///
/// Overlap: routers read the code (and a little of the content). Slow dimensions keep their sign for `slow_period`
/// tokens of the cycle, each changing at its own time; fast ones are new for every token. The router's weights for the
/// slow half have share a of the variance, so scores of neighbouring tokens correlate by rho = a (1 - 1 / slow_period);
/// rho is chosen so that two normal variables with this correlation are both above the quantile of the top k with the
/// probability asked for. With 45% of the experts repeated (top 8 of 128) the period of 30 gives 80% within eight
/// tokens and U(2..5) = 1.54 1.94 2.26 2.54, as was published for Qwen3-30B; half of the code at a period of 20 and
/// half at 2 gave 69% and U(5) = 2.95.
///
/// Acceptance: eh_proj passes the embedding on (and adds a little of the hidden state), so the MTP layer drafts
/// next(t). For a share of 1 - acceptance of the cycle's tokens one to three of four flags are up; eh_proj turns each
/// into twice the content of another token, and the draft is what follows one of those: sometimes surely, sometimes
/// as one of several, so a wrong draft is often an unsure one. Rows of eh_proj hold 1 at a flag and at its constant:
/// with the flag at -1 they cancel.
class Chain {
 public:
  explicit Chain(const ChainSpec& spec);

  [[nodiscard]] const Cycle& cycle() const { return cycle_; }
  [[nodiscard]] bool draft_is_right(TokenId id) const { return flags_[cycle_.place_of(id)] == 0; }
  /// Share of the cycle's tokens whose draft is right.
  [[nodiscard]] double acceptance() const;
  /// Share of a token's experts that the next token goes to as well, over (up to) 1024 pairs of neighbours and this
  /// router, layers left out.
  [[nodiscard]] double measured_overlap(uint64_t router_key) const;

  // Rows of the model's matrices.
  void embedding_row(TokenId id, float* row) const;                        // [hidden_dim]
  void head_row(TokenId id, float* row) const;                             // [hidden_dim]
  void router_row(uint64_t router_key, int64_t expert, float* row) const;  // [hidden_dim]
  void eh_proj_row(int64_t output, float* row) const;                      // [2 hidden_dim]: embedding, hidden state

 private:
  static constexpr int kFlags = 4;
  [[nodiscard]] int64_t flag_dim(int flag) const { return content_dims_ + 2 * flag; }
  [[nodiscard]] int64_t constant_dim(int flag) const { return flag_dim(flag) + 1; }
  void content(int64_t place, float* out) const;  // [content_dims]

  ChainSpec spec_;
  Cycle cycle_;
  int64_t content_dims_;
  int64_t slow_begin_, fast_begin_;  // dimensions
  double slow_share_ = 0;            // of the routers' variance
  double slow_period_;               // tokens
  std::vector<uint8_t> flags_;       // [cycle] bit f: flag f is up; 0: the draft is right
  int64_t flag_place_[kFlags];       // whose content a flag brings in
};

/// Chance that the next token repeats an expert if the scores of neighbours correlate by rho (many experts).
[[nodiscard]] double overlap_from_correlation(double rho, double chosen_share);

}  // namespace foretoken::synth
