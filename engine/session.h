#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/model.h"
#include "engine/options.h"
#include "kernels/thread_team.h"

namespace foretoken {

/// Bytes that a session needs beside the weights.
struct SessionMemory {
  size_t kv_bytes = 0;          // trunk and MTP layer
  size_t recurrent_bytes = 0;   // delta-net states and what a window keeps for its replay
  size_t work_bytes = 0;        // activations, logits, partial results
  [[nodiscard]] size_t total() const { return kv_bytes + recurrent_bytes + work_bytes; }
};

/// One sequence over one model: KV cache, recurrent state, work buffers and the threads that compute. All memory is taken in the
/// constructor. One thread at a time may call it.
///
/// Rows of a pass become part of the sequence only by commit(); until then the pass may be taken back in whole or from any row on.
///
///   positions  [0, length())                      committed
///              [length(), length() + pending())   computed by the last forward(), not yet committed
class Session {
 public:
  /// Throws InputError if the memory does not fit what is available (checked before allocating; names the sizes and --ctx-size).
  Session(const Model& model, const SessionOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] static SessionMemory memory_needed(const Model& model, const SessionOptions& options);

  [[nodiscard]] const Model& model() const;
  [[nodiscard]] const SessionOptions& options() const;  // with defaults filled in
  [[nodiscard]] SessionMemory memory() const;
  [[nodiscard]] ThreadTeam& team();
  [[nodiscard]] int64_t length() const;
  [[nodiscard]] int pending() const;

  /// Forgets the sequence: length 0, states zero.
  void reset();

  /// Runs the trunk over `ids` at positions [length(), length() + ids.size()). Logits of rows [logits_begin, ids.size()) are computed.
  /// REQUIRES: pending() == 0; 1 <= ids.size() <= max(prompt_chunk, max_window); ids in the vocabulary;
  /// length() + ids.size() <= ctx_size; logits for at most max_window rows unless options.prompt_chunk rows were... see logits_capacity().
  void forward(std::span<const TokenId> ids, int logits_begin);

  /// Rows whose logits one forward() can hold.
  [[nodiscard]] int logits_capacity() const;

  /// Logits [vocab_size] of row `row` of the last forward(). REQUIRES: row >= logits_begin.
  [[nodiscard]] const float* logits(int row) const;
  /// Hidden after the final norm [hidden_dim] of row `row` of the last forward().
  [[nodiscard]] const float* hidden(int row) const;

  /// Keeps the first num_rows rows of the last forward() and takes back the others. Recurrent state advances by replay in the next pass.
  /// REQUIRES: 1 <= num_rows <= pending().
  void commit(int num_rows);

  // The MTP layer. REQUIRES for all: options().with_mtp.

  /// Runs the MTP layer over `ids` at positions [position, position + ids.size()) with hidden[r] [hidden_dim] the hidden of the position
  /// before row r. Its KV rows at these positions are (re)written. Draft logits are computed for rows [logits_begin, ids.size()):
  /// over the draft vocabulary only, -infinity elsewhere (see set_draft_vocab).
  void mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden, int logits_begin);
  [[nodiscard]] const float* mtp_logits(int row) const;   // [vocab_size]
  [[nodiscard]] const float* mtp_hidden(int row) const;   // [hidden_dim], after shared_head_norm: the next chained step's hidden

  /// Rows of the head that drafts read, as groups of kInterleave ids (bit g: ids [16 g, 16 g + 16)); all groups at first.
  void set_draft_groups(std::span<const int32_t> groups);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
