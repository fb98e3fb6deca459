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

template <class T>
PinnedBuffer pinned(int64_t count) {
  return PinnedBuffer(static_cast<size_t>(count) * sizeof(T));
}

}  // namespace

CudaSplit::CudaSplit(const Model& model, const ModelShapes& shapes, const SessionOptions& o, HotExperts& hot,
                     CudaBuffers& buffers, const CudaIo& io, const Stream& stream, ThreadTeam& team)
    : model_(model),
      options_(o),
      hot_(hot),
      buffers_(buffers),
      io_(io),
      stream_(stream),
      team_(team),
      distinct_(static_cast<size_t>(hot.num_layers()), 0),
      host_(shapes, o),
      seen_(static_cast<size_t>(shapes.moe.num_experts)) {}

void CudaSplit::allocate() {
  const int64_t dim = host_.x.num_cols();
  rows_in_ = pinned<float>(host_.x.max_rows() * dim);
  experts_in_ = pinned<int32_t>(host_.num_slots);
  rows_out_ = pinned<float>(host_.num_slots * dim);
  slots_out_ = pinned<int32_t>(host_.num_slots);
  // Slots of experts that are not on the device are quantised with the others there: they have to be numbers.
  buffers_.memory.clear(stream_);
}

void CudaSplit::send_rows(int num_rows, int top_k) {
  const ModelConfig& c = model_.config();
  copy_to_host(stream_, rows_in_.data(), buffers_.normed.values,
               static_cast<size_t>(num_rows * c.hidden_dim) * sizeof(float));
  copy_to_host(stream_, experts_in_.data(), buffers_.experts, static_cast<size_t>(num_rows * top_k) * sizeof(int32_t));
}

void CudaSplit::compute(int layer_idx, int num_rows) {
  const ModelConfig& c = model_.config();
  const MoeWeights& moe = model_.weights().layers[layer_idx].moe();
  routed_.synchronize();
  Routing& routing = host_.scratch.routing;
  routing.resize(num_rows, moe.top_k);
  std::copy_n(experts_in_.data<const int32_t>(), routing.experts.size(), routing.experts.begin());

  std::fill(seen_.begin(), seen_.end(), uint8_t{0});
  int distinct = 0;
  for (const int32_t e : routing.experts) {
    FT_CHECK(e >= 0 && e < moe.num_experts);
    if (std::exchange(seen_[e], uint8_t{1}) != 0) continue;
    ++distinct;
    hot_.count(layer_idx, e);
  }
  distinct_[layer_idx] = distinct;

  RowBuffer& x = host_.x;
  const unsigned forms = x_forms(moe);
  team_.parallel_for(num_rows, [&](int64_t r, int) {
    std::copy_n(rows_in_.data<const float>() + r * c.hidden_dim, c.hidden_dim, x.row(r));
    quantise_forms(options_.isa, x, r, forms);
  });
  host_experts(options_.isa, team_, options_.moe_verify, moe, x, num_rows, hot_.places(layer_idx), host_.scratch,
               slots_);
  const auto num_slots = static_cast<int64_t>(slots_.size());
  if (num_slots == 0) return;
  std::copy(slots_.begin(), slots_.end(), slots_out_.data<int32_t>());
  team_.parallel_for(num_slots, [&](int64_t i, int) {
    std::copy_n(host_.scratch.partial(slots_[i]), c.hidden_dim, rows_out_.data<float>() + i * c.hidden_dim);
  });
  copy_to_device(stream_, io_.slot_ids, slots_out_.data(), static_cast<size_t>(num_slots) * sizeof(int32_t));
  copy_to_device(stream_, io_.slot_rows, rows_out_.data(),
                 static_cast<size_t>(num_slots * c.hidden_dim) * sizeof(float));
  launch(ScatterRowsDesc{io_.slot_rows, io_.slot_ids, buffers_.slots, c.hidden_dim, static_cast<int>(num_slots)},
         stream_);
}

}  // namespace foretoken::cuda
