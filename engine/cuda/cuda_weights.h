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

// The weights in device memory, in the shapes of engine/model/weights.h and moe/moe.h. Nothing owned but the arena.

struct CudaAttention {
  DeviceMatrix q, k, v, output;
  const float *q_norm = nullptr, *k_norm = nullptr;
};

struct CudaDeltaNet {
  DeviceMatrix qkv, gate, beta, alpha, out;
  const float *conv = nullptr, *dt = nullptr, *a = nullptr, *norm = nullptr;
};

/// One matrix of every expert on the device: expert e has rows [e * stride_rows + first_row, + num_rows) of `all`.
struct CudaExpertMatrices {
  DeviceMatrix all;
  int64_t stride_rows = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  /// From the first expert's first row on.
  [[nodiscard]] DeviceMatrix from_first() const { return all.slice_rows(first_row, all.num_rows); }
};

struct CudaMoe {
  int num_experts = 0, top_k = 0;
  /// Experts that gate, up and down have room for: all, or in a split fewer; then `places` says where each is.
  int capacity = 0;
  const int32_t* places = nullptr;  // [num_experts] in device memory, see GroupDesc; nullptr: expert e is the e-th
  DeviceMatrix router;
  CudaExpertMatrices gate, up, down;
  DeviceMatrix shared_gate, shared_up, shared_down;
  const float* shared_router = nullptr;
  [[nodiscard]] bool has_shared() const { return shared_gate.data != nullptr; }
};

struct CudaLayer {
  const float *mix_norm = nullptr, *ffn_norm = nullptr;
  bool recurrent = false;
  CudaAttention attention;
  CudaDeltaNet delta_net;
  CudaMoe moe;
};

struct CudaMtp {
  DeviceMatrix embed;
  const float *embed_norm = nullptr, *hidden_norm = nullptr;
  DeviceMatrix join;
  CudaLayer layer;
  const float* head_norm = nullptr;
  DeviceMatrix head;
};

/// The device's copy of a model's weights. Built in three steps, so that the size is known before memory is taken:
/// construct, look at size_bytes(), upload().
class CudaWeights {
 public:
  /// with_mtp: the MTP layer too. split: of the trunk's routed experts only the placed ones, and room for hot ones;
  /// nullptr: all.
  CudaWeights(const Model& model, bool with_mtp, const HotExperts* split = nullptr);
  CudaWeights(const CudaWeights&) = delete;
  CudaWeights& operator=(const CudaWeights&) = delete;

  [[nodiscard]] size_t size_bytes() const { return arena_.size_bytes(); }
  /// Takes the memory and copies everything, rearranged by all threads, through pinned memory.
  void upload(const Stream& stream);

  DeviceMatrix embed;
  std::vector<CudaLayer> layers;
  const float* output_norm = nullptr;
  DeviceMatrix head;
  CudaMtp mtp;

 private:
  void declare(const MatrixView& from, DeviceMatrix& to);
  void declare(const ExpertMatrices& from, int placed, int capacity, CudaExpertMatrices& to);
  void declare(const float* from, int64_t count, const float*& to);
  void declare(const ModelConfig& config, const LayerWeights& from, int placed, int capacity, CudaLayer& to);
  void declare(const ModelConfig& config, const MoeWeights& from, int placed, int capacity, CudaMoe& to);

  struct Upload {
    MatrixView from;
    int64_t device_rows;  // as many as `from` has, or more: room
    DeviceMatrix memory;  // where the bytes go; set by the arena
    std::vector<DeviceMatrix*> users;
  };
  struct VectorUpload {
    const float* from;
    int64_t count;
    const float** to;
  };
  DeviceArena arena_;
  // By what they show: matrices that several parts share (tied heads, fused gate and up) go up once.
  std::map<std::tuple<const std::byte*, int64_t>, Upload> matrices_;
  std::vector<VectorUpload> vectors_;
};

}  // namespace foretoken::cuda
