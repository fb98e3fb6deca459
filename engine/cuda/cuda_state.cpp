#include "engine/cuda/cuda_state.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken::cuda {

void CudaState::allocate(const Stream& stream) {
  kv_memory_.allocate("the KV cache");
  tables_.allocate("the tables of pages");
  recurrent_memory_.allocate("the recurrent state");
  recurrent_memory_.clear(stream);
  for (size_t i = 0; i < kv.size(); ++i) {
    DeviceKv& layer = kv[i];
    layer.data = pages_ + shape_.layer(static_cast<int>(i)).offset;
    layer.page_stride = shape_.page_bytes() / kv_value_bytes(shape_.type());
    layer.pages = table_.device;
    layer.pages_per_sequence = pages_per_sequence_;
    layer.type = shape_.type();
  }
}

void CudaState::set_pages(const SequenceState& sequence) {
  FT_CHECK(sequence.slot >= 0 && sequence.slot < parallel_);
  FT_CHECK(static_cast<int64_t>(sequence.pages.size()) <= pages_per_sequence_);
  int32_t* to = table_.host + sequence.slot * pages_per_sequence_;
  if (std::equal(sequence.pages.begin(), sequence.pages.end(), to)) return;
  std::copy(sequence.pages.begin(), sequence.pages.end(), to);
  table_changed_ = true;
}

void CudaState::send_pages(const Stream& stream) {
  if (!table_changed_) return;
  tables_.send(stream);
  table_changed_ = false;
}

void CudaState::reset(const Stream& stream, int slot) {
  for (const Piece& piece : state_pieces(slot)) fill_zero(stream, piece.data, piece.size_bytes);
}

std::vector<CudaState::Piece> CudaState::state_pieces(int slot) const {
  std::vector<Piece> pieces;
  for (const Recurrent& layer : recurrent) {
    const int64_t state = layer.shape.state_values(), history = layer.shape.history_values();
    pieces.push_back({layer.state + slot * state, static_cast<size_t>(state) * sizeof(float)});
    pieces.push_back({layer.history + slot * history, static_cast<size_t>(history) * sizeof(float)});
  }
  return pieces;
}

size_t CudaState::state_bytes() const {
  size_t bytes = 0;
  for (const Recurrent& layer : recurrent)
    bytes += static_cast<size_t>(layer.shape.state_values() + layer.shape.history_values()) * sizeof(float);
  return bytes;
}

void CudaPassTable::add(DeviceSpan span) {
  PassCounts& count = *counts.host;
  span.first_row = count.num_rows;
  span.window_row = 0;
  if (count.num_spans > 0) {
    const DeviceSpan& before = spans.host[count.num_spans - 1];
    span.window_row = before.window_row + (before.is_window != 0 ? before.num_rows : 0);
  }
  std::fill_n(span_of_row.host + count.num_rows, span.num_rows, count.num_spans);
  spans.host[count.num_spans] = span;
  count.num_rows += span.num_rows;
  ++count.num_spans;
}

DeviceSpan device_span(const SequenceState& sequence, int num_rows, int64_t position, bool is_window) {
  DeviceSpan span;
  span.num_rows = num_rows;
  span.position = static_cast<int32_t>(position);
  span.sequence = sequence.slot;
  span.is_window = is_window ? 1 : 0;
  span.old_bank = sequence.turn.old_bank;
  span.kept = sequence.turn.kept;
  span.replay = sequence.turn.replay;
  return span;
}

}  // namespace foretoken::cuda
