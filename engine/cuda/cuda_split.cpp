#include "engine/cuda/cuda_split.h"

#include <algorithm>
#include <utility>

#include "engine/backend.h"
#include "engine/cpu/forward_pass.h"
#include "kernels/base/error.h"
#include "kernels/rows/rows_cuda.h"
#include "moe/host_experts.h"

namespace foretoken::cuda {

namespace {

unsigned x_forms(const MoeWeights& moe) {
  return block_bits({&moe.gate.all, &moe.up.all});
}

int64_t slots_of(const ModelConfig& c, const SessionOptions& o) {
  return int64_t{pass_rows(o)} * c.experts_per_token;
}

template <class T>
PinnedBuffer pinned(int64_t count) {
  return PinnedBuffer(static_cast<size_t>(count) * sizeof(T));
}

}  // namespace

CudaSplit::CudaSplit(const Model& model, const SessionOptions& o, HotExperts& hot, CudaBuffers& buffers,
                     const Stream& stream, ThreadTeam& team)
    : model_(model),
      options_(o),
      hot_(hot),
      buffers_(buffers),
      stream_(stream),
      team_(team),
      distinct_(static_cast<size_t>(hot.num_layers()), 0),
      x_(pass_rows(o), model.config().hidden_dim),
      scratch_({model.config().hidden_dim, model.config().num_experts, model.config().experts_per_token,
                model.config().expert_dim, /*shared_dim=*/0},
               pass_rows(o), team.num_threads()),
      seen_(static_cast<size_t>(model.config().num_experts)) {
  const ModelConfig& c = model.config();
  for (int l = 0; l < hot.num_layers(); ++l) {
    if (hot.is_split(l)) split_layers_.push_back(l);
  }
  memory_.take(slots_of(c, o) * c.hidden_dim, slot_rows_);
  memory_.take(slots_of(c, o), slot_ids_);
}

void CudaSplit::allocate() {
  const ModelConfig& c = model_.config();
  memory_.allocate("the host's slots of a split");
  rows_in_ = pinned<float>(pass_rows(options_) * c.hidden_dim);
  experts_in_ = pinned<int32_t>(slots_of(c, options_));
  rows_out_ = pinned<float>(slots_of(c, options_) * c.hidden_dim);
  slots_out_ = pinned<int32_t>(slots_of(c, options_));
  // Slots of experts that are not on the device are quantised with the others there: they have to be numbers.
  buffers_.memory.clear(stream_);
}

void CudaSplit::send_rows(int num_rows) {
  const ModelConfig& c = model_.config();
  copy_to_host(stream_, rows_in_.data(), buffers_.normed.values,
               static_cast<size_t>(num_rows * c.hidden_dim) * sizeof(float));
  copy_to_host(stream_, experts_in_.data(), buffers_.experts,
               static_cast<size_t>(num_rows * c.experts_per_token) * sizeof(int32_t));
}

void CudaSplit::compute(int layer_idx, int num_rows) {
  const ModelConfig& c = model_.config();
  const MoeWeights& moe = model_.weights().layers[static_cast<size_t>(layer_idx)].moe;
  routed_.synchronize();
  Routing& routing = scratch_.routing;
  routing.resize(num_rows, c.experts_per_token);
  std::copy_n(experts_in_.data<const int32_t>(), routing.experts.size(), routing.experts.begin());

  std::fill(seen_.begin(), seen_.end(), uint8_t{0});
  int distinct = 0;
  for (const int32_t e : routing.experts) {
    FT_CHECK(e >= 0 && e < c.num_experts);
    if (std::exchange(seen_[static_cast<size_t>(e)], uint8_t{1}) != 0) continue;
    ++distinct;
    hot_.count(layer_idx, e);
  }
  distinct_[static_cast<size_t>(layer_idx)] = distinct;

  const unsigned forms = x_forms(moe);
  team_.parallel_for(num_rows, [&](int64_t r, int) {
    std::copy_n(rows_in_.data<const float>() + r * c.hidden_dim, c.hidden_dim, x_.row(r));
    quantise_forms(options_.isa, x_, r, forms);
  });
  host_experts(options_.isa, team_, options_.moe_verify, moe, x_, num_rows, hot_.places(layer_idx), scratch_, slots_);
  const auto num_slots = static_cast<int64_t>(slots_.size());
  if (num_slots == 0) return;
  std::copy(slots_.begin(), slots_.end(), slots_out_.data<int32_t>());
  team_.parallel_for(num_slots, [&](int64_t i, int) {
    std::copy_n(scratch_.partial(slots_[static_cast<size_t>(i)]), c.hidden_dim,
                rows_out_.data<float>() + i * c.hidden_dim);
  });
  copy_to_device(stream_, slot_ids_, slots_out_.data(), static_cast<size_t>(num_slots) * sizeof(int32_t));
  copy_to_device(stream_, slot_rows_, rows_out_.data(), static_cast<size_t>(num_slots * c.hidden_dim) * sizeof(float));
  launch(ScatterRowsDesc{slot_rows_, slot_ids_, buffers_.slots, c.hidden_dim, static_cast<int>(num_slots)}, stream_);
}

}  // namespace foretoken::cuda
