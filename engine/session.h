#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace foretoken {

/// One sequence over an engine of its own, driven pass by pass: for whoever looks at rows of a single text (eval,
/// tests). All memory is taken in the constructor. One thread at a time may call it.
///
/// Rows of a pass become part of the sequence only by commit(); until then the pass may be taken back in whole or from
/// any row on.
class Session {
 public:
  /// As Engine, of which it makes one for one sequence.
  Session(const Model& model, const SessionOptions& options);

  /// Of the host, for the CPU.
  [[nodiscard]] static SessionMemory memory_needed(const Model& model, const SessionOptions& options) {
    return Engine::memory_needed(model, options);
  }

  [[nodiscard]] Engine& engine() { return engine_; }
  [[nodiscard]] const Engine& engine() const { return engine_; }
  [[nodiscard]] Sequence& sequence() { return sequence_; }
  [[nodiscard]] const Model& model() const { return engine_.model(); }
  [[nodiscard]] const SessionOptions& options() const { return engine_.options(); }
  [[nodiscard]] SessionMemory memory() const { return engine_.memory(); }
  [[nodiscard]] int64_t length() const { return sequence_.length(); }
  [[nodiscard]] int pending() const { return sequence_.pending(); }

  /// Forgets the sequence: length 0, states zero.
  void reset();

  /// Runs the trunk over `ids` at positions [length(), length() + ids.size()), up to the hidden after the final norm.
  /// No more rows than max_window are a window, of which any number may be kept; more are a prompt chunk. REQUIRES:
  /// pending() == 0; 1 <= ids.size() <= max_rows(); ids in the vocabulary; length() + ids.size() <= ctx_size.
  void forward(std::span<const TokenId> ids);

  /// Rows that one forward() or mtp_forward() can take: max(prompt_chunk, max_window).
  [[nodiscard]] int max_rows() const { return engine_.max_rows(); }

  /// Hidden after the final norm [hidden_dim] of row `row` of the last forward(). Valid until the next forward().
  [[nodiscard]] const float* hidden(int row) const { return engine_.hidden(row); }

  /// Runs the head over rows [row_begin, row_end) of the last forward(). REQUIRES: row_end - row_begin <=
  /// logits_capacity().
  void compute_logits(int row_begin, int row_end);

  /// Rows whose logits are held at once: at least max_window.
  [[nodiscard]] int logits_capacity() const { return engine_.logits_capacity(); }

  /// Logits [vocab_size] of row `row`. REQUIRES: row was in the range of the last compute_logits().
  [[nodiscard]] const float* logits(int row) const { return engine_.logits(row - logits_begin_); }

  /// As Engine.
  void check_row(int row) const { engine_.check_row(row); }

  /// U(n) of the last forward(); see Engine.
  [[nodiscard]] double distinct_experts() const { return engine_.distinct_experts(); }

  /// Keeps the first num_rows rows of the last forward() and takes back the others. REQUIRES: 1 <= num_rows <=
  /// pending().
  void commit(int num_rows) { sequence_.commit(num_rows); }

  // The MTP layer. REQUIRES for all: options().with_mtp.

  /// Runs the MTP layer over `ids` at positions [position, position + ids.size()); see Engine::mtp_forward. REQUIRES: 0
  /// <= first_output < ids.size().
  void mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden,
                   int first_output = 0);

  /// Hidden after shared_head_norm [hidden_dim] of row `row` >= first_output of the last mtp_forward(). Valid until the
  /// next mtp_forward() but one, so it may be an input of the next.
  [[nodiscard]] const float* mtp_hidden(int row) const { return engine_.mtp_hidden(row - mtp_first_); }

  /// Draft logits of rows [row_begin, row_end) of the last mtp_forward(), over the draft groups only, -infinity
  /// elsewhere. REQUIRES: row_begin >= first_output; row_end - row_begin <= logits_capacity().
  void mtp_compute_logits(int row_begin, int row_end);
  [[nodiscard]] const float* mtp_logits(int row) const { return engine_.mtp_logits(row - mtp_logits_begin_); }

  /// As Engine.
  [[nodiscard]] std::optional<std::string> mtp_fault() const { return engine_.mtp_fault(0); }
  void set_draft_groups(std::span<const int32_t> groups) { engine_.set_draft_groups(groups); }
  void add_draft_group(int32_t group) { engine_.add_draft_group(group); }

 private:
  Engine engine_;
  Sequence sequence_;
  std::vector<int32_t> rows_;  // of the head's next run
  int logits_begin_ = 0;       // row of the last forward() whose logits come first
  int mtp_first_ = 0;          // first row of the last mtp_forward() that has an output
  int mtp_logits_begin_ = 0;
};

}  // namespace foretoken
