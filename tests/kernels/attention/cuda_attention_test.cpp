#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/rope.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"
#include "tests/kernels/attention/contiguous_kv.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace foretoken::cuda {
namespace {

using foretoken::test::ContiguousKv;

using test::random_values;
using test::same_bits;

constexpr float kEps = 1e-6f;

struct Shape {
  int num_heads, num_kv_heads, head_dim, rope_dim;
  int64_t ctx_size;
  KvType type;
  bool gated;
};

// A layer's cache on the host, [head][position][head_dim].
struct HostCache {
  explicit HostCache(const Shape& s) : shape(s) {
    const size_t bytes =
        static_cast<size_t>(s.num_kv_heads * s.ctx_size * s.head_dim) * (s.type == KvType::kF16 ? 2 : 4);
    keys.assign(bytes, std::byte{0});
    values.assign(bytes, std::byte{0});
  }
  std::byte* at(std::vector<std::byte>& from, int head, int64_t position) const {
    return from.data() + static_cast<size_t>((head * shape.ctx_size + position) * shape.head_dim) *
                             (shape.type == KvType::kF16 ? 2 : 4);
  }
  Shape shape;
  std::vector<std::byte> keys, values;
};

// The cache holds `before` positions; a window of num_rows rows is normalised, rotated, stored and attended.
void check_window(const Shape& s, int before, int num_rows, bool apart) {
  const Stream stream;
  const int group = s.num_heads / s.num_kv_heads;
  const int64_t q_stride = (s.gated ? 2 : 1) * s.num_heads * s.head_dim, kv_stride = s.num_kv_heads * s.head_dim;
  const int64_t out_stride = s.num_heads * s.head_dim, head_stride = (s.gated ? 2 : 1) * s.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  const RopeTable rope_table(s.rope_dim, 1e4, s.ctx_size);
  const auto q_norm = random_values(static_cast<size_t>(s.head_dim), 1),
             k_norm = random_values(static_cast<size_t>(s.head_dim), 2);

  HostCache cache(s);
  std::vector<float> old = random_values(static_cast<size_t>(2 * s.num_kv_heads * s.ctx_size * s.head_dim), 3);
  for (int h = 0; h < s.num_kv_heads; ++h) {
    for (int64_t p = 0; p < before; ++p) {
      const float* from = &old[static_cast<size_t>((h * s.ctx_size + p) * 2 * s.head_dim)];
      store_kv(Isa::kScalar, from, s.head_dim, s.type, cache.at(cache.keys, h, p));
      store_kv(Isa::kScalar, from + s.head_dim, s.head_dim, s.type, cache.at(cache.values, h, p));
    }
  }
  const DeviceBuffer keys = test::upload(stream, cache.keys), values = test::upload(stream, cache.values);

  const auto q = random_values(static_cast<size_t>(num_rows * q_stride), 4),
             k = random_values(static_cast<size_t>(num_rows * kv_stride), 5),
             v = random_values(static_cast<size_t>(num_rows * kv_stride), 6);

  // The reference.
  std::vector<float> wanted(static_cast<size_t>(num_rows * out_stride));
  for (int r = 0; r < num_rows; ++r) {
    for (int h = 0; h < s.num_kv_heads; ++h) {
      std::vector<float> key(k.begin() + r * kv_stride + h * s.head_dim,
                             k.begin() + r * kv_stride + (h + 1) * s.head_dim);
      rms_norm(Isa::kScalar, key.data(), k_norm.data(), s.head_dim, kEps, key.data());
      rope(Isa::kScalar, rope_table, before + r, key.data());
      store_kv(Isa::kScalar, key.data(), s.head_dim, s.type, cache.at(cache.keys, h, before + r));
      store_kv(Isa::kScalar, &v[static_cast<size_t>(r * kv_stride + h * s.head_dim)], s.head_dim, s.type,
               cache.at(cache.values, h, before + r));
    }
    for (int h = 0; h < s.num_heads; ++h) {
      std::vector<float> query(q.begin() + r * q_stride + h * head_stride,
                               q.begin() + r * q_stride + h * head_stride + s.head_dim);
      rms_norm(Isa::kScalar, query.data(), q_norm.data(), s.head_dim, kEps, query.data());
      rope(Isa::kScalar, rope_table, before + r, query.data());
      float* out = &wanted[static_cast<size_t>(r * out_stride + h * s.head_dim)];
      AttentionQuery attending{query.data(), before + r + 1, 0, 0, out};
      attention_reset(attending, s.head_dim);
      std::vector<float> scratch(static_cast<size_t>(kAttentionSplit + s.head_dim));
      const ContiguousKv head{cache.at(cache.keys, h / group, 0), cache.at(cache.values, h / group, 0), s.type};
      for (int64_t split = 0; split * kAttentionSplit < before + r + 1; ++split) {
        attention_split(Isa::kScalar, head.split(split, s.head_dim), s.head_dim, scale, split, &attending, 1,
                        scratch.data());
      }
      attention_finish(Isa::kScalar, attending, s.head_dim);
      if (s.gated)
        sigmoid_gate(Isa::kScalar, &q[static_cast<size_t>(r * q_stride + h * head_stride + s.head_dim)], s.head_dim,
                     out);
    }
  }

  // The device, with room for two rows more than the pass has.
  const int max_rows = num_rows + 2;
  PassScalars scalars;
  scalars.num_rows = num_rows;
  scalars.position = before;
  const DeviceBuffer pass = test::upload(stream, std::vector<PassScalars>{scalars});
  std::vector<float> table(rope_table.cos(0), rope_table.cos(0) + s.ctx_size * s.rope_dim);
  const DeviceBuffer device_q = test::upload(stream, q), device_k = test::upload(stream, k),
                     device_v = test::upload(stream, v), device_q_norm = test::upload(stream, q_norm),
                     device_k_norm = test::upload(stream, k_norm), device_rope = test::upload(stream, table);
  const DeviceBuffer queries(static_cast<size_t>(max_rows * out_stride) * 4),
      out(static_cast<size_t>(max_rows * out_stride) * 4);
  const DeviceKv kv{keys.data(), values.data(), s.ctx_size, s.type};
  PrepareAttentionDesc prepare;
  prepare.q = device_q.data<float>();
  prepare.q_stride = q_stride;
  prepare.q_head_stride = head_stride;
  prepare.k = device_k.data<float>();
  prepare.v = device_v.data<float>();
  prepare.q_norm = device_q_norm.data<float>();
  prepare.k_norm = device_k_norm.data<float>();
  prepare.eps = kEps;
  prepare.rope = device_rope.data<float>();
  prepare.rope_dim = s.rope_dim;
  prepare.num_heads = s.num_heads;
  prepare.num_kv_heads = s.num_kv_heads;
  prepare.head_dim = s.head_dim;
  prepare.queries = queries.data<float>();
  prepare.kv = kv;
  prepare.max_rows = max_rows;
  prepare.pass = pass.data<PassScalars>();
  launch(prepare, stream);

  AttentionDesc attention;
  attention.queries = queries.data<float>();
  attention.kv = kv;
  attention.num_heads = s.num_heads;
  attention.num_kv_heads = s.num_kv_heads;
  attention.head_dim = s.head_dim;
  attention.scale = scale;
  if (s.gated) {
    attention.gate = device_q.data<float>() + s.head_dim;
    attention.gate_stride = q_stride;
    attention.gate_head_stride = head_stride;
  }
  attention.out = out.data<float>();
  attention.max_rows = max_rows;
  attention.pass = pass.data<PassScalars>();
  const DeviceBuffer parts(apart ? static_cast<size_t>(attention.part_floats()) * 4 : 0);
  attention.parts = parts.data<float>();
  AttentionConfig config = choose_config(attention);
  REQUIRE(config.apart == apart);
  if (apart) config.blocks_of_splits = 2;  // so that a block has more than one split to do
  launch(attention, config, stream);

  CHECK(test::download<std::byte>(stream, keys.data(), cache.keys.size()) == cache.keys);
  CHECK(test::download<std::byte>(stream, values.data(), cache.values.size()) == cache.values);
  CHECK(same_bits(test::download<float>(stream, out.data(), wanted.size()), wanted));
}

TEST_CASE("attention: norm, rotation, cache and splits for windows anywhere in the context") {
  const Shape gated{4, 2, 32, 16, 700, KvType::kF16, true};
  test::for_each_order([&] {
    for (const bool apart : {false, true}) {
      check_window(gated, 0, 1, apart);
      check_window(gated, 5, 3, apart);
      check_window(gated, 254, 5, apart);  // rows on both sides of a split
      check_window(gated, 600, 2, apart);
    }
  });
  check_window({8, 1, 64, 64, 300, KvType::kF32, false}, 250, 9, true);
  check_window({2, 2, 128, 128, 64, KvType::kF16, false}, 3, 4, false);
  check_window({4, 1, 256, 64, 600, KvType::kF16, true}, 511, 3, true);
  check_window({3, 3, 48, 24, 300, KvType::kF16, true}, 260, 2, false);  // a head that is no power of two
  check_window({2, 1, 16, 16, 40, KvType::kF16, false}, 20, 2, true);
}

}  // namespace
}  // namespace foretoken::cuda
