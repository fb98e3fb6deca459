#include "engine/cuda/cuda_split.h"

#include <algorithm>
#include <chrono>

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
MappedBuffer mapped(int64_t count) {
  return MappedBuffer(static_cast<size_t>(count) * sizeof(T));
}

}  // namespace

CudaSplit::CudaSplit(const Model& model, const ModelShapes& shapes, const SessionOptions& o, CudaModel& shared,
                     CudaBuffers& buffers, const Stream& stream, ThreadTeam& team)
    : model_(model),
      options_(o),
      shared_(shared),
      hot_(shared.hot),
      buffers_(buffers),
      stream_(stream),
      team_(team),
      distinct_(static_cast<size_t>(shared.hot.num_layers()), 0),
      host_(shapes, o),
      seen_(static_cast<size_t>(shapes.moe.num_experts)) {}

void CudaSplit::allocate() {
  const int64_t dim = host_.x.num_cols();
  rows_in_ = mapped<float>(host_.x.max_rows() * dim);
  experts_in_ = mapped<int32_t>(host_.num_slots);
  rows_out_ = mapped<float>(host_.num_slots * dim);
  slots_out_ = mapped<int32_t>(host_.num_slots);
  num_out_ = mapped<int32_t>(hot_.num_layers());
  sent_ = Flags(static_cast<int>(host_.x.max_rows()));
  ready_ = Flags(hot_.num_layers());
  // Slots of experts that are not on the device are quantised with the others there: they have to be numbers.
  buffers_.memory.clear(stream_);
}

void CudaSplit::begin_pass(bool has_chunks) {
  has_chunks_ = has_chunks;
  for (int l = 0; l < hot_.num_layers(); ++l) ready_.lower(l);
}

void CudaSplit::send_rows(int num_rows, int top_k) {
  SendRowsDesc desc;
  desc.from = buffers_.normed.values;
  desc.experts = buffers_.experts;
  desc.to = rows_in_.data<float>();
  desc.to_experts = experts_in_.data<int32_t>();
  desc.flags = sent_.words();
  desc.num_cols = host_.x.num_cols();
  desc.top_k = top_k;
  desc.num_rows = num_rows;
  launch(desc, stream_);
}

void CudaSplit::add_fetching(int layer_idx, GroupDesc& group) const {
  if (fetches(layer_idx)) shared_.add_fetching(layer_idx, group);
}

void CudaSplit::fetch(int layer_idx) {
  if (!fetches(layer_idx)) return;
  const FetchDesc& desc = shared_.fetching(layer_idx);
  launch(desc, stream_);
  // The kernels behind it load the experts by the path for what nobody writes while they run. Behind a fill a kernel
  // begins when all ahead of it have ended.
  fill_zero(stream_, const_cast<FetchList*>(desc.list), sizeof(FetchList));
}

void CudaSplit::receive_slots(int layer_idx, int num_rows, int top_k) {
  ReceiveRowsDesc desc;
  desc.flag = ready_.words() + layer_idx;
  desc.num_rows = num_out_.data<const int32_t>() + layer_idx;
  desc.from = rows_out_.data<const float>();
  desc.to_rows = slots_out_.data<const int32_t>();
  desc.to = buffers_.slots;
  desc.num_cols = host_.x.num_cols();
  desc.max_rows = num_rows * top_k;
  launch(desc, stream_);
}

void CudaSplit::compute(int layer_idx, int num_rows) {
  try {
    compute_slots(layer_idx, num_rows);
  } catch (...) {
    // Whoever gives the stream's memory back now would wait for a device that waits for the host.
    for (int l = layer_idx; l < hot_.num_layers(); ++l) {
      num_out_.data<int32_t>()[l] = 0;
      ready_.raise(l);
    }
    throw;
  }
}

void CudaSplit::compute_slots(int layer_idx, int num_rows) {
  const ModelConfig& c = model_.config();
  const MoeWeights& moe = model_.weights().layers[layer_idx].moe();
  sent_.wait(stream_, num_rows);
  // They are raised again behind this layer's slots, which are not there yet.
  for (int r = 0; r < num_rows; ++r) sent_.lower(r);
  Routing& routing = host_.scratch.routing;
  routing.resize(num_rows, moe.top_k);
  std::copy_n(experts_in_.data<const int32_t>(), routing.experts.size(), routing.experts.begin());

  std::fill(seen_.begin(), seen_.end(), uint8_t{0});
  for (const int32_t e : routing.experts) {
    FT_CHECK(e >= 0 && e < moe.num_experts);
    seen_[e] = 1;
  }
  used_.clear();
  int missing = 0;
  for (int32_t e = 0; e < moe.num_experts; ++e) {
    if (seen_[e] == 0) continue;
    used_.push_back(e);
    missing += hot_.places(layer_idx)[e] < 0 ? 1 : 0;
    hot_.count(layer_idx, e);
  }
  distinct_[layer_idx] = static_cast<int>(used_.size());
  const int computed = missing - (fetches(layer_idx) ? shared_.fetch(layer_idx, used_) : 0);

  const auto begin = std::chrono::steady_clock::now();
  RowBuffer& x = host_.x;
  const unsigned forms = x_forms(moe);
  team_.parallel_for(num_rows, [&](int64_t r, int) {
    std::copy_n(rows_in_.data<const float>() + r * c.hidden_dim, c.hidden_dim, x.row(r));
    quantise_forms(options_.isa, x, r, forms);
  });
  host_experts(options_.isa, team_, options_.moe_verify, moe, x, num_rows, hot_.places(layer_idx), host_.scratch,
               slots_);
  const auto num_slots = static_cast<int64_t>(slots_.size());
  std::copy(slots_.begin(), slots_.end(), slots_out_.data<int32_t>());
  team_.parallel_for(num_slots, [&](int64_t i, int) {
    std::copy_n(host_.scratch.partial(slots_[i]), c.hidden_dim, rows_out_.data<float>() + i * c.hidden_dim);
  });
  shared_.learn(has_chunks_, missing, computed,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  num_out_.data<int32_t>()[layer_idx] = static_cast<int32_t>(num_slots);
  ready_.raise(layer_idx);
}

}  // namespace foretoken::cuda
