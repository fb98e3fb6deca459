#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"

namespace foretoken {

/// Where a sequence stands in its two banks of window rows, which take turns; see RecurrentState.
struct BankTurn {
  int old_bank = 0;
  int kept = 0;    // rows of bank old that belong to the sequence
  int replay = 0;  // of them, how many, the last ones, the state still lacks

  /// The running pass is over: bank new becomes bank old, its first `num_kept` rows belong to the sequence. `is_window`
  /// is false for a prompt chunk, whose rows are all in state and history already.
  void commit(int num_kept, bool is_window) {
    old_bank = 1 - old_bank;
    kept = is_window ? num_kept : 0;
    replay = is_window ? num_kept - 1 : 0;
  }
  void reset() { kept = replay = 0; }
};

/// Positions of one page of KV memory: a split of attention, so that a page is read as one stream.
inline constexpr int kPagePositions = kAttentionSplit;

/// Pages that `positions` positions take.
[[nodiscard]] constexpr int64_t pages_of(int64_t positions) {
  return (positions + kPagePositions - 1) / kPagePositions;
}

/// Where one sequence's state lies in an engine's memory, and how far it has come: all that a pass has to know of it.
///
///   positions  [0, length)                               committed
///              [length, length + rows of the running pass)  computed, not yet committed
struct SequenceState {
  int slot = 0;                // of recurrent state and window rows: [0, parallel)
  std::vector<int32_t> pages;  // page of positions [256 i, 256 (i + 1)); its capacity is taken once
  BankTurn turn;
  int64_t length = 0;

  /// The first `num_kept` rows of the running pass belong to the sequence.
  void commit(int num_kept, bool is_window) {
    turn.commit(num_kept, is_window);
    length += num_kept;
  }
};

/// Rows [first_row, first_row + num_rows) of one pass: those of one sequence, at positions [position, position +
/// num_rows). The spans of a pass follow each other without gaps, each of another sequence.
struct Span {
  const SequenceState* sequence = nullptr;
  int first_row = 0;
  int num_rows = 0;
  int64_t position = 0;
  bool is_window = true;  // any number of the rows may be kept; else a prompt chunk, which is kept whole

  [[nodiscard]] int end_row() const { return first_row + num_rows; }
};

}  // namespace foretoken
