#include "engine/cuda/cuda_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine/backend.h"
#include "kernels/attention/rope.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"

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

void Recorded::run(const Stream& stream, const std::function<void()>& work) {
  if (!ran_once_) {
    ran_once_ = true;
    return work();
  }
  if (graph_.empty()) graph_ = Graph(stream, work);
  graph_.launch(stream);
}

CudaEngine::CudaEngine(const Model& m, const SessionOptions& o, ThreadTeam& team)
    : model(m),
      config(m.config()),
      options(o),
      shared(CudaModel::of(m, o)),
      weights(shared->weights),
      state(config, o),
      buffers(config, weights, o),
      pass(config, o, stream, buffers, state),
      trunk_(static_cast<size_t>(o.max_window) + 1),
      split_trunk_(trunk_.size()) {
  static_cast<void>(require_device());
  check_shapes(m);
  const int64_t n = pass_rows(o), dim = config.hidden_dim, most = std::max<int64_t>(n, kMaxWindow);
  io_memory_.take(most, ids);
  io_memory_.take(1, command);
  io_memory_.take(1, result);
  io_memory_.take(1, sampling);
  io_memory_.take_rows(n, dim, input_forms(weights.head), hidden);
  io_memory_.take(logits_rows(o) * config.vocab_size, logits);
  io_memory_.take(ChooseDesc::work_floats(logits_rows(o)), choose_work_);
  if (o.with_mtp) {
    io_memory_.take(n, follow_ids);
    io_memory_.take(n * dim, follow_hidden);
    io_memory_.take(1, follow);
    io_memory_.take_rows(n, dim, input_forms(weights.mtp.head), mtp_hidden);
    io_memory_.take(logits_rows(o) * vocab_groups() * kInterleave, draft_logits);
    io_memory_.take(vocab_groups() + 1, device_groups_);
  }
  if (o.device == Device::kSplit && config.num_experts > 0) {
    split = std::make_unique<CudaSplit>(m, o, shared->hot, buffers, stream, team);
    for (std::vector<Recorded>& pieces : split_trunk_) pieces.resize(2 * split->layers().size() + 1);
  }
  check_memory();

  state.kv_memory.allocate("the KV cache");
  state.recurrent_memory.allocate("the recurrent state");
  buffers.memory.allocate("work buffers");
  io_memory_.allocate("rows and logits");
  if (buffers.blas.workspace != nullptr) {
    blas_.emplace(stream, buffers.blas.workspace);
    buffers.blas.library = &*blas_;
  }
  host.command = pinned<Command>();
  host.result = pinned<CycleResult>();
  host.follow = pinned<FollowScalars>();
  host.sampling = pinned<SamplingScalars>();
  host.ids = pinned<int32_t>(most);
  host.groups = pinned<int32_t>(vocab_groups() + 1);
  host.num_buckets = pinned<int32_t>(config.num_layers + 1);
  shared->allocate(stream);
  if (split) split->allocate();
  const RopeTable rope(config.rope_dim, config.rope_base, o.ctx_size);
  copy_to_device(stream, const_cast<float*>(buffers.rope), rope.cos(0),
                 static_cast<size_t>(o.ctx_size * config.rope_dim) * sizeof(float));
  stream.synchronize();
  draft_groups = {device_groups_ + 1, device_groups_, vocab_groups() * kInterleave};
  std::vector<int32_t> all(static_cast<size_t>(vocab_groups()));
  std::iota(all.begin(), all.end(), 0);
  set_groups(all);
  reset();
  shared->attach(stream);
}

int64_t CudaEngine::vocab_groups() const {
  return (config.vocab_size + kInterleave - 1) / kInterleave;
}

SessionMemory CudaEngine::memory() const {
  SessionMemory m;
  m.kv_bytes = state.kv_memory.size_bytes();
  m.recurrent_bytes = state.recurrent_memory.size_bytes();
  m.work_bytes = buffers.memory.size_bytes() + io_memory_.size_bytes() + (split ? split->size_bytes() : 0);
  m.weight_bytes = shared->size_bytes();
  return m;
}

void CudaEngine::check_memory() const {
  const SessionMemory m = memory();
  const size_t there = shared->is_allocated() ? m.weight_bytes : 0;
  const size_t needed = m.total() + kDeviceReserveBytes, free = free_memory_bytes() + there;
  if (needed <= free) return;
  // What grows with the context: the cache, the rotation table and the parts of a window's attention.
  AttentionDesc split;
  split.kv.ctx_size = kAttentionSplit;
  split.num_heads = config.num_heads;
  split.head_dim = config.head_dim;
  split.max_rows = options.max_window;
  const int64_t bytes_per_position = static_cast<int64_t>(m.kv_bytes) / options.ctx_size +
                                     config.rope_dim * static_cast<int64_t>(sizeof(float)) +
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

// Two pieces a split layer: up to its router, with the rows leaving for the host, and the experts that are here. The
// host computes the others meanwhile, and the next piece begins with all slots together.
void CudaEngine::run_split_trunk(int num_rows, bool in_slot) {
  const CudaRows rows{num_rows, &command->window, !in_slot, true};
  const std::vector<int>& split_layers = split->layers();
  size_t next_piece = 0;
  const auto piece = [&](const std::function<void()>& work) {
    if (in_slot) {
      split_trunk_[static_cast<size_t>(num_rows)][next_piece++].run(stream, work);
    } else {
      work();
    }
  };
  int begin = 0;
  for (const int layer : split_layers) {
    piece([&] {
      if (begin == 0) pass.begin_trunk(weights, rows, ids);
      pass.layers(weights, begin, layer);
      pass.layer_to_router(weights, layer);
      split->send_rows(num_rows);
    });
    split->routed().record(stream);
    piece([&] { pass.device_experts(weights, layer); });
    split->compute(layer, num_rows);
    begin = layer + 1;
  }
  piece([&] {
    if (begin == 0) pass.begin_trunk(weights, rows, ids);
    pass.layers(weights, begin, config.num_layers);
    pass.end_trunk(weights, hidden);
  });
}

void CudaEngine::run_trunk(int num_rows, bool in_slot) {
  if (split && !split->layers().empty()) return run_split_trunk(num_rows, in_slot);
  const CudaRows rows{num_rows, &command->window, !in_slot, true};
  const auto work = [&] { pass.trunk(weights, rows, ids, hidden); };
  if (in_slot) {
    trunk_[static_cast<size_t>(num_rows)].run(stream, work);
  } else {
    work();
  }
}

bool CudaEngine::is_recorded(int num_rows) const {
  const auto at = static_cast<size_t>(num_rows);
  return split && !split->layers().empty() ? split_trunk_[at].back().is_recorded() : trunk_[at].is_recorded();
}

void CudaEngine::run_head(int row_begin, int num_rows) {
  pass.head(weights.head, rows_from(hidden, row_begin), num_rows, logits);
}

void CudaEngine::run_draft_head(int row_begin, int num_rows) {
  pass.draft_head(weights.mtp.head, draft_groups, rows_from(mtp_hidden, row_begin), num_rows, draft_logits);
}

void CudaEngine::choose(const float* from, bool is_draft, int num_rows, const int32_t* position, int offset,
                        int32_t* to_ids, float* shares) {
  ChooseDesc desc;
  desc.logits = from;
  desc.num_ids = config.vocab_size;
  desc.logits_stride = desc.num_logits = is_draft ? draft_groups.capacity : config.vocab_size;
  if (is_draft) {
    desc.groups = draft_groups.groups;
    desc.device_num_groups = draft_groups.count;
  }
  desc.sampling = sampling;
  desc.device_position = position;
  desc.position_offset = offset;
  desc.ids = to_ids;
  desc.shares = shares;
  desc.work = choose_work_;
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
  auto* staged = host.groups.data<int32_t>();
  staged[0] = static_cast<int32_t>(groups_.size());
  std::copy(groups_.begin(), groups_.end(), staged + 1);
  copy_to_device(stream, device_groups_, staged, (groups_.size() + 1) * sizeof(int32_t));
}

void CudaEngine::reset() {
  state.recurrent_memory.clear(stream);
}

double CudaEngine::distinct_experts() const {
  if (config.num_experts == 0) return 0;
  const auto* buckets = host.num_buckets.data<int32_t>();
  double sum = 0;
  for (int l = 0; l < config.num_layers; ++l)
    sum += split && shared->hot.is_split(l) ? split->distinct_experts(l) : buckets[l];
  return sum / config.num_layers / config.experts_per_token;
}

}  // namespace foretoken::cuda
