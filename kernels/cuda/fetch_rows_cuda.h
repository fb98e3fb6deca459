#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/cuda/fetch_list.h"
#include "kernels/formats/matrix.h"

namespace foretoken::cuda {

/// A matrix of each expert, in host memory as the CPU reads it, and where it goes.
struct FetchedMatrix {
  const std::byte* from = nullptr;  // registered memory: row 0 of expert 0
  int64_t row_bytes = 0;            // there
  bool is_interleaved = false;
  int64_t stride_rows = 0;  // rows of an expert, on both sides
  DeviceMatrix to;          // row 0 of place 0
};

/// Experts from host memory to their places, rearranged as pack_device_rows does. Each byte crosses the bus once.
struct FetchDesc {
  FetchedMatrix matrices[3];
  int num_matrices = 0;
  const FetchList* list = nullptr;  // in device memory
  int most = kMostFetched;          // of the list
};

/// Whether there is a kernel for experts of `stride_rows` rows of this matrix. There is none for interleaved types with a
/// grid, whose form is another one in host memory.
[[nodiscard]] bool can_fetch(const MatrixView& from, int64_t stride_rows);

void launch(const FetchDesc& desc, const Stream& stream);

}  // namespace foretoken::cuda
