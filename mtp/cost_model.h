#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "engine/options.h"

namespace foretoken {

class Model;

/// Bytes of weights that decoding reads, by how often: what the costs of passes and drafts are derived from before any
/// was measured. Keys and values are left out: they weigh on every pass of a sequence alike.
struct DecodeBytes {
  double dense = 0;        // trunk: everything outside the routed experts, once a pass whatever its rows; with the head
  double routed = 0;       // trunk: the top-k experts of one token, all layers
  double sequence = 0;     // trunk: recurrent state of one sequence, read and written once a pass
  double mtp_dense = 0;    // MTP layer without its head
  double mtp_routed = 0;   // MTP layer: the top-k experts of one token
  double draft_head = 0;   // the head's rows that drafts read
  double top_k_share = 0;  // top_k / num_experts; 0: no routed experts
  /// All weights stay in the processor's last cache from pass to pass: there is no memory to wait for, behind which
  /// further rows would hide.
  bool in_cache = false;
  // Rows of prompts do not meet the head.
  double head = 0;        // its part of `dense`
  double head_share = 0;  // and of the products that a row of a window takes
};

/// Of a model whose drafts read `draft_rows` rows of the head (0: all), on this machine's processor or on a device.
[[nodiscard]] DecodeBytes decode_bytes(const Model& model, int64_t draft_rows, Device device);

/// What a pass goes through: the rows of windows and prompt chunks of any number of sequences.
struct PassShape {
  int num_spans = 1;    // sequences that have rows in it
  int num_rows = 1;     // of all spans together
  int prompt_rows = 0;  // of num_rows: those of prompts, which need no logits
};

/// What passes and drafts cost, in milliseconds, for any number of rows and sequences: from bytes and a first plain
/// pass at once, and from every pass that was measured since. All readings refine the same two numbers, so that a pass
/// that never ran is known nearly as well as one that ran often:
///
///   pass = sqrt(memory^2 + arithmetic^2)     two times that overlap, most where one of them is short
///   memory = ms_per_byte * (dense + routed * U + sequence * spans)
///   arithmetic = ms_per_row * rows            a prompt's row counts without the head
///
/// Measured on 8 layers of a 35B-A3B (AVX-512 VNNI, 2 cores): 37.5 43.5 48 54 57 .. 80 (8 rows) ms; from the prompt and
/// the first plain pass alone this gives 37.5 43.8 50 56 63 .. 83.
///
/// U counts distinct experts. The first row of a further sequence and a further row of the same sequence count as the
/// parts of an independent row that this run's passes show: 1 and 0.55 at first (the overlap published for
/// Qwen3-30B-A3B). Texts that are alike share experts in both ways, so each tells of the other.
///
/// Until a pass was measured their ratio is assumed, from which all costs follow but for a common factor.
///
/// What passes without drafts take is what drafting is compared with: the last ones that were measured count more than
/// the two numbers, the less the longer ago that was.
///
/// The two numbers are tracked by a Kalman filter over their logarithms. Machines that are busy elsewhere make passes
/// slower, never faster: a reading that is far too long counts as one that is a little too long.
class CostModel {
 public:
  explicit CostModel(const DecodeBytes& bytes);

  /// False until a window was observed: milliseconds mean nothing before, only their ratios do.
  [[nodiscard]] bool is_known() const { return windows_ > 0; }
  /// Costs are known well enough to choose drafts for so many sequences. For one they are before anything was measured,
  /// if its weights come from memory. Several first show in one plain pass how far they share experts. And where a pass
  /// takes microseconds, the first ones show cold caches and threads that wake up, and a few more cost nothing.
  [[nodiscard]] bool can_choose(int num_sequences) const {
    return is_warm_ || (num_sequences == 1 && !bytes_.in_cache);
  }
  /// Rows of the widest window that was measured; several sequences count by their mean, rounded up.
  [[nodiscard]] int widest_window() const { return widest_window_; }

  [[nodiscard]] double pass_ms(const PassShape& pass) const;
  /// What so many more rows of the same sequences add to a pass of one row each.
  [[nodiscard]] double further_rows_ms(int num_sequences, int num_rows) const;
  /// Most rows beyond one for each sequence that a pass of several had.
  [[nodiscard]] int most_further_rows() const { return most_further_rows_; }
  /// Passes since one without drafts of so many sequences was measured.
  [[nodiscard]] int passes_since_plain(int num_sequences) const {
    return plain_.num_spans == num_sequences ? plain_.age : kLongAgo;
  }
  /// Distinct experts of a pass, in units of one token's top-k: U.
  [[nodiscard]] double distinct_experts(const PassShape& pass) const;

  /// All drafts of a pass: sequences_by_draft[j] sequences make draft j + 1, falling. The MTP layer goes over the
  /// accepted tokens of all that draft and its head makes the first ones; each further step is one more pass through
  /// both.
  [[nodiscard]] double drafts_ms(std::span<const int> sequences_by_draft) const;
  /// What one more sequence adds that makes draft number `draft` (1: the first), where num_sequences make it already.
  [[nodiscard]] double another_draft_ms(int draft, int num_sequences) const;

  /// The drafter takes in tokens that it was not told of while drafting rested.
  [[nodiscard]] double catch_up_ms(int num_rows) const;

  /// A pass of windows (no prompt rows) took so long. distinct_experts: its U, 0 where it is not known.
  void observe_window(const PassShape& pass, double distinct_experts, double ms);
  /// A pass over prompt rows, alone or beside windows.
  void observe_prompt(const PassShape& pass, double distinct_experts, double ms);
  // Steps of num_sequences sequences at once. First: the head alone, after the refresh.
  void observe_first_draft(int num_sequences, double ms) { observe_draft(kFirst, num_sequences, ms); }
  void observe_step(int num_sequences, double ms) { observe_draft(kStep, num_sequences, ms); }
  void observe_refresh(int num_sequences, double ms) { observe_draft(kRefresh, num_sequences, ms); }

 private:
  static constexpr int kMaxResidualRows = 17, kLongAgo = 1 << 20;
  enum DraftPart { kFirst, kStep, kRefresh, kNumParts };

  struct Parts {
    double memory_ms = 0, arithmetic_ms = 0;
  };
  [[nodiscard]] Parts parts(const PassShape& pass, double distinct_experts) const;
  [[nodiscard]] double bytes(const PassShape& pass, double distinct_experts) const;
  [[nodiscard]] double residual(int num_rows) const;
  // By the two numbers and the residual.
  [[nodiscard]] double derived_ms(const PassShape& pass) const;
  void learn_plain(const PassShape& pass, double ms);
  // Of a part for num_sequences at once, as the bytes have it.
  [[nodiscard]] double assumed_draft_ms(DraftPart part, int num_sequences) const;
  [[nodiscard]] double draft_ms(DraftPart part, int num_sequences) const;

  [[nodiscard]] double assumed_row_share() const;
  // A plain pass takes so long, and its row's arithmetic is such a part of it.
  void set_plain(double ms, double row_share);
  void begin(const PassShape& pass, double distinct_experts, double ms);
  void learn(const PassShape& pass, double distinct_experts, double ms, double noise);
  void learn_overlap(const PassShape& pass, double distinct_experts);
  void observe_draft(DraftPart part, int num_sequences, double ms);

  const DecodeBytes bytes_;

  // Before the first window: the last long prompt chunk.
  PassShape prompt_;
  double prompt_experts_ = 0, prompt_ms_ = 0;

  int windows_ = 0;            // until is_warm_
  double plain_ms_ = 0;        // shortest of the first plain passes
  double plain_total_ms_ = 0;  // and their sum
  bool is_warm_ = false;
  int widest_window_ = 1;
  int most_further_rows_ = 0;

  double ms_per_byte_ = 0, ms_per_row_ = 0;
  // Covariance of the errors of log(ms_per_byte_) and log(ms_per_row_).
  double var_byte_ = 0, var_row_ = 0, cov_ = 0;
  // In independent rows: the first row of a further sequence, and a further row of the same sequence.
  double of_sequence_, of_row_;
  double var_sequence_, var_further_, cov_further_;

  // What passes of exactly n rows took beyond the two numbers, as logarithms: kernels change at some widths.
  struct Residual {
    double sum = 0, weight = 0;
  };
  std::array<Residual, kMaxResidualRows> residuals_{};

  // The last passes of one row for each of so many sequences.
  struct Plain {
    int num_spans = 0;
    double log_ms = 0;
    int age = 0;  // passes
  };
  Plain plain_;

  // Measured over assumed, as logarithms.
  struct Ratio {
    double log = 0;
    int count = 0;
  };
  std::array<Ratio, kNumParts> draft_ratio_{};
  // Before the first window: the last reading.
  struct Reading {
    int num_sequences = 0;
    double ms = 0;
  };
  std::array<Reading, kNumParts> waiting_{};
};

}  // namespace foretoken
