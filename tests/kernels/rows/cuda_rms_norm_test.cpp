#include <catch2/catch.hpp>

#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"
#include "kernels/rows/rms_norm_cuda.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace foretoken::cuda {
namespace {

using test::random_values;
using test::same_bits;

constexpr float kEps = 1e-6f;

std::vector<float> values_of(RowBuffer& rows, int num_rows, int64_t num_cols) {
  return {rows.row(0), rows.row(0) + num_rows * num_cols};
}

// Forms of the reference rows, in the device's order.
void check_forms(const Stream& stream, RowBuffer& host, const DeviceRows& device, int num_rows) {
  const int64_t num_cols = device.num_cols;
  for (int r = 0; r < num_rows; ++r) {
    if (!device.by256.empty()) {
      host.quantise(Isa::kScalar, r, 256);
      const QuantisedRow want = host.view(r).by256;
      const int64_t blocks = num_cols / 256;
      const auto q = test::download<int8_t>(stream, device.by256.q + r * q_stride(256, blocks),
                                            static_cast<size_t>(q_stride(256, blocks)));
      const auto sums =
          test::download<int16_t>(stream, device.by256.sums + r * blocks * 16, static_cast<size_t>(blocks * 16));
      const auto d = test::download<float>(stream, device.by256.d + r * blocks, static_cast<size_t>(blocks));
      bool same = true;
      for (int64_t b = 0; b < blocks; ++b) {
        same = same && std::memcmp(&d[b], &want.d[b], 4) == 0;
        for (int t = 0; t < 4; ++t) {
          for (int j = 0; j < 4; ++j) {
            const int64_t run = b * 16 + run_of_lane(t, j);
            same = same && std::memcmp(&q[run_offset(b, t, j)], want.q + run * 16, 16) == 0;
            same = same && sums[b * 16 + 4 * t + j] == want.sums[run];
          }
        }
      }
      CHECK(same);
    }
    if (!device.by32.empty()) {
      host.quantise(Isa::kScalar, r, 32);
      const QuantisedRow want = host.view(r).by32;
      const int64_t blocks = num_cols / 32;
      const auto q = test::download<int8_t>(stream, device.by32.q + r * num_cols, static_cast<size_t>(num_cols));
      const auto sums = test::download<int16_t>(stream, device.by32.sums + r * blocks, static_cast<size_t>(blocks));
      const auto d = test::download<float>(stream, device.by32.d + r * blocks, static_cast<size_t>(blocks));
      bool same = true;
      for (int64_t b = 0; b < blocks; ++b) {
        same = same && std::memcmp(&d[b], &want.d[b], 4) == 0;
        same = same && sums[b] == want.sums[2 * b] + want.sums[2 * b + 1];
        for (int i = 0; i < 32; ++i) {
          same = same && q[b * 32 + i % 16 / 4 * 8 + i / 16 * 4 + i % 4] == want.q[b * 32 + i];
        }
      }
      CHECK(same);
    }
  }
}

TEST_CASE("norm of rows: addition, norm and the int8 forms in one step") {
  const Stream stream;
  for (const int64_t num_cols : {256, 768, 2048}) {
    const int num_rows = 3;
    const auto count = static_cast<size_t>(num_rows * num_cols);
    const std::vector<float> x = random_values(count, 1), y = random_values(count, 2),
                             weight = random_values(static_cast<size_t>(num_cols), 3);
    const DeviceBuffer device_y = test::upload(stream, y), device_weight = test::upload(stream, weight);
    test::for_each_order([&] {
      const DeviceBuffer residual = test::upload(stream, x);
      const RowMemory out(num_rows, num_cols, RowMemory::kBy32 | RowMemory::kBy256);
      NormRowsDesc desc;
      desc.residual = residual.data<float>();
      desc.num_cols = num_cols;
      desc.add = device_y.data<float>();
      desc.weight = device_weight.data<float>();
      desc.eps = kEps;
      desc.out = out.rows().values;
      desc.out_stride = num_cols;
      desc.by32 = out.rows().by32;
      desc.by256 = out.rows().by256;
      desc.max_rows = num_rows;
      launch(desc, choose_config(desc), stream);

      std::vector<float> sum = x;
      RowBuffer host(num_rows, num_cols);
      for (int r = 0; r < num_rows; ++r) {
        float* row = &sum[r * num_cols];
        add(Isa::kScalar, &y[r * num_cols], num_cols, row);
        rms_norm(Isa::kScalar, row, weight.data(), num_cols, kEps, host.row(r));
      }
      CHECK(same_bits(test::download<float>(stream, residual.data(), count), sum));
      CHECK(same_bits(test::download<float>(stream, out.rows().values, count), values_of(host, num_rows, num_cols)));
      check_forms(stream, host, out.rows(), num_rows);
    });
  }
}

void check_experts_join(int top_k, int64_t num_cols, bool has_shared) {
  INFO(top_k << " experts, " << num_cols << " values" << (has_shared ? ", a shared expert" : ""));
  const Stream stream;
  const int num_rows = 2;
  const auto count = static_cast<size_t>(num_rows * num_cols);
  const auto num_slots = static_cast<size_t>(num_rows * top_k);
  const std::vector<float> x = random_values(count, 1),
                           slots = random_values(num_slots * static_cast<size_t>(num_cols), 2),
                           weights = random_values(num_slots, 3), shared = random_values(count, 4),
                           shared_weight = random_values(num_rows, 5);
  const DeviceBuffer device_slots = test::upload(stream, slots), device_weights = test::upload(stream, weights),
                     device_shared = test::upload(stream, shared),
                     device_shared_weight = test::upload(stream, shared_weight);
  const DeviceBuffer residual = test::upload(stream, x);
  NormRowsDesc desc;
  desc.residual = residual.data<float>();
  desc.num_cols = num_cols;
  desc.experts = {device_slots.data<float>(), device_weights.data<float>(), top_k,
                  has_shared ? device_shared.data<float>() : nullptr, device_shared_weight.data<float>()};
  desc.max_rows = num_rows;
  launch(desc, choose_config(desc), stream);

  std::vector<float> wanted = x;
  for (int r = 0; r < num_rows; ++r) {
    std::vector<float> sum(static_cast<size_t>(num_cols), 0.0f);
    for (int rank = 0; rank < top_k; ++rank) {
      const auto slot = static_cast<size_t>(r * top_k + rank);
      add_scaled(Isa::kScalar, weights[slot], &slots[slot * static_cast<size_t>(num_cols)], num_cols, sum.data());
    }
    if (has_shared) {
      add_scaled(Isa::kScalar, shared_weight[r], &shared[r * num_cols], num_cols, sum.data());
    }
    add(Isa::kScalar, sum.data(), num_cols, &wanted[r * num_cols]);
  }
  CHECK(same_bits(test::download<float>(stream, residual.data(), count), wanted));
}

TEST_CASE("norm of rows: experts join the residual in rank order, then the shared one") {
  for (const int top_k : {1, 2, 3, 4, 6, 8, 10, 17}) {
    // Rows that are whole pieces of four values, and not; shorter than a block of threads, and longer.
    for (const int64_t num_cols : {100, 70, 2049}) check_experts_join(top_k, num_cols, top_k % 2 == 1);
    check_experts_join(top_k, 2112, true);
  }
}

TEST_CASE("norm of rows: rows of any length, with and without an addition") {
  const Stream stream;
  // 12,288 values take 48 KiB of shared memory: with the kernel's own a little more than a launch gets without asking.
  for (const int64_t num_cols : {3, 64, 130, 2050, 4100, 12288}) {
    for (const bool adds : {false, true}) {
      INFO(num_cols << " values" << (adds ? ", an addition" : ""));
      const int num_rows = 2;
      const auto count = static_cast<size_t>(num_rows * num_cols);
      const std::vector<float> x = random_values(count, 1), y = random_values(count, 2),
                               weight = random_values(static_cast<size_t>(num_cols), 3);
      const DeviceBuffer residual = test::upload(stream, x), device_y = test::upload(stream, y),
                         device_weight = test::upload(stream, weight), out(count * 4);
      NormRowsDesc desc;
      desc.residual = residual.data<float>();
      desc.num_cols = num_cols;
      if (adds) desc.add = device_y.data<float>();
      desc.weight = device_weight.data<float>();
      desc.eps = kEps;
      desc.out = out.data<float>();
      desc.out_stride = num_cols;
      desc.max_rows = num_rows;
      launch(desc, choose_config(desc), stream);
      std::vector<float> wanted(count);
      for (int r = 0; r < num_rows; ++r) {
        const auto at = static_cast<size_t>(r * num_cols);
        std::vector<float> sum(x.begin() + r * num_cols, x.begin() + (r + 1) * num_cols);
        if (adds) add(Isa::kScalar, &y[at], num_cols, sum.data());
        rms_norm(Isa::kScalar, sum.data(), weight.data(), num_cols, kEps, &wanted[at]);
      }
      CHECK(same_bits(test::download<float>(stream, out.data(), count), wanted));
    }
  }
}

TEST_CASE("norm of rows: rows beyond those of the pass stay untouched") {
  const Stream stream;
  const std::vector<float> x = random_values(4 * 64, 1), y = random_values(4 * 64, 2);
  const DeviceBuffer residual = test::upload(stream, x), add_device = test::upload(stream, y);
  const DeviceBuffer num_rows = test::upload(stream, std::vector<int32_t>{2});
  NormRowsDesc desc;
  desc.residual = residual.data<float>();
  desc.num_cols = 64;
  desc.add = add_device.data<float>();
  desc.max_rows = 4;
  desc.device_num_rows = num_rows.data<int32_t>();
  launch(desc, choose_config(desc), stream);
  std::vector<float> wanted = x;
  for (size_t i = 0; i < 2 * 64; ++i) wanted[i] += y[i];
  CHECK(same_bits(test::download<float>(stream, residual.data(), x.size()), wanted));
}

void check_gated_norm(int num_heads, int head_dim) {
  INFO(num_heads << " heads of " << head_dim);
  const Stream stream;
  const int num_rows = 3;
  const int64_t num_cols = num_heads * head_dim;
  const auto count = static_cast<size_t>(num_rows * num_cols);
  const std::vector<float> x = random_values(count, 1), z = random_values(count, 2),
                           weight = random_values(static_cast<size_t>(head_dim), 3);
  const DeviceBuffer device_x = test::upload(stream, x), device_z = test::upload(stream, z),
                     device_weight = test::upload(stream, weight);
  test::for_each_order([&] {
    const RowMemory out(num_rows, num_cols, RowMemory::kBy256);
    GatedNormRowsDesc desc;
    desc.x = device_x.data<float>();
    desc.z = device_z.data<float>();
    desc.weight = device_weight.data<float>();
    desc.eps = kEps;
    desc.num_heads = num_heads;
    desc.head_dim = head_dim;
    desc.out = out.rows().values;
    desc.by256 = out.rows().by256;
    desc.max_rows = num_rows;
    launch(desc, choose_config(desc), stream);
    RowBuffer host(num_rows, num_cols);
    for (int r = 0; r < num_rows; ++r) {
      for (int h = 0; h < num_heads; ++h) {
        const auto at = static_cast<size_t>(r * num_cols + h * head_dim);
        rms_norm_gated(Isa::kScalar, &x[at], weight.data(), &z[at], head_dim, kEps, host.row(r) + h * head_dim);
      }
    }
    CHECK(same_bits(test::download<float>(stream, out.rows().values, count), values_of(host, num_rows, num_cols)));
    check_forms(stream, host, out.rows(), num_rows);
  });
}

TEST_CASE("gated norm of heads") {
  check_gated_norm(6, 128);
  check_gated_norm(32, 16);
  check_gated_norm(16, 48);
  check_gated_norm(8, 32);
  check_gated_norm(3, 256);
}

}  // namespace
}  // namespace foretoken::cuda
