#include "engine/cuda/cuda_backend.h"
#include "tests/mtp/invariance_matrix.h"

// The device's columns of the invariance matrix (see invariance_test.cpp).

namespace foretoken {
namespace {

using test::Matrix;
using test::Setting;

// The emulation takes some seconds a run: it gets one of 193 (a prime, so that every value of every axis has its turn).
#ifdef FORETOKEN_CUDA_EMULATION
constexpr int kStride = 193;
#else
constexpr int kStride = 1;
#endif

struct Place {
  Device device;
  int gpu_experts = 0, gpu_cache = 0;
};

// The model has six experts a layer.
constexpr Place kPlaces[] = {{Device::kCuda}, {Device::kSplit}, {Device::kSplit, 3, 2}, {Device::kSplit, 6}};

TEST_CASE("invariance matrix on a device: place x drafts x expert core x prompt chunk x sampling") {
  use_cuda_backend();
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  Matrix matrix(test::matrix_model(architecture), /*prompt_tokens=*/66, /*new_tokens=*/20);
  int index = 0;
  for (int k = 0; k <= (matrix.has_mtp() ? kMaxDraft : 0); ++k) {
    for (MoeVerify core : test::kCores) {
      for (int chunk : {1, 7, 64, test::kWhole}) {
        for (bool sampled : {false, true}) {
          for (const Place& place : kPlaces) {
            Setting setting{k, core, 1 + index % 2, best_isa(), chunk, sampled};
            setting.device = place.device;
            setting.gpu_experts = place.gpu_experts;
            setting.gpu_cache = place.gpu_cache;
            if (index++ % kStride == 0) matrix.check(setting);
          }
        }
      }
    }
  }
  matrix.finish(architecture);
}

}  // namespace
}  // namespace foretoken
