#include "mtp/cost_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/machine.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace foretoken {

namespace {

// The first row of a further sequence and a further row of a window as parts of an independent row, until passes show
// it. For the latter U(2..5) = 1.55 1.94 2.26 2.55 of 256 experts.
constexpr double kAssumedOfSequence = 1, kAssumedOfRow = 0.55;
constexpr double kOfSequenceError = 0.35, kOfRowError = 0.25, kOfBothCorrelation = 0.8;
constexpr double kDistinctNoise = 0.1;  // of the independent rows that a pass shows, as a part of them
// A pass. How far a text's next tokens resemble its last ones changes more quickly than how far texts resemble others.
constexpr double kOfSequenceDrift = 0.003, kOfRowDrift = 0.03;

// Arithmetic of one row as a share of a plain pass where no prompt told it: 0.2 on AVX2 and on AVX-512 VNNI.
constexpr double kAssumedRowShare = 0.2;
// In cache two rows take 1.5 times as long as one, three 2.0, four 2.5 (the matrix kernels on AVX2 and the whole
// demonstration model on AVX-512 VNNI alike): wide passes, whose kernels unpack once for many rows, do not show that.
constexpr double kCachedRowShare = 0.57;
// There a draft takes longer than its bytes say: work items are small, and threads wait for each other more often.
constexpr double kCachedDraftFactor = 1.6;
// Rows of a prompt chunk that tell the arithmetic of a row: fewer hide behind memory.
constexpr int kTellingPromptRows = 8;

// Logarithms of times.
constexpr double kWindowNoise = 0.06;  // passes of equal shape differ by 4 to 8% on a machine with other work
constexpr double kPromptNoise = 0.5;   // wide passes run in other kernels
constexpr double kFirstNoise = 0.1;    // the first window
constexpr double kDrift = 0.01;        // a pass
constexpr double kMaxError = 0.7;

// Plain passes at the start: one if it takes longer than this, up to four in this time.
constexpr double kWarmUpMs = 5;
constexpr int kMaxWarmUpPasses = 4;

// A residual is believed by half after as many passes of that width; a tenth is forgotten with each of these, and a
// twentieth with any other pass.
constexpr double kResidualDoubt = 3, kResidualMemory = 0.9, kResidualKept = 0.95;
// The first pass of a width that takes so much longer than the two numbers say shows a cost of that width.
constexpr double kJump = 0.25, kMostJump = 0.45;

// Passes after which a measured plain pass is believed by half.
constexpr double kPlainHalfLife = 16;
// One that takes longer than this factor's worth (e^0.15 = 1.16) counts as one that takes so long.
constexpr double kMostPlainExcess = 0.15;

constexpr double kDraftGain = 0.15;
// A draft step that takes longer than this factor's worth (e^0.8 = 2.2) counts as one that takes so long.
constexpr double kMaxDraftExcess = 0.8;

double size_of(const MatrixView& matrix) {
  return static_cast<double>(matrix.size_bytes());
}

double products_of(const MatrixView& matrix) {
  return static_cast<double>(matrix.num_rows) * static_cast<double>(matrix.num_cols);
}

/// What one token makes some layers read, in bytes, and multiply.
struct TokenCost {
  double dense = 0, routed = 0, products = 0;
};

/// Adds up that of a layer, or of the MTP layer.
auto cost_visit(const LayerWeights& layer, TokenCost& cost) {
  return WeightVisit{
      [&](WeightRole, const MatrixView& matrix) {
        cost.dense += size_of(matrix);
        cost.products += products_of(matrix);
      },
      [](WeightRole, const VectorView&) {},
      [&](WeightRole, const ExpertMatrices& experts) {
        cost.routed += size_of(experts.expert(0)) * layer.moe().top_k;
        cost.products += products_of(experts.expert(0)) * layer.moe().top_k;
      },
  };
}

}  // namespace

DecodeBytes decode_bytes(const Model& model, int64_t draft_rows, Device device) {
  const ModelConfig& config = model.config();
  const ModelWeights& weights = model.weights();
  DecodeBytes bytes;
  bytes.in_cache = device == Device::kCpu && weights.matrix_bytes <= last_level_cache_bytes();
  TokenCost trunk, mtp;
  for (const LayerWeights& layer : weights.layers) {
    LayerWeights::for_each(cost_visit(layer, trunk), layer);
    if (!layer.is_recurrent()) continue;
    const DeltaNetShape& shape = layer.delta_net().shape;
    bytes.sequence += 2.0 * sizeof(float) * static_cast<double>(shape.state_values() + shape.history_values());
  }
  bytes.head = size_of(weights.head);
  bytes.head_share = products_of(weights.head) / (trunk.products + products_of(weights.head));
  bytes.dense = trunk.dense + bytes.head;
  bytes.routed = trunk.routed;
  if (config.num_experts > 0) bytes.top_k_share = static_cast<double>(config.experts_per_token) / config.num_experts;
  if (config.num_mtp_layers == 0) return bytes;
  MtpWeights::for_each(cost_visit(weights.mtp.layer, mtp), weights.mtp);
  bytes.mtp_dense = mtp.dense;
  bytes.mtp_routed = mtp.routed;
  const double share = draft_rows == 0 ? 1.0 : static_cast<double>(draft_rows) / static_cast<double>(config.vocab_size);
  bytes.draft_head = size_of(weights.mtp.head) * std::min(share, 1.0);
  return bytes;
}

CostModel::CostModel(const DecodeBytes& bytes)
    : bytes_(bytes),
      of_sequence_(kAssumedOfSequence),
      of_row_(kAssumedOfRow),
      var_sequence_(kOfSequenceError * kOfSequenceError),
      var_further_(kOfRowError * kOfRowError),
      cov_further_(kOfBothCorrelation * kOfSequenceError * kOfRowError) {
  // In milliseconds of a plain pass: none was measured yet.
  set_plain(1, assumed_row_share());
  if (!bytes_.in_cache) return;
  for (Ratio& ratio : draft_ratio_) ratio.log = std::log(kCachedDraftFactor);
}

// Independent rows r read 1 - (1 - share)^r of all experts.
double CostModel::distinct_experts(const PassShape& pass) const {
  if (bytes_.top_k_share <= 0) return 0;
  if (bytes_.top_k_share >= 1) return 1;
  const double rows = 1 + of_sequence_ * (pass.num_spans - 1) + of_row_ * (pass.num_rows - pass.num_spans);
  return -std::expm1(rows * std::log1p(-bytes_.top_k_share)) / bytes_.top_k_share;
}

// A Kalman filter over the two parts. A pass that reads nearly all experts tells little.
void CostModel::learn_overlap(const PassShape& pass, double distinct_experts) {
  const double share = bytes_.top_k_share;
  const double sequences = pass.num_spans - 1, further = pass.num_rows - pass.num_spans;
  if (share <= 0 || share >= 1 || sequences + further <= 0 || !(distinct_experts > 0)) return;
  const double read = std::min(distinct_experts * share, 0.99);
  const double rows = std::log1p(-read) / std::log1p(-share);
  const double noise = kDistinctNoise * rows / (1 - read);
  const double to_sequence = var_sequence_ * sequences + cov_further_ * further;
  const double to_row = cov_further_ * sequences + var_further_ * further;
  const double expected = to_sequence * sequences + to_row * further + noise * noise;
  const double surprise = rows - (1 + of_sequence_ * sequences + of_row_ * further);
  of_sequence_ = std::clamp(of_sequence_ + surprise * to_sequence / expected, 0.0, 1.0);
  of_row_ = std::clamp(of_row_ + surprise * to_row / expected, 0.0, 1.0);
  var_sequence_ += kOfSequenceDrift * kOfSequenceDrift - to_sequence * to_sequence / expected;
  var_further_ += kOfRowDrift * kOfRowDrift - to_row * to_row / expected;
  cov_further_ -= to_sequence * to_row / expected;
}

double CostModel::bytes(const PassShape& pass, double distinct_experts) const {
  const double dense = bytes_.dense - (pass.prompt_rows == pass.num_rows ? bytes_.head : 0);
  return std::max(dense + bytes_.routed * distinct_experts + bytes_.sequence * pass.num_spans, 1.0);
}

CostModel::Parts CostModel::parts(const PassShape& pass, double distinct_experts) const {
  return {ms_per_byte_ * bytes(pass, distinct_experts),
          ms_per_row_ * (pass.num_rows - pass.prompt_rows * bytes_.head_share)};
}

double CostModel::residual(int num_rows) const {
  // Of the nearest width that ran and is not wider. Halfway values between two widths that ran were tried: one wide
  // pass in a slow moment then kept all narrower ones from being tried.
  for (int n = std::min(num_rows, kMaxResidualRows - 1); n >= 1; --n) {
    const Residual& r = residuals_[n];
    if (r.weight > 0) return r.sum / (r.weight + kResidualDoubt);
  }
  return 0;
}

double CostModel::pass_ms(const PassShape& pass) const {
  const double derived = derived_ms(pass);
  if (pass.num_rows != pass.num_spans || pass.num_spans != plain_.num_spans) return derived;
  return derived * std::exp((plain_.log_ms - std::log(derived)) * std::exp2(-plain_.age / kPlainHalfLife));
}

double CostModel::further_rows_ms(int num_sequences, int num_rows) const {
  return derived_ms({num_sequences, num_sequences + num_rows}) - derived_ms({num_sequences, num_sequences});
}

void CostModel::learn_plain(const PassShape& pass, double ms) {
  ++plain_.age;
  if (pass.num_rows != pass.num_spans) return;
  const double before = std::log(pass_ms(pass)), last = std::min(std::log(ms), before + kMostPlainExcess);
  const bool is_like_before = plain_.num_spans == pass.num_spans && plain_.age < kPlainHalfLife;
  plain_ = {pass.num_spans, is_like_before ? (before + last) / 2 : last, 0};
}

double CostModel::derived_ms(const PassShape& pass) const {
  const Parts p = parts(pass, distinct_experts(pass));
  return std::hypot(p.memory_ms, p.arithmetic_ms) * std::exp(residual(pass.num_rows));
}

double CostModel::assumed_draft_ms(DraftPart part, int num_sequences) const {
  double layer = 0, head = 0;
  if (part != kFirst) {
    const double u = distinct_experts({num_sequences, num_sequences});
    layer = bytes_.mtp_dense + bytes_.mtp_routed * u;
  }
  if (part != kRefresh) head = bytes_.draft_head;
  // Arithmetic in proportion to the bytes that one row meets.
  const double one_row = bytes({1, 1}, distinct_experts({1, 1}));
  const double met = (part != kFirst ? bytes_.mtp_dense + bytes_.mtp_routed : 0) + head;
  return std::hypot(ms_per_byte_ * (layer + head), ms_per_row_ * num_sequences * met / one_row);
}

double CostModel::draft_ms(DraftPart part, int num_sequences) const {
  return assumed_draft_ms(part, num_sequences) * std::exp(draft_ratio_[part].log);
}

double CostModel::another_draft_ms(int draft, int num_sequences) const {
  const auto cost = [&](int sequences) {
    if (sequences == 0) return 0.0;
    return draft == 1 ? draft_ms(kRefresh, sequences) + draft_ms(kFirst, sequences) : draft_ms(kStep, sequences);
  };
  return cost(num_sequences + 1) - cost(num_sequences);
}

double CostModel::drafts_ms(std::span<const int> sequences_by_draft) const {
  double ms = 0;
  for (size_t j = 0; j < sequences_by_draft.size() && sequences_by_draft[j] > 0; ++j) {
    const int sequences = sequences_by_draft[j];
    ms += j == 0 ? draft_ms(kRefresh, sequences) + draft_ms(kFirst, sequences) : draft_ms(kStep, sequences);
  }
  return ms;
}

double CostModel::assumed_row_share() const {
  return bytes_.in_cache ? kCachedRowShare : kAssumedRowShare;
}

void CostModel::set_plain(double ms, double row_share) {
  const PassShape plain;
  ms_per_row_ = row_share * ms;
  ms_per_byte_ = std::sqrt(1 - row_share * row_share) * ms / bytes(plain, distinct_experts(plain));
}

// The two numbers from the first window, whose rows are taken for the assumed share of a plain pass, and then from the
// prompt.
void CostModel::begin(const PassShape& pass, double distinct_experts, double ms) {
  const PassShape plain;
  const double plain_bytes = bytes(plain, this->distinct_experts(plain)), share = assumed_row_share();
  const double memory_share = bytes(pass, distinct_experts) / plain_bytes;
  const double plain_ms = ms / std::hypot(std::sqrt(1 - share * share) * memory_share, share * pass.num_rows);
  set_plain(plain_ms, share);

  // What this one reading leaves open.
  const Parts p = parts(pass, distinct_experts);
  const double by_byte = p.memory_ms * p.memory_ms / (ms * ms), by_row = 1 - by_byte;
  const double to_byte = kMaxError * kMaxError * by_byte, to_row = kMaxError * kMaxError * by_row;
  const double expected = to_byte * by_byte + to_row * by_row + kFirstNoise * kFirstNoise;
  var_byte_ = kMaxError * kMaxError - to_byte * to_byte / expected;
  var_row_ = kMaxError * kMaxError - to_row * to_row / expected;
  cov_ = -to_byte * to_row / expected;

  if (prompt_.num_rows < kTellingPromptRows) return;
  const double u = prompt_experts_ > 0 ? prompt_experts_ : this->distinct_experts(prompt_);
  // A prompt that had to wait for its file, or for kernels being loaded, tells nothing.
  const double memory = ms_per_byte_ * bytes(prompt_, u);
  if (std::hypot(memory, plain_ms * prompt_.num_rows) < prompt_ms_) return;
  learn(prompt_, u, prompt_ms_, kPromptNoise);
  if (bytes_.in_cache && ms_per_row_ < share * plain_ms) set_plain(plain_ms, share);
}

void CostModel::learn(const PassShape& pass, double distinct_experts, double ms, double noise) {
  const Parts p = parts(pass, distinct_experts);
  const double square = p.memory_ms * p.memory_ms + p.arithmetic_ms * p.arithmetic_ms;
  const double by_byte = p.memory_ms * p.memory_ms / square, by_row = 1 - by_byte;
  const double raw = std::log(ms) - 0.5 * std::log(square);
  double surprise = raw - residual(pass.num_rows);
  if (pass.num_rows < kMaxResidualRows && surprise > kJump) {
    Residual& r = residuals_[pass.num_rows];
    if (r.weight < 0.1) {
      // Other kernels, or a moment in which the machine was busy: nothing about narrower passes.
      r = {kResidualDoubt * std::min(raw, kMostJump), kResidualDoubt};
      return;
    }
  }

  const auto variance = [&] {
    return by_byte * by_byte * var_byte_ + 2 * by_byte * by_row * cov_ + by_row * by_row * var_row_ + noise * noise;
  };
  double expected = variance();
  if (surprise < 0 && surprise * surprise > 9 * expected) {
    // Far quicker than thought: what was believed came from slower times.
    var_byte_ *= 4;
    var_row_ *= 4;
    cov_ *= 4;
    expected = variance();
  }
  surprise = std::clamp(surprise, -3 * std::sqrt(expected), 2 * std::sqrt(expected));
  const double to_byte = var_byte_ * by_byte + cov_ * by_row, to_row = cov_ * by_byte + var_row_ * by_row;
  ms_per_byte_ *= std::exp(surprise * to_byte / expected);
  ms_per_row_ *= std::exp(surprise * to_row / expected);
  var_byte_ += kDrift * kDrift - to_byte * to_byte / expected;
  var_row_ += kDrift * kDrift - to_row * to_row / expected;
  cov_ -= to_byte * to_row / expected;
  if (var_row_ > kMaxError * kMaxError) {
    cov_ *= kMaxError / std::sqrt(var_row_);
    var_row_ = kMaxError * kMaxError;
  }

  for (Residual& r : residuals_) {
    r.sum *= kResidualKept;
    r.weight *= kResidualKept;
  }
  if (pass.num_rows >= kMaxResidualRows) return;
  const Parts now = parts(pass, distinct_experts);
  const double left = std::log(ms / std::hypot(now.memory_ms, now.arithmetic_ms));
  Residual& r = residuals_[pass.num_rows];
  r.sum = kResidualMemory * r.sum + std::clamp(left, -0.3, 0.3);
  r.weight = kResidualMemory * r.weight + 1;
}

void CostModel::observe_window(const PassShape& pass, double distinct_experts, double ms) {
  if (!(ms > 0)) return;
  const double u = distinct_experts > 0 ? distinct_experts : this->distinct_experts(pass);
  learn_overlap(pass, distinct_experts);
  widest_window_ = std::max(widest_window_, (pass.num_rows + pass.num_spans - 1) / pass.num_spans);
  if (pass.num_spans > 1) most_further_rows_ = std::max(most_further_rows_, pass.num_rows - pass.num_spans);
  if (is_warm_) {
    learn_plain(pass, ms);
    learn(pass, u, ms, kWindowNoise);
    return;
  }

  const bool is_plain = pass.num_rows == 1;
  if (is_plain) {
    plain_ms_ = plain_total_ms_ == 0 ? ms : std::min(plain_ms_, ms);
    plain_total_ms_ += ms;
  }
  const double first_ms = is_plain ? plain_ms_ : ms;
  begin(pass, u, first_ms);
  if (pass.num_rows == pass.num_spans) plain_ = {pass.num_spans, std::log(first_ms), 0};
  ++windows_;
  is_warm_ = !is_plain || plain_total_ms_ >= kWarmUpMs || windows_ >= kMaxWarmUpPasses;
  for (size_t part = 0; part < kNumParts; ++part) {
    const Reading reading = std::exchange(waiting_[part], {});
    if (reading.num_sequences > 0) observe_draft(static_cast<DraftPart>(part), reading.num_sequences, reading.ms);
  }
}

void CostModel::observe_prompt(const PassShape& pass, double distinct_experts, double ms) {
  if (!(ms > 0)) return;
  learn_overlap(pass, distinct_experts);
  if (!is_known()) {
    // The last chunk, unless it is a short rest: the first one wakes everything up.
    if (2 * pass.num_rows < prompt_.num_rows) return;
    prompt_ = pass;
    prompt_experts_ = distinct_experts;
    prompt_ms_ = ms;
    return;
  }
  const double u = distinct_experts > 0 ? distinct_experts : this->distinct_experts(pass);
  learn(pass, u, ms, kPromptNoise);
}

// Arithmetic in proportion to the bytes: joining, key and value of many rows in one pass. 0.26 ms a row on the eight
// layers of a 35B-A3B and 5.6 us on the demonstration model, where 0.2 and 4 were measured.
double CostModel::catch_up_ms(int num_rows) const {
  return num_rows * ms_per_row_ * bytes_.mtp_dense / bytes({1, 1}, distinct_experts({1, 1}));
}

void CostModel::observe_draft(DraftPart part, int num_sequences, double ms) {
  if (!(ms >= 0) || num_sequences < 1) return;
  if (!is_known()) {
    waiting_[part] = {num_sequences, ms};
    return;
  }
  const double assumed = assumed_draft_ms(part, num_sequences);
  if (!(assumed > 0)) return;
  Ratio& ratio = draft_ratio_[part];
  // A part that costs nothing (a device makes the first draft with the refresh) is a small share of what was assumed.
  const double surprise = std::log(std::max(ms / assumed, 1e-3)) - ratio.log;
  ++ratio.count;
  const double gain = std::max(kDraftGain, 1.0 / (ratio.count + 0.5));
  ratio.log += gain * std::min(surprise, kMaxDraftExcess);
}

}  // namespace foretoken
