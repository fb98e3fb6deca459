#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/cpu/forward_pass.h"
#include "kernels/delta_net/delta_net.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"

namespace foretoken {

namespace {

// Value columns of a head's state that are worked on together: 128 keys x 64 columns of floats are 32 KiB, a
// first-level cache.
constexpr int kColumns = 64;

using Bank = RecurrentState::Bank;

// The raw row `back` rows before row 0 of the running pass (back >= 1), for a layer whose history has not moved yet.
const float* raw_before(const FloatRows& history, const Bank& old_bank, int kept, int taps, int back) {
  if (back <= kept) return old_bank.raw.row(kept - back);
  return history.row(taps - 1 - (back - kept));
}

}  // namespace

DeltaRow ForwardPass::delta_row(const DeltaNetShape& shape, const Bank& bank, int r, int64_t head, float* out) {
  const int64_t size = shape.state_size, key_dim = shape.key_dim(), key_head = shape.key_head_of(head);
  const float* mixed = bank.mixed.row(r);
  return {mixed + key_head * size,
          mixed + key_dim + key_head * size,
          mixed + 2 * key_dim + head * size,
          bank.decay.row(r)[head],
          bank.beta.row(r)[head],
          out};
}

void ForwardPass::advance_state(RecurrentState::Layer& layer, int64_t head, const std::vector<DeltaRow>& rows,
                                int num_committed, int thread_idx) {
  const int size = layer.shape.state_size;
  float* state = layer.state.data<float>() + head * size * size;
  for (int column = 0; column < size; column += kColumns) {
    foretoken::delta_net(isa_, state, size, rows.data(), static_cast<int>(rows.size()), num_committed, column,
                         std::min(column + kColumns, size), buffers_.delta_scratch.row(thread_idx));
  }
}

ForwardPass::BankRow ForwardPass::bank_row(const Span& span, RecurrentState::Layer& layer, int r) {
  if (!span.is_window) return {&buffers_.chunk, r};
  return {&layer.new_bank(span.sequence->turn), r - span.first_row};
}

void ForwardPass::delta_net(const DeltaNetWeights& weights, int recurrent_idx) {
  const auto layer_of = [&](const Span& span) -> RecurrentState::Layer& {
    return recurrent_.layer(recurrent_idx, span.sequence->slot);
  };
  const DeltaNetShape& shape = weights.shape;
  buffers_.delta_out.set_num_cols(weights.out.num_cols);
  raw_rows_.clear();
  for (int r = 0; r < num_rows_; ++r) {
    const BankRow at = bank_row(span_of(r), layer_of(span_of(r)), r);
    raw_rows_.push_back(at.bank->raw.row(at.row));
  }
  project(Work::kDeltaProjections, buffers_.normed,
          {{weights.qkv, raw_rows_},
           {weights.gate, buffers_.z},
           {weights.beta, buffers_.b},
           {weights.alpha, buffers_.alpha}});

  // Convolution and normalisation, an item for each head of q, k and v; one more item for the gates.
  const auto num_spans = static_cast<int64_t>(spans_.size());
  const int64_t num_heads = 2 * shape.num_key_heads + shape.num_value_heads;
  for_items(num_spans * (num_heads + 1), [&](int64_t item, int) {
    const Span& span = spans_[item / (num_heads + 1)];
    RecurrentState::Layer& layer = layer_of(span);
    const int64_t head = item % (num_heads + 1);
    if (head < num_heads) {
      convolve_head(weights, span, layer, head);
      return WorkDone{Work::kDeltaRecurrence, 0};
    }
    for (int r = span.first_row; r < span.end_row(); ++r) {
      const BankRow at = bank_row(span, layer, r);
      delta_gates(buffers_.b.row(r), buffers_.alpha.row(r), weights.a, weights.dt, shape.num_value_heads,
                  at.bank->beta.row(at.row), at.bank->decay.row(at.row));
      // Of infinity a sigmoid and an exponential make ordinary numbers.
      if (!std::isfinite(largest_magnitude(isa_, buffers_.b.row(r), shape.num_value_heads)) ||
          !std::isfinite(largest_magnitude(isa_, buffers_.alpha.row(r), shape.num_value_heads))) {
        note(r, FaultKind::kDeltaGates);
      }
    }
    return WorkDone{Work::kDeltaRecurrence, 0};
  });

  for_items(num_spans * shape.num_value_heads, [&](int64_t item, int thread_idx) {
    const Span& span = spans_[item / shape.num_value_heads];
    advance_head(weights, span, layer_of(span), item % shape.num_value_heads, thread_idx);
    return WorkDone{Work::kDeltaRecurrence,
                    2 * int64_t{shape.state_size} * shape.state_size * static_cast<int64_t>(sizeof(float))};
  });
  if (peers_ != nullptr)
    peers_->gather_mixer(layer_, buffers_.delta_out.row(0), buffers_.delta_out.num_cols(), num_rows_);
  const unsigned blocks = block_bits({&weights.out});
  for_rows([&](int64_t r, int) { quantise_forms(isa_, buffers_.delta_out, r, blocks); });
  project_to_hidden(Work::kDeltaProjections, buffers_.delta_out, weights.out);
  added(FaultKind::kDeltaNet);
}

void ForwardPass::settle(SequenceState& sequence) {
  const BankTurn& turn = sequence.turn;
  for (int i = 0; i < recurrent_.num_layers() && turn.kept > 0; ++i) {
    RecurrentState::Layer& layer = recurrent_.layer(i, sequence.slot);
    const Bank& bank = layer.old_bank(turn);
    const int taps = layer.shape.conv_taps;
    if (turn.replay > 0) {
      team_.parallel_for(layer.shape.num_value_heads, [&](int64_t head, int thread_idx) {
        std::vector<DeltaRow> rows;
        for (int r = turn.kept - turn.replay; r < turn.kept; ++r)
          rows.push_back(delta_row(layer.shape, bank, r, head, nullptr));
        advance_state(layer, head, rows, static_cast<int>(rows.size()), thread_idx);
      });
    }
    // The history moves to before the next row; see convolve_head.
    for (int j = 0; j < taps - 1; ++j) {
      const float* from = raw_before(layer.history, bank, turn.kept, taps, taps - 1 - j);
      if (from != layer.history.row(j))
        std::memcpy(layer.history.row(j), from, static_cast<size_t>(layer.shape.conv_channels()) * sizeof(float));
    }
  }
  sequence.turn.reset();
}

// Convolution of one head's channels of q, k or v, and the normalisation of q and k.
void ForwardPass::convolve_head(const DeltaNetWeights& weights, const Span& span, RecurrentState::Layer& layer,
                                int64_t head) {
  const BankTurn& turn = span.sequence->turn;
  const Bank& old_bank = layer.old_bank(turn);
  const int64_t size = layer.shape.state_size, begin = head * size, end = begin + size;
  const int taps = layer.shape.conv_taps;
  const BankRow first = bank_row(span, layer, span.first_row);
  // Raw row r of the span; before its first row (r < 0) a row of the passes before.
  const auto raw = [&](int r) -> const float* {
    return r >= 0 ? first.bank->raw.row(first.row + r) : raw_before(layer.history, old_bank, turn.kept, taps, -r);
  };
  thread_local std::vector<const float*> u;
  u.resize(taps);
  for (int r = 0; r < span.num_rows; ++r) {
    for (int j = 0; j < taps; ++j) u[j] = raw(r - (taps - 1) + j);
    float* mixed = first.bank->mixed.row(first.row + r);
    causal_conv(isa_, weights.conv, taps, u.data(), begin, end, mixed);
    if (head < 2 * layer.shape.num_key_heads &&
        !std::isfinite(l2_norm(isa_, mixed + begin, size, config_.norm_eps, mixed + begin))) {
      note(span.first_row + r, FaultKind::kDeltaInput);
    }
  }
  // This head's channels of the history move to where the next pass needs them: before bank new for a window
  // (invariant 1), behind the last row for a prompt chunk. Source rows are never older than their destination, so
  // rising order is safe in place.
  const int moved = span.is_window ? 0 : span.num_rows;
  for (int j = 0; j < taps - 1; ++j) {
    const float* from = raw(moved - (taps - 1) + j);
    float* to = layer.history.row(j);
    if (from != to) std::memcpy(to + begin, from + begin, static_cast<size_t>(size) * sizeof(float));
  }
}

// Brings one value head's state forward through the replayed rows and the first row of a window, or all rows of a
// chunk, and computes the outputs of all rows.
void ForwardPass::advance_head(const DeltaNetWeights& weights, const Span& span, RecurrentState::Layer& layer,
                               int64_t head, int thread_idx) {
  const BankTurn& turn = span.sequence->turn;
  const int64_t size = layer.shape.state_size, column = mixer_column(head * size);
  thread_local std::vector<DeltaRow> rows;
  rows.clear();
  rows.reserve(buffers_.delta_out.max_rows() + max_window_);
  for (int r = turn.kept - turn.replay; r < turn.kept; ++r)
    rows.push_back(delta_row(layer.shape, layer.old_bank(turn), r, head, nullptr));
  for (int r = span.first_row; r < span.end_row(); ++r) {
    const BankRow at = bank_row(span, layer, r);
    rows.push_back(delta_row(layer.shape, *at.bank, at.row, head, buffers_.delta_out.row(r) + column));
  }
  advance_state(layer, head, rows, turn.replay + (span.is_window ? 1 : span.num_rows), thread_idx);
  for (int r = span.first_row; r < span.end_row(); ++r) {
    float* out = buffers_.delta_out.row(r) + column;
    const float squares =
        rms_norm_gated(isa_, out, weights.norm, buffers_.z.row(r) + head * size, size, config_.norm_eps, out);
    if (!std::isfinite(squares)) note(r, FaultKind::kDeltaOutput);
  }
}

}  // namespace foretoken
