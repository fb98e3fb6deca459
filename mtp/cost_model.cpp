#include "mtp/cost_model.h"

#include <algorithm>
#include <cmath>

#include "engine/machine.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace foretoken {

namespace {

// A further row of a window as a part of an independent row, until passes show it: U(2..5) = 1.55 1.94 2.26 2.55 of 256
// experts.
constexpr double kAssumedOverlap = 0.55;
constexpr double kAssumedOverlapWeight = 4;  // further rows that weigh as much
constexpr double kOverlapMemory = 200;       // further rows that are remembered

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
constexpr double kPromptNoise = 0.3;   // wide passes run in other kernels
constexpr double kByteError = 0.1;     // after one plain pass
constexpr double kRowErrorWithPrompt = 0.35, kRowErrorWithout = 0.7;
constexpr double kDrift = 0.01;  // a pass
constexpr double kMaxError = 0.7;

// Plain passes at the start: one if it takes longer than this, up to four in this time.
constexpr double kWarmUpMs = 5;
constexpr int kMaxWarmUpPasses = 4;

// A residual is believed by half after as many passes of that width; a tenth is forgotten with each.
constexpr double kResidualDoubt = 3, kResidualMemory = 0.9;

constexpr double kDraftGain = 0.15;
// A draft step that takes longer than this factor's worth (e^0.8 = 2.2) counts as one that takes so long.
constexpr double kMaxDraftExcess = 0.8;

double size_of(const MatrixView& matrix) {
  return static_cast<double>(matrix.size_bytes());
}

/// Adds up what one token makes a layer, or the MTP layer, read.
auto bytes_visit(const LayerWeights& layer, double& dense, double& routed) {
  return WeightVisit{
      [&](WeightRole, const MatrixView& matrix) { dense += size_of(matrix); },
      [](WeightRole, const VectorView&) {},
      [&](WeightRole, const ExpertMatrices& experts) { routed += size_of(experts.expert(0)) * layer.moe().top_k; },
  };
}

}  // namespace

DecodeBytes decode_bytes(const Model& model, int64_t draft_rows, Device device) {
  const ModelConfig& config = model.config();
  const ModelWeights& weights = model.weights();
  DecodeBytes bytes;
  bytes.in_cache = device == Device::kCpu && weights.matrix_bytes <= last_level_cache_bytes();
  for (const LayerWeights& layer : weights.layers) {
    LayerWeights::for_each(bytes_visit(layer, bytes.dense, bytes.routed), layer);
    if (!layer.is_recurrent()) continue;
    const DeltaNetShape& shape = layer.delta_net().shape;
    bytes.sequence += 2.0 * sizeof(float) * static_cast<double>(shape.state_values() + shape.history_values());
  }
  bytes.dense += size_of(weights.head);
  if (config.num_experts > 0) bytes.top_k_share = static_cast<double>(config.experts_per_token) / config.num_experts;
  if (config.num_mtp_layers == 0) return bytes;
  MtpWeights::for_each(bytes_visit(weights.mtp.layer, bytes.mtp_dense, bytes.mtp_routed), weights.mtp);
  const double share = draft_rows == 0 ? 1.0 : static_cast<double>(draft_rows) / static_cast<double>(config.vocab_size);
  bytes.draft_head = size_of(weights.mtp.head) * std::min(share, 1.0);
  return bytes;
}

CostModel::CostModel(const DecodeBytes& bytes)
    : bytes_(bytes), row_overlap_(kAssumedOverlap), overlap_weight_(kAssumedOverlapWeight) {
  if (!bytes_.in_cache) return;
  for (Ratio& ratio : draft_ratio_) ratio.log = std::log(kCachedDraftFactor);
}

// Independent rows r read 1 - (1 - share)^r of all experts.
double CostModel::distinct_experts(const PassShape& pass) const {
  if (bytes_.top_k_share <= 0) return 0;
  if (bytes_.top_k_share >= 1) return 1;
  const double rows = pass.num_spans + row_overlap_ * (pass.num_rows - pass.num_spans);
  return -std::expm1(rows * std::log1p(-bytes_.top_k_share)) / bytes_.top_k_share;
}

void CostModel::learn_overlap(const PassShape& pass, double distinct_experts) {
  const double share = bytes_.top_k_share;
  const int further = pass.num_rows - pass.num_spans;
  if (share <= 0 || share >= 1 || further <= 0 || !(distinct_experts > 0)) return;
  const double read = std::min(distinct_experts * share, 0.99);
  const double rows = std::log1p(-read) / std::log1p(-share);
  const double overlap = std::clamp((rows - pass.num_spans) / further, 0.0, 1.0);
  // Long prompts show all experts and tell nothing of a window.
  const double weight = std::min(further, 8);
  overlap_weight_ = std::min(overlap_weight_ + weight, kOverlapMemory);
  row_overlap_ += (overlap - row_overlap_) * weight / overlap_weight_;
}

double CostModel::bytes(const PassShape& pass, double distinct_experts) const {
  return std::max(bytes_.dense + bytes_.routed * distinct_experts + bytes_.sequence * pass.num_spans, 1.0);
}

CostModel::Parts CostModel::parts(const PassShape& pass, double distinct_experts) const {
  return {ms_per_byte_ * bytes(pass, distinct_experts), ms_per_row_ * pass.num_rows};
}

double CostModel::residual(int num_rows) const {
  // Of the nearest width that ran and is not wider.
  for (int n = std::min(num_rows, kMaxResidualRows - 1); n >= 1; --n) {
    const Residual& r = residuals_[static_cast<size_t>(n)];
    if (r.weight > 0) return r.sum / (r.weight + kResidualDoubt);
  }
  return 0;
}

double CostModel::pass_ms(const PassShape& pass) const {
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

// The two numbers from a plain pass and, where there was one, the prompt.
void CostModel::begin(double plain_ms) {
  const PassShape plain;
  const double plain_bytes = bytes(plain, distinct_experts(plain));
  ms_per_row_ = kAssumedRowShare * plain_ms;
  bool told = false;
  if (prompt_.num_rows >= kTellingPromptRows) {
    const double u = prompt_experts_ > 0 ? prompt_experts_ : distinct_experts(prompt_);
    const double memory = plain_ms * bytes(prompt_, u) / plain_bytes;
    const double rest = prompt_ms_ * prompt_ms_ - memory * memory;
    // A prompt that had to wait for its file, or for kernels being loaded, tells nothing.
    const double row = rest > 0 ? std::sqrt(rest) / prompt_.num_rows : 0;
    told = row < plain_ms;
    if (told) ms_per_row_ = std::max(row, 0.02 * plain_ms);
  }
  if (bytes_.in_cache) ms_per_row_ = std::max(ms_per_row_, kCachedRowShare * plain_ms);
  ms_per_row_ = std::min(ms_per_row_, 0.7 * plain_ms);
  ms_per_byte_ = std::sqrt(plain_ms * plain_ms - ms_per_row_ * ms_per_row_) / plain_bytes;
  var_byte_ = kByteError * kByteError;
  var_row_ = told ? kRowErrorWithPrompt * kRowErrorWithPrompt : kRowErrorWithout * kRowErrorWithout;
  cov_ = 0;
}

void CostModel::learn(const PassShape& pass, double distinct_experts, double ms, double noise) {
  const Parts p = parts(pass, distinct_experts);
  const double square = p.memory_ms * p.memory_ms + p.arithmetic_ms * p.arithmetic_ms;
  const double by_byte = p.memory_ms * p.memory_ms / square, by_row = 1 - by_byte;
  const double raw = std::log(ms) - 0.5 * std::log(square);
  double surprise = raw - residual(pass.num_rows);

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

  if (pass.num_rows >= kMaxResidualRows) return;
  const Parts now = parts(pass, distinct_experts);
  const double left = std::log(ms / std::hypot(now.memory_ms, now.arithmetic_ms));
  Residual& r = residuals_[static_cast<size_t>(pass.num_rows)];
  r.sum = kResidualMemory * r.sum + std::clamp(left, -0.3, 0.3);
  r.weight = kResidualMemory * r.weight + 1;
}

void CostModel::observe_window(const PassShape& pass, double distinct_experts, double ms) {
  if (!(ms > 0)) return;
  const double u = distinct_experts > 0 ? distinct_experts : this->distinct_experts(pass);
  learn_overlap(pass, distinct_experts);
  const bool is_plain = pass.num_rows == 1;
  if (!is_warm_ && is_plain) {
    plain_ms_ = plain_passes_ == 0 ? ms : std::min(plain_ms_, ms);
    plain_total_ms_ += ms;
    ++plain_passes_;
    begin(plain_ms_);
    is_warm_ = plain_total_ms_ >= kWarmUpMs || plain_passes_ >= kMaxWarmUpPasses;
    return;
  }
  if (plain_passes_ == 0) {
    // The first pass is one of several sequences, or was forced to have drafts.
    begin(ms * bytes({1, 1}, this->distinct_experts({1, 1})) / bytes(pass, u));
    var_byte_ = kMaxError * kMaxError;
    plain_passes_ = 1;
    is_warm_ = true;
  }
  widest_window_ = std::max(widest_window_, (pass.num_rows + pass.num_spans - 1) / pass.num_spans);
  learn(pass, u, ms, kWindowNoise);
}

void CostModel::observe_prompt(const PassShape& pass, double distinct_experts, double ms) {
  if (!(ms > 0)) return;
  learn_overlap(pass, distinct_experts);
  if (plain_passes_ == 0) {
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
  if (!(ms >= 0) || num_sequences < 1 || !is_known()) return;
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
