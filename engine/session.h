#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "engine/cuda/hot_experts.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "engine/session_memory.h"
#include "kernels/threads/thread_team.h"
#include "kernels/threads/work_profile.h"
#include "moe/moe.h"

namespace foretoken {

/// A context nobody asked for: long enough for a chat, small enough for any machine.
inline constexpr int64_t kDefaultContext = 4096;

class DeviceCycle;

/// One sequence over one model: KV cache, recurrent state, work buffers and whoever computes: threads, or a GPU
/// (options.device). All memory is taken in the constructor. One thread at a time may call it.
///
/// Rows of a pass become part of the sequence only by commit(); until then the pass may be taken back in whole or from
/// any row on.
///
///   positions  [0, length())                      committed
///              [length(), length() + pending())   computed by the last forward(), not yet committed
class Session {
 public:
  /// Throws InputError if the memory, the host's or the device's, does not fit what is available (checked before
  /// allocating; names the sizes and --ctx-size), and if there is no such device.
  Session(const Model& model, const SessionOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Of the host, for the CPU.
  [[nodiscard]] static SessionMemory memory_needed(const Model& model, const SessionOptions& options);

  [[nodiscard]] const Model& model() const;
  [[nodiscard]] const SessionOptions& options() const;  // with defaults filled in
  [[nodiscard]] SessionMemory memory() const;
  [[nodiscard]] ThreadTeam& team();
  /// Where the time of this session's passes goes; nullptr unless options().profile.
  [[nodiscard]] WorkProfile* profile();
  /// Where the reads of expert weights are counted (all layers together); nullptr: nowhere.
  [[nodiscard]] ExpertReads*& expert_reads();
  /// Where a split has served its reads of experts so far; all zero where nothing is split.
  [[nodiscard]] ExpertPlaces expert_places() const;
  /// Cycles that a device runs by itself; nullptr on the CPU.
  [[nodiscard]] DeviceCycle* device_cycle();
  [[nodiscard]] int64_t length() const;
  [[nodiscard]] int pending() const;

  /// Forgets the sequence: length 0, states zero.
  void reset();

  /// Runs the trunk over `ids` at positions [length(), length() + ids.size()), up to the hidden after the final norm.
  /// REQUIRES: pending() == 0; 1 <= ids.size() <= max_rows(); ids in the vocabulary; length() + ids.size() <= ctx_size.
  void forward(std::span<const TokenId> ids);

  /// Rows that one forward() or mtp_forward() can take: max(prompt_chunk, max_window).
  [[nodiscard]] int max_rows() const;

  /// Hidden after the final norm [hidden_dim] of row `row` of the last forward(). Valid until the next forward().
  [[nodiscard]] const float* hidden(int row) const;

  /// Runs the head over rows [row_begin, row_end) of the last forward(). REQUIRES: row_end - row_begin <=
  /// logits_capacity().
  void compute_logits(int row_begin, int row_end);

  /// Rows whose logits are held at once: at least max_window.
  [[nodiscard]] int logits_capacity() const;

  /// Logits [vocab_size] of row `row`. REQUIRES: row was in the range of the last compute_logits().
  [[nodiscard]] const float* logits(int row) const;

  /// Distinct experts that the last forward() read, mean over its layers, in units of one token's top-k: U(n). 0 for a
  /// dense model.
  [[nodiscard]] double distinct_experts() const;

  /// Keeps the first num_rows rows of the last forward() and takes back the others. Recurrent state advances by replay
  /// in the next pass. REQUIRES: 1 <= num_rows <= pending().
  void commit(int num_rows);

  // The MTP layer. REQUIRES for all: options().with_mtp.

  /// Runs the MTP layer over `ids` at positions [position, position + ids.size()); hidden[r] [hidden_dim] is the hidden
  /// of the position before row r (zeros at position 0). Its KV rows at these positions are (re)written; a row attends
  /// to [0, its own position]. Rows before first_output only leave their keys and values, which takes a small part of
  /// the layer; the others go through all of it. REQUIRES: 0 <= first_output < ids.size().
  void mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden,
                   int first_output = 0);

  /// Hidden after shared_head_norm [hidden_dim] of row `row` >= first_output of the last mtp_forward(): the next
  /// chained step's hidden. Valid until the next mtp_forward() but one (two buffers take turns), so it may be an input
  /// of the next.
  [[nodiscard]] const float* mtp_hidden(int row) const;

  /// Draft logits of rows [row_begin, row_end) of the last mtp_forward(), over the draft groups only, -infinity
  /// elsewhere. REQUIRES: row_begin >= first_output; row_end - row_begin <= logits_capacity().
  void mtp_compute_logits(int row_begin, int row_end);
  [[nodiscard]] const float* mtp_logits(int row) const;  // [vocab_size]

  /// Rows of the head that drafts read: group g stands for ids [16 g, 16 g + 16); rising, no duplicates. All groups at
  /// first.
  void set_draft_groups(std::span<const int32_t> groups);

  /// One group more. REQUIRES: it is not among them yet.
  void add_draft_group(int32_t group);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
