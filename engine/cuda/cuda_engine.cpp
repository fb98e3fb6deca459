#include "engine/cuda/cuda_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine/backend.h"
#include "engine/sequence/rope_tables.h"
#include "kernels/attention/rope.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "kernels/rows/rows_cuda.h"

namespace foretoken::cuda {

namespace {

// A context that would fit is named in steps of so many positions.
constexpr int64_t kContextStep = 256;

double gib(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

template <class T>
PinnedBuffer pinned(int64_t count = 1) {
  return PinnedBuffer(static_cast<size_t>(count) * sizeof(T));
}

}  // namespace

CudaEngine::CudaEngine(const Model& m, const SessionOptions& o, ThreadTeam& team)
    : model(m),
      config(m.config()),
      options(o),
      shapes(ModelShapes::of(m.weights(), config, o.with_mtp)),
      stream(o.dependent_launch ? Launches::kDependent : Launches::kInOrder),
      shared(CudaModel::of(m, o)),
      weights(shared->weights),
      state(shapes, o),
      buffers(shapes, m.weights(), o),
      io(shapes, m.weights(), o),
      recorder(stream),
      pass(config, o, stream, buffers, state, recorder),
      text(FamilyText<CudaForwardPass>::of(config.architecture)),
      trunk_(static_cast<size_t>(max_window_rows()) + 1) {
  static_cast<void>(require_device());
  check_shapes(m, shapes);
  FT_CHECK(logits_rows(o) >= max_window_rows());
  if (o.device == Device::kSplit && shapes.moe.num_experts > 0) {
    split = std::make_unique<CudaSplit>(m, shapes, o, *shared, buffers, stream, team);
    pass.set_split(split.get());
  }
  check_memory();

  state.allocate(stream);
  buffers.memory.allocate("work buffers");
  io.allocate();
  if (buffers.blas.workspace != nullptr) {
    blas_.emplace(stream, buffers.blas.workspace);
    buffers.blas.library = &*blas_;
  }
  staged_groups_ = pinned<int32_t>(vocab_groups() + 1);
  num_buckets_ = pinned<int32_t>(config.num_layers + 1);
  shared->allocate(stream);
  if (split) split->allocate();
  for (size_t i = 0; i < shapes.ropes.size(); ++i) {
    const RopeShape& shape = shapes.ropes[i];
    const RopeTable table = shape.table(o.ctx_size);
    copy_to_device(stream, buffers.rope_data[i], table.cos(0),
                   static_cast<size_t>(o.ctx_size * shape.dim) * sizeof(float));
    stream.synchronize();
  }
  draft_groups = {io.draft_groups + 1, io.draft_groups, vocab_groups() * kInterleave, 0};
  std::vector<int32_t> all(static_cast<size_t>(vocab_groups()));
  std::iota(all.begin(), all.end(), 0);
  set_groups(all);
  shared->attach(stream);
}

void CudaEngine::attempt(const std::function<void()>& work) {
  if (failed_) {
    throw InputError(
        fmt::format("{}: an earlier pass on the device has failed, and what it left there cannot be used: "
                    "start anew",
                    model.path()));
  }
  failed_ = true;
  work();
  failed_ = false;
}

void CudaEngine::set_spans(TrunkInput& input, std::span<const Span> spans) {
  input.pass.clear();
  for (const Span& span : spans) {
    state.set_pages(*span.sequence);
    input.pass.add(device_span(*span.sequence, span.num_rows, span.position, span.is_window));
  }
}

void CudaEngine::begin_pass(bool has_chunks) {
  shared->begin_pass(stream, has_chunks);
  if (split) split->begin_pass(has_chunks);
  state.send_pages(stream);
}

int64_t CudaEngine::vocab_groups() const {
  return (config.vocab_size + kInterleave - 1) / kInterleave;
}

SessionMemory CudaEngine::memory() const {
  SessionMemory m = session_memory(state, buffers, io);
  m.weight_bytes = shared->size_bytes();
  if (split != nullptr) m.host_bytes += split->host_bytes();
  return m;
}

void CudaEngine::check_memory() const {
  const SessionMemory m = memory();
  const size_t there = shared->is_allocated() ? m.weight_bytes : 0;
  const size_t needed = m.total() + kDeviceReserveBytes, free = free_memory_bytes() + there;
  if (needed <= free) return;
  // What grows with the context: the cache, the rotation table and the parts of a window's attention.
  AttentionDesc split;
  split.kv.pages_per_sequence = 1;
  split.num_heads = shapes.num_heads;
  split.head_dim = shapes.head_dim;
  split.max_window_rows = max_window_rows();
  const int64_t bytes_per_position = static_cast<int64_t>(m.kv_bytes) / options.ctx_size +
                                     static_cast<int64_t>(RopeTables::size_bytes(shapes.ropes, 1)) +
                                     split.part_floats() * static_cast<int64_t>(sizeof(float)) / kAttentionSplit;
  const auto missing = static_cast<int64_t>(needed - free);
  const int64_t fits = (options.ctx_size - missing / bytes_per_position - 1) / kContextStep * kContextStep;
  throw InputError(fmt::format(
      "{}: --device {} with a context of {} positions needs {:.2f} GiB of device memory (weights {:.2f}, KV cache "
      "{:.2f}, recurrent state {:.2f}, work {:.2f}, reserve {:.2f}); {:.2f} GiB are free on {}; {}",
      model.path(), options.device == Device::kSplit ? "split" : "cuda", options.ctx_size, gib(needed),
      gib(m.weight_bytes), gib(m.kv_bytes), gib(m.recurrent_bytes), gib(m.work_bytes), gib(kDeviceReserveBytes),
      gib(free), require_device().name,
      fits >= kContextStep
          ? fmt::format("--ctx-size {} fits", fits)
          : std::string("no context fits: run with --device split and fewer --gpu-experts, or with --device cpu")));
}

void CudaEngine::run_trunk(const TrunkInput& input, bool has_windows) {
  const int num_rows = input.pass.counts.host->num_rows;
  CudaRows rows;
  rows.max_rows = num_rows;
  rows.has_windows = has_windows;
  rows.has_chunks = &input == &io.chunks;
  // What is recorded serves any number of spans.
  rows.pass = input.pass.on_device(std::min(num_rows, options.parallel));
  const auto work = [&] {
    pass.begin(rows);
    text.trunk(pass, weights, input.ids.device, io.hidden);
  };
  if (!rows.has_chunks) {
    recorder.run(trunk_[num_rows], work);
  } else {
    work();
  }
}

void CudaEngine::mtp_take_in(const CudaRows& rows, const int32_t* ids, const float* preceding) {
  pass.begin(rows);
  text.mtp_take_in(pass, weights.mtp, ids, preceding);
}

void CudaEngine::mtp_finish(const CudaRows& outputs, const int32_t* from_rows) {
  pass.keep_rows(outputs, from_rows);
  text.mtp_finish(pass, weights.mtp, io.mtp_hidden);
}

bool CudaEngine::is_recorded(int num_rows) const {
  return trunk_[num_rows].is_recorded();
}

void CudaEngine::run_head(const DeviceRows& rows, int num_rows) {
  pass.head(weights.head, with_forms(rows, input_forms(weights.head)), num_rows, io.logits);
}

void CudaEngine::run_draft_head(const DeviceRows& rows, int num_rows) {
  pass.draft_head(weights.mtp.head, draft_groups, with_forms(rows, input_forms(weights.mtp.head)), num_rows,
                  io.draft_logits);
}

DeviceRows CudaEngine::rows_together(const DeviceRows& from, std::span<const int32_t> rows) {
  const auto count = static_cast<int32_t>(rows.size());
  bool follow_each_other = true;
  for (size_t i = 1; i < rows.size(); ++i) follow_each_other = follow_each_other && rows[i] == rows[i - 1] + 1;
  if (follow_each_other) return rows_from(from, rows[0]);
  FT_CHECK(count <= logits_rows(options));
  stream.synchronize();  // the list may be under way
  std::copy(rows.begin(), rows.end(), io.gather.rows.host);
  io.gather.memory.send(stream);
  launch(GatherRowsDesc{from.values, io.gather.rows.device, io.gathered.values, config.hidden_dim, count}, stream);
  if (!io.gathered.by32.empty() || !io.gathered.by256.empty()) {
    const QuantiseDesc desc{io.gathered, count, nullptr};
    launch(desc, choose_config(desc), stream);
  }
  return io.gathered;
}

void CudaEngine::choose(const float* from, bool is_draft, int num_rows, const DevicePass& rows, bool by_sequence,
                        int32_t* to_ids, float* shares) {
  ChooseDesc desc;
  desc.logits = from;
  desc.num_ids = config.vocab_size;
  desc.logits_stride = desc.num_logits = is_draft ? draft_groups.capacity : config.vocab_size;
  if (is_draft) {
    desc.groups = draft_groups.groups;
    desc.device_num_groups = draft_groups.count;
  }
  desc.pass = rows;
  desc.sampling = io.sampling;
  desc.by_sequence = by_sequence;
  desc.ids = to_ids;
  desc.shares = shares;
  desc.work = io.choose_work;
  desc.max_rows = num_rows;
  launch(desc, stream);
}

void CudaEngine::set_groups(std::span<const int32_t> groups) {
  groups_.assign(groups.begin(), groups.end());
  groups_changed_ = true;
}

void CudaEngine::add_group(int32_t group) {
  groups_.insert(std::lower_bound(groups_.begin(), groups_.end(), group), group);
  groups_changed_ = true;
}

void CudaEngine::send_groups() {
  if (!groups_changed_ || !options.with_mtp) return;
  groups_changed_ = false;
  auto* staged = staged_groups_.data<int32_t>();
  staged[0] = static_cast<int32_t>(groups_.size());
  std::copy(groups_.begin(), groups_.end(), staged + 1);
  copy_to_device(stream, io.draft_groups, staged, (groups_.size() + 1) * sizeof(int32_t));
  // Groups come one at a time: with room for an eighth more it is seldom that work has to be recorded again.
  constexpr int64_t kStep = 16;
  const auto count = static_cast<int64_t>(groups_.size());
  const int64_t with_room =
      std::min((count + count / 8 + kStep - 1) / kStep * kStep * kInterleave, draft_groups.capacity);
  if (count * kInterleave <= draft_groups.launched && draft_groups.launched <= 2 * with_room) return;
  draft_groups.launched = with_room;
  ++num_draft_heads_;
}

void CudaEngine::fetch_buckets() {
  copy_to_host(stream, num_buckets_.data(), buffers.num_buckets, num_buckets_.size_bytes());
}

double CudaEngine::distinct_experts() const {
  const auto* buckets = num_buckets_.data<const int32_t>();
  double sum = 0;
  int num_layers = 0;
  for (const CudaLayer& layer : weights.layers) {
    if (layer.is_dense()) continue;
    const int l = layer.layer_idx, distinct = split && split->splits(l) ? split->distinct_experts(l) : buckets[l];
    sum += static_cast<double>(distinct) / layer.moe().top_k;
    ++num_layers;
  }
  return num_layers == 0 ? 0 : sum / num_layers;
}

}  // namespace foretoken::cuda
