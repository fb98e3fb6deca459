#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/cpu/forward_pass.h"
#include "kernels/delta_net/delta_net.h"
#include "kernels/rows/rms_norm.h"

namespace foretoken {

namespace {

// Value columns of a head's state that are worked on together: 128 keys x 64 columns of floats are 32 KiB, a
// first-level cache.
constexpr int kColumns = 64;

using Slot = RecurrentState::Slot;

// The raw row `back` rows before row 0 of the running pass (back >= 1), for a layer whose history has not moved yet.
const float* raw_before(const FloatRows& history, const Slot& old_slot, int kept, int taps, int back) {
  if (back <= kept) return old_slot.raw.row(kept - back);
  return history.row(taps - 1 - (back - kept));
}

}  // namespace

void ForwardPass::delta_net(const DeltaNetWeights& weights, RecurrentState& state, int recurrent_idx, bool in_slot) {
  RecurrentState::Layer& layer = state.layer(recurrent_idx);
  const Slot& old_slot = state.old_slot(layer);
  Slot& slot = in_slot ? state.new_slot(layer) : buffers_.wide;
  const int64_t size = config_.state_size, key_dim = config_.key_dim();
  const int kept = state.kept(), replay = state.replay(), taps = config_.conv_taps;
  const int key_heads = config_.num_key_heads, value_heads = config_.num_value_heads;

  project(Work::kDeltaProjections, buffers_.normed,
          {{weights.qkv, slot.raw},
           {weights.gate, buffers_.z},
           {weights.beta, buffers_.b},
           {weights.alpha, buffers_.alpha}});

  // Convolution and normalisation, an item for each head of q, k and v; one more item for the gates.
  for_items(2 * key_heads + value_heads + 1, [&](int64_t head, int) {
    if (head == 2 * key_heads + value_heads) {
      for (int64_t r = 0; r < num_rows_; ++r) {
        delta_gates(buffers_.b.row(r), buffers_.alpha.row(r), weights.a, weights.dt, value_heads, slot.beta.row(r),
                    slot.decay.row(r));
      }
      return WorkDone{Work::kDeltaRecurrence, 0};
    }
    const int64_t begin = head * size, end = begin + size;
    thread_local std::vector<const float*> u;
    u.resize(static_cast<size_t>(taps));
    for (int r = 0; r < num_rows_; ++r) {
      for (int j = 0; j < taps; ++j) {
        const int at = r - (taps - 1) + j;
        u[static_cast<size_t>(j)] = at >= 0 ? slot.raw.row(at) : raw_before(layer.history, old_slot, kept, taps, -at);
      }
      causal_conv(isa_, weights.conv, taps, u.data(), begin, end, slot.mixed.row(r));
      float* channels = slot.mixed.row(r) + begin;
      if (head < 2 * key_heads) l2_norm(isa_, channels, size, config_.norm_eps, channels);
    }
    // This head's channels of the history move to where the next pass needs them: before slot new for a window
    // (invariant 1), behind the last row for a prompt chunk. Source rows are never older than their destination, so
    // rising order is safe in place.
    const int moved = in_slot ? 0 : num_rows_;
    for (int j = 0; j < taps - 1; ++j) {
      const int at = moved - (taps - 1) + j;
      const float* from = at >= 0 ? slot.raw.row(at) : raw_before(layer.history, old_slot, kept, taps, -at);
      float* to = layer.history.row(j);
      if (from != to) std::memcpy(to + begin, from + begin, static_cast<size_t>(size) * sizeof(float));
    }
    return WorkDone{Work::kDeltaRecurrence, 0};
  });

  const unsigned blocks = block_bits({&weights.out});
  for_items(value_heads, [&](int64_t head, int thread_idx) {
    const int64_t key_head = head % key_heads;
    thread_local std::vector<DeltaRow> rows;
    rows.clear();
    const auto row_of = [&](const Slot& from, int r, float* out) {
      const float* mixed = from.mixed.row(r);
      return DeltaRow{mixed + key_head * size,
                      mixed + key_dim + key_head * size,
                      mixed + 2 * key_dim + head * size,
                      from.decay.row(r)[head],
                      from.beta.row(r)[head],
                      out};
    };
    for (int r = kept - replay; r < kept; ++r) rows.push_back(row_of(old_slot, r, nullptr));
    for (int r = 0; r < num_rows_; ++r) rows.push_back(row_of(slot, r, buffers_.delta_out.row(r) + head * size));
    const int num_committed = replay + (in_slot ? 1 : num_rows_);
    float* head_state = layer.state.data<float>() + head * size * size;
    for (int column = 0; column < size; column += kColumns) {
      foretoken::delta_net(isa_, head_state, static_cast<int>(size), rows.data(), static_cast<int>(rows.size()),
                           num_committed, column, std::min(column + kColumns, static_cast<int>(size)),
                           buffers_.delta_scratch.row(thread_idx));
    }
    for (int64_t r = 0; r < num_rows_; ++r) {
      float* out = buffers_.delta_out.row(r) + head * size;
      rms_norm_gated(isa_, out, weights.norm, buffers_.z.row(r) + head * size, size, config_.norm_eps, out);
    }
    return WorkDone{Work::kDeltaRecurrence, 2 * size * size * static_cast<int64_t>(sizeof(float))};
  });
  for_rows([&](int64_t r, int) { quantise_forms(isa_, buffers_.delta_out, r, blocks); });
  project(Work::kDeltaProjections, buffers_.delta_out, {{weights.out, buffers_.mixed}});
}

}  // namespace foretoken
