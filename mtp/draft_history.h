#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace foretoken {

/// How often drafts were right, by the confidence that the drafter had in them.
///
/// Before anything was counted a draft is taken to be right as often as its confidence says. Two things correct that
/// together: what all drafts show about confidences in general (a drafter that is always sure and never right is found
/// out by its first few drafts, whatever their confidence), and what drafts of like confidence show.
class AcceptanceCounts {
 public:
  /// confidences [drafted]; the first num_accepted were right, the next was wrong, those behind it were never judged.
  void count(std::span<const float> confidences, int num_accepted);

  [[nodiscard]] bool has_counted() const { return overall_.all > 0; }

  /// Probability that a draft is right, of this confidence or of one not known yet. is_batch: several sequences draft.
  [[nodiscard]] double rate(float confidence) const;
  [[nodiscard]] double rate(bool is_batch) const;

 private:
  friend class DraftHistory;
  static constexpr int kBins = 8;
  struct Rate {
    double right, all;
  };
  [[nodiscard]] static size_t bin_of(float confidence);
  [[nodiscard]] static double promised(size_t bin);

  std::array<Rate, kBins> by_confidence_{};
  Rate overall_{0, 0};
  Rate of_promised_{0, 0};  // right drafts, and how many the confidences promised
};

/// What the controller knows of one sequence: how often its drafts were right, seen on the ground of all sequences'
/// drafts, and whether it rests from drafting.
class DraftHistory {
 public:
  /// Drafts that other sequences' counts weigh as much as.
  static constexpr double kSharedWeight = 12;

  [[nodiscard]] double rate(const AcceptanceCounts& shared, float confidence) const;
  [[nodiscard]] double rate(const AcceptanceCounts& shared, bool is_batch) const;

 private:
  friend class DraftController;
  AcceptanceCounts own_;

  // In tokens of plain decoding: what drafting has lost lately, what resting has saved up for a probe, what a probe
  // costs if its draft is wrong.
  double lost_ = 0, saved_ = 0, probe_cost_ = 0;
  double saving_rate_ = 0;  // a pass
  int rested_ = 0;          // passes
  bool is_resting_ = false;
  bool is_probing_ = false;
};

}  // namespace foretoken
