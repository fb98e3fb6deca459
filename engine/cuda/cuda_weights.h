#pragma once

#include <cstddef>
#include <map>
#include <tuple>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/cuda/hot_experts.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "kernels/cuda/cuda_matrix.h"

namespace foretoken::cuda {

using CudaAttention = BasicAttentionWeights<DeviceMatrix>;
using CudaDeltaNet = BasicDeltaNetWeights<DeviceMatrix>;
using CudaExpertMatrices = BasicExpertMatrices<DeviceMatrix>;
using CudaDense = BasicDenseWeights<DeviceMatrix>;
using CudaMoe = BasicMoeWeights<DeviceMatrix>;
using CudaLayer = BasicLayerWeights<DeviceMatrix>;
using CudaMtp = BasicMtpWeights<DeviceMatrix>;

/// The device's copy of a model's weights. Built in three steps, so that the size is known before memory is taken:
/// construct, look at size_bytes(), upload().
class CudaWeights : public BasicModelWeights<DeviceMatrix> {
 public:
  /// with_mtp: the MTP layer too. split: of the trunk's routed experts only the placed ones, and room for hot ones;
  /// nullptr: all.
  CudaWeights(const Model& model, bool with_mtp, const HotExperts* split = nullptr);
  CudaWeights(const CudaWeights&) = delete;
  CudaWeights& operator=(const CudaWeights&) = delete;

  [[nodiscard]] size_t size_bytes() const { return arena_.size_bytes(); }
  /// Takes the memory and copies everything, rearranged by all threads, through pinned memory.
  void upload(const Stream& stream);

 private:
  void declare(const MatrixView& from, DeviceMatrix& to);
  void declare(const ExpertMatrices& from, int placed, int capacity, CudaExpertMatrices& to);
  void declare(const VectorView& from, VectorView& to);
  /// A visit for the walk over a layer, of whose routed experts `placed` go up and `capacity` have room.
  [[nodiscard]] auto declaration(int placed, int capacity);

  struct Upload {
    MatrixView from;
    int64_t device_rows;  // as many as `from` has, or more: room
    DeviceMatrix memory;  // where the bytes go; set by the arena
    std::vector<DeviceMatrix*> users;
  };
  struct VectorUpload {
    VectorView from;
    VectorView* to;  // with room for as many values, or more
  };
  DeviceArena arena_;
  // By what they show: matrices that several parts share (tied heads, fused gate and up) go up once.
  std::map<std::tuple<const std::byte*, int64_t>, Upload> matrices_;
  std::vector<VectorUpload> vectors_;
};

}  // namespace foretoken::cuda
