#include <algorithm>
#include <array>

#include "engine/backend.h"
#include "engine/cuda/cuda_buffers.h"
#include "engine/cuda/cuda_io.h"
#include "engine/cuda/cuda_split.h"
#include "engine/cuda/cuda_state.h"
#include "engine/session_memory.h"
#include "kernels/formats/matrix.h"

// What a session's memory on the device is made of: declared here for those who allocate it and for those who plan.

namespace foretoken::cuda {

namespace {

MoeShape routed_alone(MoeShape shape) {
  shape.shared_dim = 0;
  return shape;
}

template <class T>
size_t bytes_of(int64_t count) {
  return static_cast<size_t>(count) * sizeof(T);
}

}  // namespace

CudaState::CudaState(const ModelShapes& shapes, const SessionOptions& o)
    : kv(shapes.attention.size()),
      recurrent(shapes.delta_nets.size()),
      shape_(shapes.attention, o.kv_type),
      num_pages_(static_cast<int>(kv_pages(o, shape_.page_bytes()))),
      pages_per_sequence_(pages_of(o.ctx_size)),
      parallel_(o.parallel) {
  kv_memory_.take(num_pages_ * shape_.page_bytes(), pages_);
  tables_.take(parallel_ * pages_per_sequence_, table_);
  const int64_t window_rows = int64_t{parallel_} * o.max_window;
  for (size_t i = 0; i < recurrent.size(); ++i) {
    Recurrent& layer = recurrent[i];
    const DeltaNetShape& shape = layer.shape = shapes.delta_nets[i];
    recurrent_memory_.take(parallel_ * shape.state_values(), layer.state);
    recurrent_memory_.take(parallel_ * shape.history_values(), layer.history);
    layer.banks.window_rows = o.max_window;
    for (DeltaBank& bank : layer.banks.banks) {
      recurrent_memory_.take(window_rows * shape.conv_channels(), bank.raw);
      recurrent_memory_.take(window_rows * shape.conv_channels(), bank.mixed);
      recurrent_memory_.take(window_rows * shape.num_value_heads, bank.beta);
      recurrent_memory_.take(window_rows * shape.num_value_heads, bank.decay);
    }
  }
}

void CudaPassTable::declare(MirroredArena& arena, int64_t max_rows, int64_t max_spans) {
  arena.take(1, counts);
  arena.take(max_spans, spans);
  arena.take(max_rows, span_of_row);
}

CudaIo::CudaIo(const ModelShapes& s, const BasicModelWeights<MatrixView>& weights, const SessionOptions& o) {
  const int64_t n = pass_rows(o), dim = s.hidden_dim, sequences = o.parallel, w = sequences * o.max_window;
  const int64_t vocab_groups = (s.vocab_size + kInterleave - 1) / kInterleave;
  for (TrunkInput* input : {&windows, &chunks}) {
    input->pass.declare(input->memory, input == &windows ? w : n, sequences);
    input->memory.take(input == &windows ? w : n, input->ids);
  }
  cycle.steps.declare(windows.memory, sequences, sequences);
  windows.memory.take(sequences, cycle.step_ids);
  windows.memory.take(sequences, cycle.sequences);
  windows.memory.take(w, cycle.deferred_rows);
  windows.memory.take(1, cycle.num_drafting);
  result.memory.take(sequences, result.num_accepted);
  result.memory.take(w, result.choices);
  result.memory.take(w, result.shares);
  result.memory.take(sequences, result.next_draft);
  result.memory.take(sequences, result.next_share);
  gather.memory.take(logits_rows(o), gather.rows);
  memory.take(sequences, sampling);
  // A tied head is the embedding.
  const MatrixView& head = weights.tied_head ? weights.embed : weights.head;
  unsigned head_forms = input_forms(head);
  memory.take_rows(n, dim, head_forms, hidden);
  memory.take(logits_rows(o) * s.vocab_size, logits);
  memory.take(ChooseDesc::work_floats(logits_rows(o)), choose_work);
  if (o.with_mtp) {
    mtp.rows.declare(mtp.memory, n, sequences);
    mtp.outputs.declare(mtp.memory, n, sequences);
    mtp.memory.take(n, mtp.output_rows);
    mtp.memory.take(n, mtp.ids);
    mtp.memory.take(n, mtp.hidden_rows);
    memory.take(n * dim, mtp_input);
    memory.take(sequences * deferred_capacity(o) * dim, deferred_hidden);
    if (sequences > 1) memory.take(sequences * dim, draft_hidden);
    const unsigned draft_forms = input_forms(weights.mtp.own_head ? weights.mtp.head : head);
    memory.take_rows(n, dim, draft_forms, mtp_hidden);
    memory.take(logits_rows(o) * vocab_groups * kInterleave, draft_logits);
    memory.take(vocab_groups + 1, draft_groups);
    head_forms |= draft_forms;
  }
  memory.take_rows(logits_rows(o), dim, head_forms, gathered);
}

SplitBuffers::SplitBuffers(const ModelShapes& shapes, const SessionOptions& o)
    : num_slots(int64_t{pass_rows(o)} * shapes.moe.top_k),
      x(pass_rows(o), shapes.hidden_dim),
      scratch(routed_alone(shapes.moe), pass_rows(o), o.threads) {}

size_t SplitBuffers::size_bytes() const {
  const size_t mapped = bytes_of<float>((x.max_rows() + num_slots) * x.num_cols()) + 2 * bytes_of<int32_t>(num_slots);
  return mapped + x.size_bytes() + scratch.size_bytes();
}

size_t CudaIo::pinned_bytes() const {
  return windows.memory.size_bytes() + chunks.memory.size_bytes() + result.memory.size_bytes() +
         mtp.memory.size_bytes() + gather.memory.size_bytes();
}

SessionMemory session_memory(const CudaState& state, const CudaBuffers& buffers, const CudaIo& io) {
  SessionMemory memory;
  memory.kv_bytes = state.kv_bytes();
  memory.recurrent_bytes = state.recurrent_bytes();
  memory.work_bytes = buffers.memory.size_bytes() + io.memory.size_bytes() + io.pinned_bytes();
  memory.host_bytes = io.pinned_bytes();
  return memory;
}

SessionMemory device_session_memory(const ModelShapes& shapes, const BasicModelWeights<MatrixView>& weights,
                                    const SessionOptions& options) {
  SessionMemory memory = session_memory(CudaState(shapes, options), CudaBuffers(shapes, weights, options),
                                        CudaIo(shapes, weights, options));
  if (options.device == Device::kSplit && shapes.moe.num_experts > 0)
    memory.host_bytes += SplitBuffers(shapes, options).size_bytes();
  return memory;
}

}  // namespace foretoken::cuda
