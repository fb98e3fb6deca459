#pragma once

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_rows.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/formats/interleave.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/rows/row_buffer.h"
#ifdef FORETOKEN_CUDA_EMULATION
#include "kernels/cuda/emulation/cuda_emulation.h"
#endif

// The same test bodies run against the GPU and against its emulation. Everything is compared bit for bit with the
// scalar reference.

namespace foretoken::cuda::test {

/// Host vector -> device memory and back.
template <class T>
DeviceBuffer upload(const Stream& stream, const std::vector<T>& values) {
  DeviceBuffer buffer(std::max<size_t>(values.size(), 1) * sizeof(T), "test data");
  copy_to_device(stream, buffer.data(), values.data(), values.size() * sizeof(T));
  stream.synchronize();
  return buffer;
}

template <class T>
std::vector<T> download(const Stream& stream, const void* from, size_t count) {
  std::vector<T> values(count);
  copy_to_host(stream, values.data(), from, count * sizeof(T));
  stream.synchronize();
  return values;
}

/// Both orders of warps, lanes and blocks in the emulation; once on a GPU, which has its own.
template <class Body>
void for_each_order(Body&& body) {
#ifdef FORETOKEN_CUDA_EMULATION
  for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward}) {
    emulation::set_order(order);
    body();
  }
  emulation::set_order(emulation::Order::kForward);
#else
  body();
#endif
}

/// Kernels that have run since the last call; nullopt on a GPU, where nobody counts.
inline std::optional<size_t> take_launches() {
#ifdef FORETOKEN_CUDA_EMULATION
  size_t count = 0;
  for (const auto& [name, runs] : emulation::take_kernel_counts()) count += runs;
  return count;
#else
  return std::nullopt;
#endif
}

/// Values with the spread of activations: normal, some outliers.
inline std::vector<float> random_values(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& x : values) x = random() % 50 == 0 ? 20 * normal(random) : normal(random);
  return values;
}

/// A host matrix of any type, of random weights.
struct HostMatrix {
  std::vector<std::byte> bytes;
  MatrixView view;
};

inline HostMatrix random_matrix(WeightType type, int64_t num_rows, int64_t num_cols, uint32_t seed) {
  HostMatrix matrix;
  matrix.view = {nullptr, num_rows, num_cols, type, Layout::kRows};
  matrix.bytes.resize(matrix.view.size_bytes());
  matrix.view.data = matrix.bytes.data();
  const std::vector<float> values = random_values(static_cast<size_t>(num_rows * num_cols), seed);
  for (int64_t r = 0; r < num_rows; ++r) {
    encode_row(type, &values[r * num_cols], num_cols,
               matrix.bytes.data() + static_cast<size_t>(r) * matrix.view.row_bytes());
  }
  return matrix;
}

/// A host matrix of random bytes with finite scales, so that every bit pattern of a block occurs.
inline HostMatrix noise_matrix(WeightType type, int64_t num_rows, int64_t num_cols, uint32_t seed) {
  HostMatrix matrix = random_matrix(type, num_rows, num_cols, seed);
  const WeightTypeInfo& info = weight_type_info(type);
  const auto block_bytes = static_cast<size_t>(info.block_bytes);
  std::mt19937 random(seed);
  for (size_t at = 0; at < matrix.bytes.size(); at += block_bytes) {
    do {
      for (size_t i = at; i < at + block_bytes; ++i) matrix.bytes[i] = static_cast<std::byte>(random());
      // Powers of two that stay far from infinity after a dot product.
      if (type == WeightType::kMXFP4) matrix.bytes[at] = static_cast<std::byte>(random() % 60);
    } while (!row_is_finite(type, &matrix.bytes[at], info.block_size));
  }
  return matrix;
}

/// A host matrix on the device.
struct DeviceMatrixMemory {
  DeviceBuffer buffer;
  DeviceMatrix matrix;
};

inline DeviceMatrixMemory to_device(const Stream& stream, const MatrixView& view) {
  const int64_t row_bytes = device_row_bytes(view.type, view.num_cols);
  std::vector<std::byte> packed(static_cast<size_t>(view.num_rows * row_bytes));
  pack_device_rows(view, 0, view.num_rows, packed.data());
  DeviceMatrixMemory memory{upload(stream, packed), {}};
  memory.matrix = {memory.buffer.data(), view.num_rows, view.num_cols, row_bytes, view.type, view.scale};
  return memory;
}

/// True if the two are the same bits; every NaN counts as the same one. A failing test says where.
inline bool same_bits(const std::vector<float>& got, const std::vector<float>& wanted) {
  REQUIRE(got.size() == wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const bool both_nan = got[i] != got[i] && wanted[i] != wanted[i];
    if (!both_nan && std::memcmp(&got[i], &wanted[i], sizeof(float)) != 0) {
      UNSCOPED_INFO("value " << i << " of " << got.size() << " is " << got[i] << ", not " << wanted[i]);
      return false;
    }
  }
  return true;
}

}  // namespace foretoken::cuda::test
