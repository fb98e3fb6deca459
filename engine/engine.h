#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/cuda/hot_experts.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "engine/sampler.h"
#include "engine/sequence/sequence_state.h"
#include "engine/session_memory.h"
#include "kernels/threads/thread_team.h"
#include "kernels/threads/work_profile.h"
#include "moe/moe.h"

namespace foretoken {

class DeviceCycle;
class Sequence;
class SequenceCheckpoint;

/// A context nobody asked for: long enough for a chat, small enough for any machine.
inline constexpr int64_t kDefaultContext = 4096;

/// What a model runs on: threads or a GPU (options.device), work buffers, and memory for the states of up to
/// options.parallel sequences. All memory is taken in the constructor. One thread at a time may call it and the
/// sequences on it.
///
/// A pass takes rows of any number of sequences. A row's bits depend on nothing but its own sequence's text up to it:
/// not on who else is in the pass, nor on how the text was cut into passes.
class Engine {
 public:
  /// Throws InputError if the memory, the host's or the device's, does not fit what is available (checked before
  /// allocating; names the sizes and --ctx-size), and if there is no such device.
  Engine(const Model& model, const SessionOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// See session_memory().
  [[nodiscard]] static SessionMemory memory_needed(const Model& model, const SessionOptions& options);

  [[nodiscard]] const Model& model() const;
  [[nodiscard]] const SessionOptions& options() const;  // with defaults filled in
  [[nodiscard]] SessionMemory memory() const;
  [[nodiscard]] ThreadTeam& team();
  /// Where the time of the passes goes; nullptr unless options().profile.
  [[nodiscard]] WorkProfile* profile();
  /// Counts the reads of expert weights (all layers together) in `reads` from now on; nullptr: nowhere.
  void count_expert_reads(ExpertReads* reads);
  /// Where a split has served its reads of experts so far; all zero where nothing is split.
  [[nodiscard]] ReadsByPlace reads_by_place() const;
  /// Cycles that a device runs by itself; nullptr on the CPU.
  [[nodiscard]] DeviceCycle* device_cycle();

  /// Rows that one pass can take.
  [[nodiscard]] int max_rows() const;
  /// Rows whose logits are held at once: at least a whole window of every sequence.
  [[nodiscard]] int logits_capacity() const;
  /// Pages of KV memory (256 positions of one sequence each), and how many of them nobody has.
  [[nodiscard]] int num_pages() const;
  [[nodiscard]] int free_pages() const;
  /// Sequences that may be made now.
  [[nodiscard]] int free_slots() const;

  /// Rows of one sequence, behind its committed ones.
  struct Input {
    Sequence* sequence = nullptr;
    std::span<const TokenId> ids;
    bool is_window = true;  // any number of the rows may be kept; else a prompt chunk, which is kept whole
  };

  /// Runs the trunk over the rows of all inputs, one after the other, up to the hidden after the final norm.
  /// REQUIRES: each sequence of this engine, once, with nothing pending, with positions reserved for the rows; ids in
  /// the vocabulary; at most max_rows() rows; a window has at most options().max_window.
  void forward(std::span<const Input> inputs);

  /// The row of the last forward() that input `input` began with.
  [[nodiscard]] int first_row(int input) const;
  /// Hidden after the final norm [hidden_dim] of row `row` of the last forward(). Valid until the next forward().
  [[nodiscard]] const float* hidden(int row) const;
  /// Distinct experts that the last forward() read, mean over its layers, in units of one token's top-k: U(n). 0 for a
  /// dense model.
  [[nodiscard]] double distinct_experts() const;

  /// Throws InputError, naming the position and the layer, if something in row `row` of the last forward(), its logits
  /// included, was not finite or was lost for being too large. Rows that are taken back are nobody's concern: plain
  /// decoding never computes them.
  void check_row(int row) const;

  /// Runs the head over these rows of the last forward(). REQUIRES: at most logits_capacity() of them.
  void compute_logits(std::span<const int32_t> rows);
  /// Logits [vocab_size] of rows[index] of the last compute_logits().
  [[nodiscard]] const float* logits(int index) const;
  /// choose_token() of logits(index). Where several processes hold the head, a greedy choice does not bring all logits
  /// together; logits() does.
  [[nodiscard]] TokenId choose(int index, const SamplingOptions& sampling, int64_t position) const;

  // The MTP layer. REQUIRES for all: options().with_mtp.

  /// `ids` stand at positions [position, position + ids.size()); hidden[r] [hidden_dim] is the hidden of the position
  /// before row r (zeros at position 0). Rows before first_output only leave their keys and values, which takes a small
  /// part of the layer; first_output may be ids.size().
  struct MtpInput {
    Sequence* sequence = nullptr;
    int64_t position = 0;
    std::span<const TokenId> ids;
    std::span<const float* const> hidden;
    int first_output = 0;
  };

  /// Runs the MTP layer over the rows of all inputs: their keys and values are stored, again if need be; a row attends
  /// to [0, its own position]. The rows that go through the whole layer are its outputs, counted in order.
  void mtp_forward(std::span<const MtpInput> inputs);
  /// Hidden after shared_head_norm [hidden_dim]: the next chained step's hidden. Valid until the next mtp_forward() but
  /// one (two buffers take turns), so it may be an input of the next.
  [[nodiscard]] const float* mtp_hidden(int output) const;
  /// Draft logits of these outputs, over the draft groups only, -infinity elsewhere. REQUIRES: at most
  /// logits_capacity() of them.
  void mtp_compute_logits(std::span<const int32_t> outputs);
  [[nodiscard]] const float* mtp_logits(int index) const;  // [vocab_size] of outputs[index]
  /// choose_token() of mtp_logits(index), and its softmax_share() among them.
  struct DraftChoice {
    TokenId id = 0;
    float confidence = 0;
  };
  [[nodiscard]] DraftChoice mtp_choose(int index, const SamplingOptions& sampling, int64_t position) const;

  /// The first fault of this input's rows in the last mtp_forward() and their logits, as check_row() would put it, or
  /// nothing.
  [[nodiscard]] std::optional<std::string> mtp_fault(int input) const;

  /// Rows of the head that drafts read: group g stands for ids [16 g, 16 g + 16); rising, no duplicates. All groups at
  /// first.
  void set_draft_groups(std::span<const int32_t> groups);
  /// One group more. REQUIRES: it is not among them yet.
  void add_draft_group(int32_t group);

 private:
  friend class Sequence;
  friend class SequenceCheckpoint;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One text and its state in an engine: KV pages, recurrent states, how far it has come.
///
///   positions  [0, length())                      committed
///              [length(), length() + pending())   computed by the last forward(), not yet committed
class Sequence {
 public:
  /// Empty, and without pages. REQUIRES: engine.free_slots() > 0; the engine stays until the sequence is gone.
  explicit Sequence(Engine& engine);
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  [[nodiscard]] int64_t length() const { return state_.length; }
  [[nodiscard]] int pending() const { return pending_; }
  [[nodiscard]] const SequenceState& state() const { return state_; }

  /// Takes pages for positions [0, positions) as far as it has none for them. False, and nothing taken, if there are
  /// not enough free ones. REQUIRES: positions <= ctx_size.
  [[nodiscard]] bool reserve(int64_t positions);
  /// Positions that it has pages for.
  [[nodiscard]] int64_t reserved() const { return static_cast<int64_t>(state_.pages.size()) * kPagePositions; }

  /// Forgets the text: length 0, states zero, no pages.
  void reset();

  /// Keeps the first num_rows rows of the last forward() and takes back the others. REQUIRES: 1 <= num_rows <=
  /// pending(), all of them for a prompt chunk. Throws what Engine::check_row() throws for the first of them.
  void commit(int num_rows);

  /// For the device's own cycle, which commits rows by itself.
  [[nodiscard]] SequenceState& state_for_device() { return state_; }

  // At a commit point (pending() == 0):

  /// Becomes a copy of `from`, another sequence of the same engine, whose MTP layer has followed `mtp_length`
  /// positions: full pages are shared, the others copied. False, and nothing changed, if there are no pages for that.
  /// REQUIRES: this one is empty, without pages.
  [[nodiscard]] bool copy(Sequence& from, int64_t mtp_length);

  /// Its state, kept beside the sequences: any number of others can begin from it. `mtp_length`: positions that the MTP
  /// layer has followed, or will never write to.
  [[nodiscard]] std::unique_ptr<SequenceCheckpoint> checkpoint(int64_t mtp_length);
  /// Takes a checkpoint's state up. False, and nothing changed, if there are no pages for that. REQUIRES: this one is
  /// empty, without pages.
  [[nodiscard]] bool resume(const SequenceCheckpoint& checkpoint);

  /// All of its state as bytes, which restore() of any engine over the same model, on any device and with any number of
  /// threads, takes back.
  [[nodiscard]] std::vector<std::byte> save();
  /// Throws InputError if the bytes are not of save() over this model and KV type, or damaged, or if the context or the
  /// free pages are too few.
  void restore(std::span<const std::byte> saved);

 private:
  friend class Engine;
  void drop_pages();
  // Pages with rows that count, of those it has: the MTP layer is one position ahead of the trunk.
  [[nodiscard]] size_t used_pages() const;

  Engine& engine_;
  SequenceState state_;
  int pending_ = 0;
  bool pending_is_window_ = true;
};

/// The state of a sequence at a commit point. Full pages are shared with whoever else has them; what was not full, and
/// the recurrent state, is a copy in the host's memory.
///
///   positions  [0, 256 * num_pages())          in shared pages
///              [256 * num_pages(), length())   in the copy
class SequenceCheckpoint {
 public:
  ~SequenceCheckpoint();
  SequenceCheckpoint(const SequenceCheckpoint&) = delete;
  SequenceCheckpoint& operator=(const SequenceCheckpoint&) = delete;

  [[nodiscard]] int64_t length() const { return length_; }
  [[nodiscard]] int num_pages() const { return static_cast<int>(pages_.size()); }
  [[nodiscard]] std::span<const int32_t> pages() const { return pages_; }
  /// Of the host's memory.
  [[nodiscard]] size_t bytes() const { return sizeof *this + pages_.capacity() * sizeof(int32_t) + copy_.capacity(); }

 private:
  friend class Sequence;
  explicit SequenceCheckpoint(Engine& engine) : engine_(engine) {}

  Engine& engine_;
  int64_t length_ = 0;
  std::vector<int32_t> pages_;
  size_t num_copied_pages_ = 0;
  std::vector<std::byte> copy_;  // the pages that were not full, then the recurrent state
};

}  // namespace foretoken
