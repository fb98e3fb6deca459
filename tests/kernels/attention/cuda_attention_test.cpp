#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/rope.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "kernels/rows/rms_norm.h"
#include "tests/kernels/attention/contiguous_kv.h"
#include "tests/kernels/cuda/cuda_pass_support.h"

namespace foretoken::cuda {
namespace {

using foretoken::test::ContiguousKv;
using test::random_values;
using test::same_bits;

constexpr float kEps = 1e-6f;
constexpr int kLayers = 2, kLayer = 1;  // of a page, and the one that is tested

struct Shape {
  int num_heads, num_kv_heads, head_dim, rope_dim;
  int64_t ctx_size;
  KvType type;
  bool gated;
  bool plain = false;  // as in Llama: heads are not normed, adjacent values turn together

  [[nodiscard]] int64_t value_bytes() const { return type == KvType::kF16 ? 2 : 4; }
  [[nodiscard]] int64_t head_values() const { return int64_t{kAttentionSplit} * head_dim; }
  [[nodiscard]] int64_t layer_values() const { return num_kv_heads * 2 * head_values(); }
  [[nodiscard]] int64_t page_values() const { return kLayers * layer_values(); }
  [[nodiscard]] int64_t pages_per_sequence() const { return (ctx_size + kAttentionSplit - 1) / kAttentionSplit; }
};

struct Sequence {
  int before;             // positions in the cache
  int num_rows;           // of the pass
  bool is_window = true;  // else a prompt chunk
  int shares_with = -1;   // an earlier sequence, whose full pages are this one's too
};

/// Pages on the host, and which of them a sequence has.
class HostPages {
 public:
  explicit HostPages(const Shape& s) : s_(s) {}

  void resize(int64_t num_pages) { bytes.assign(num_pages * s_.page_values() * s_.value_bytes(), std::byte{0x5a}); }
  /// Keys (part 0) or values (part 1) of a head at one position.
  std::byte* at(const std::vector<int32_t>& pages, int part, int head, int64_t position) {
    const int64_t page = pages[position / kAttentionSplit];
    const int64_t value = page * s_.page_values() + kLayer * s_.layer_values() + (2 * head + part) * s_.head_values() +
                          position % kAttentionSplit * s_.head_dim;
    return bytes.data() + static_cast<size_t>(value * s_.value_bytes());
  }

  std::vector<std::byte> bytes;

 private:
  const Shape s_;
};

// The caches hold positions of each sequence; the rows of the pass are normalised, rotated, stored and attended.
void check_pass(const Shape& s, const std::vector<Sequence>& sequences, bool apart) {
  const Stream stream;
  const int group = s.num_heads / s.num_kv_heads;
  const int64_t q_stride = (s.gated ? 2 : 1) * s.num_heads * s.head_dim, kv_stride = s.num_kv_heads * s.head_dim;
  const int64_t out_stride = s.num_heads * s.head_dim, head_stride = (s.gated ? 2 : 1) * s.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  std::vector<double> frequencies;
  for (int i = 0; i < s.rope_dim / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * i / s.rope_dim));
  const RopeTable rope_table(frequencies, s.plain ? 1.25 : 1, s.plain ? RopePairs::kAdjacent : RopePairs::kHalves,
                             s.ctx_size);
  const auto q_norm = random_values(static_cast<size_t>(s.head_dim), 1),
             k_norm = random_values(static_cast<size_t>(s.head_dim), 2);
  int num_rows = 0;
  for (const Sequence& sequence : sequences) num_rows += sequence.num_rows;

  // Pages in scattered order, some of them nobody's.
  const int64_t count = static_cast<int64_t>(sequences.size()), per_sequence = s.pages_per_sequence();
  std::vector<int32_t> order(static_cast<size_t>(count * per_sequence + 2));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(9));
  HostPages host(s);
  host.resize(static_cast<int64_t>(order.size()));
  std::vector<std::vector<int32_t>> pages;
  for (size_t i = 0; i < sequences.size(); ++i) {
    pages.emplace_back(order.begin() + static_cast<int64_t>(i) * per_sequence,
                       order.begin() + static_cast<int64_t>(i + 1) * per_sequence);
    const int with = sequences[i].shares_with;
    const int shared = with < 0 ? 0 : std::min(sequences[i].before, sequences[with].before) / kAttentionSplit;
    for (int page = 0; page < shared; ++page) pages[i][page] = pages[with][page];
    const auto old =
        random_values(static_cast<size_t>(2 * s.num_kv_heads * s.ctx_size * s.head_dim), static_cast<uint32_t>(3 + i));
    for (int h = 0; h < s.num_kv_heads; ++h) {
      for (int64_t p = int64_t{shared} * kAttentionSplit; p < sequences[i].before; ++p) {
        const float* from = &old[(h * s.ctx_size + p) * 2 * s.head_dim];
        store_kv(Isa::kScalar, from, s.head_dim, s.type, host.at(pages[i], 0, h, p));
        store_kv(Isa::kScalar, from + s.head_dim, s.head_dim, s.type, host.at(pages[i], 1, h, p));
      }
    }
  }
  const DeviceBuffer pool = test::upload(stream, host.bytes);

  const auto q = random_values(static_cast<size_t>(num_rows * q_stride), 4),
             k = random_values(static_cast<size_t>(num_rows * kv_stride), 5),
             v = random_values(static_cast<size_t>(num_rows * kv_stride), 6);

  // The reference: each sequence alone, its keys and values side by side.
  std::vector<float> wanted(static_cast<size_t>(num_rows * out_stride));
  int64_t row = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (int r = 0; r < sequences[i].num_rows; ++r, ++row) {
      const int64_t position = sequences[i].before + r;
      for (int h = 0; h < s.num_kv_heads; ++h) {
        std::vector<float> key(k.begin() + row * kv_stride + h * s.head_dim,
                               k.begin() + row * kv_stride + (h + 1) * s.head_dim);
        if (!s.plain) rms_norm(Isa::kScalar, key.data(), k_norm.data(), s.head_dim, kEps, key.data());
        rope(Isa::kScalar, rope_table, position, key.data());
        store_kv(Isa::kScalar, key.data(), s.head_dim, s.type, host.at(pages[i], 0, h, position));
        store_kv(Isa::kScalar, &v[row * kv_stride + h * s.head_dim], s.head_dim, s.type,
                 host.at(pages[i], 1, h, position));
      }
      for (int h = 0; h < s.num_heads; ++h) {
        std::vector<float> query(q.begin() + row * q_stride + h * head_stride,
                                 q.begin() + row * q_stride + h * head_stride + s.head_dim);
        if (!s.plain) rms_norm(Isa::kScalar, query.data(), q_norm.data(), s.head_dim, kEps, query.data());
        rope(Isa::kScalar, rope_table, position, query.data());
        float* out = &wanted[row * out_stride + h * s.head_dim];
        AttentionQuery attending{query.data(), position + 1, 0, 0, out};
        attention_reset(attending, s.head_dim);
        std::vector<float> scratch(static_cast<size_t>(kAttentionSplit + s.head_dim));
        std::vector<std::byte> keys, values;
        for (int64_t p = 0; p <= position; ++p) {
          const auto bytes = static_cast<size_t>(s.head_dim * s.value_bytes());
          const std::byte* key = host.at(pages[i], 0, h / group, p);
          const std::byte* value = host.at(pages[i], 1, h / group, p);
          keys.insert(keys.end(), key, key + bytes);
          values.insert(values.end(), value, value + bytes);
        }
        const ContiguousKv head{keys.data(), values.data(), s.type};
        for (int64_t split = 0; split * kAttentionSplit <= position; ++split) {
          attention_split(Isa::kScalar, head.split(split, s.head_dim), s.head_dim, scale, split, &attending, 1,
                          scratch.data());
        }
        attention_finish(Isa::kScalar, attending, s.head_dim);
        if (s.gated) {
          sigmoid_gate(Isa::kScalar, &q[row * q_stride + h * head_stride + s.head_dim], s.head_dim, out);
        }
      }
    }
  }

  // The device, with room for two rows and a span more than the pass has. Sequences have their tables in another order.
  const int max_rows = num_rows + 2;
  std::vector<DeviceSpan> spans;
  std::vector<int32_t> tables(static_cast<size_t>(count * per_sequence));
  int window_rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Sequence& sequence = sequences[i];
    DeviceSpan span;
    span.num_rows = sequence.num_rows;
    span.position = sequence.before;
    span.sequence = static_cast<int32_t>((i + 1) % count);
    span.is_window = sequence.is_window ? 1 : 0;
    spans.push_back(span);
    window_rows += sequence.is_window ? sequence.num_rows : 0;
    const std::vector<int32_t>& table = pages[i];
    std::copy(table.begin(), table.end(), tables.begin() + span.sequence * per_sequence);
  }
  const test::PassOnDevice pass(stream, test::in_a_row(spans));
  std::vector<float> table(rope_table.cos(0), rope_table.cos(0) + s.ctx_size * s.rope_dim);
  const DeviceBuffer device_q = test::upload(stream, q), device_k = test::upload(stream, k),
                     device_v = test::upload(stream, v), device_q_norm = test::upload(stream, q_norm),
                     device_k_norm = test::upload(stream, k_norm), device_rope = test::upload(stream, table),
                     device_pages = test::upload(stream, tables);
  const DeviceBuffer queries(static_cast<size_t>(max_rows * out_stride) * 4),
      out(static_cast<size_t>(max_rows * out_stride) * 4);
  DeviceKv kv;
  kv.data = pool.data() + kLayer * s.layer_values() * s.value_bytes();
  kv.page_stride = s.page_values();
  kv.pages = device_pages.data<int32_t>();
  kv.pages_per_sequence = per_sequence;
  kv.type = s.type;
  PrepareAttentionDesc prepare;
  prepare.q = device_q.data<float>();
  prepare.q_stride = q_stride;
  prepare.q_head_stride = head_stride;
  prepare.k = device_k.data<float>();
  prepare.v = device_v.data<float>();
  if (!s.plain) {
    prepare.q_norm = device_q_norm.data<float>();
    prepare.k_norm = device_k_norm.data<float>();
  }
  prepare.adjacent_pairs = s.plain;
  prepare.eps = kEps;
  prepare.rope = device_rope.data<float>();
  prepare.rope_dim = s.rope_dim;
  prepare.num_heads = s.num_heads;
  prepare.num_kv_heads = s.num_kv_heads;
  prepare.head_dim = s.head_dim;
  prepare.queries = queries.data<float>();
  prepare.kv = kv;
  prepare.max_rows = max_rows;
  prepare.pass = pass.pass();
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
  attention.pass = pass.pass();
  attention.max_window_rows = window_rows;
  const DeviceBuffer parts(apart ? static_cast<size_t>(attention.part_floats()) * 4 : 0);
  attention.parts = parts.data<float>();
  AttentionConfig config = choose_config(attention);
  REQUIRE(config.apart == apart);
  if (apart) config.blocks_of_splits = 2;  // so that a block has more than one split to do
  launch(attention, config, stream);

  CHECK(test::download<std::byte>(stream, pool.data(), host.bytes.size()) == host.bytes);
  CHECK(same_bits(test::download<float>(stream, out.data(), wanted.size()), wanted));

  // The int8 forms, made where splits are merged, against those that a launch of its own makes.
  const unsigned forms =
      (out_stride % 32 == 0 ? RowMemory::kBy32 : 0u) | (out_stride % 256 == 0 ? RowMemory::kBy256 : 0u);
  if (!apart || forms == 0 || window_rows < num_rows) return;
  const RowMemory merged(max_rows, out_stride, forms), afterwards(max_rows, out_stride, forms);
  attention.out = merged.rows().values;
  attention.by32 = merged.rows().by32;
  attention.by256 = merged.rows().by256;
  launch(attention, config, stream);
  copy_to_device(stream, afterwards.rows().values, wanted.data(), wanted.size() * sizeof(float));
  const QuantiseDesc quantise{afterwards.rows(), static_cast<int>(num_rows), nullptr};
  launch(quantise, choose_config(quantise), stream);
  for (const int block : {32, 256}) {
    if (out_stride % block != 0) continue;
    const QuantRows &got = block == 32 ? merged.rows().by32 : merged.rows().by256,
                    &want = block == 32 ? afterwards.rows().by32 : afterwards.rows().by256;
    const auto rows = static_cast<size_t>(num_rows), blocks = static_cast<size_t>(got.num_blocks);
    const auto same = [&]<class T>(const T* a, const T* b, size_t per_row) {
      return test::download<T>(stream, a, rows * per_row) == test::download<T>(stream, b, rows * per_row);
    };
    INFO("forms by " << block);
    CHECK(same(got.d, want.d, blocks));
    CHECK(same(got.sums, want.sums, static_cast<size_t>(sums_stride(block, got.num_blocks))));
    // Of an odd number of blocks of 256 the last has gaps behind each run.
    if (block == 32 || blocks % 2 == 0)
      CHECK(same(got.q, want.q, static_cast<size_t>(cuda::q_stride(block, got.num_blocks))));
    if (block == 256 && blocks % 2 == 1) {
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t b = 0; b < got.num_blocks; ++b) {
          for (int run = 0; run < 16; ++run) {
            const int64_t at = r * cuda::q_stride(256, got.num_blocks) + run_offset(b, run / 4, run % 4);
            CHECK(test::download<int8_t>(stream, got.q + at, 16) == test::download<int8_t>(stream, want.q + at, 16));
          }
        }
      }
    }
  }
}

TEST_CASE("attention: norm, rotation, cache and splits for windows anywhere in the context") {
  const Shape gated{4, 2, 32, 16, 700, KvType::kF16, true};
  test::for_each_order([&] {
    for (const bool apart : {false, true}) {
      check_pass(gated, {{0, 1}}, apart);
      check_pass(gated, {{5, 3}}, apart);
      check_pass(gated, {{254, 5}}, apart);  // rows on both sides of a split
      check_pass(gated, {{600, 2}}, apart);
    }
  });
  check_pass({8, 1, 64, 64, 300, KvType::kF32, false}, {{250, 9}}, true);
  check_pass({2, 2, 128, 128, 64, KvType::kF16, false}, {{3, 4}}, false);
  check_pass({4, 1, 256, 64, 600, KvType::kF16, true}, {{511, 3}}, true);
  check_pass({3, 3, 48, 24, 300, KvType::kF16, true}, {{260, 2}}, false);  // a head that is no power of two
  check_pass({3, 3, 100, 20, 300, KvType::kF16, true}, {{260, 2}}, true);  // rows of 200 bytes
  check_pass({2, 1, 50, 20, 300, KvType::kF32, true}, {{258, 3}}, false);
  check_pass({2, 1, 160, 32, 600, KvType::kF32, true}, {{520, 3}}, true);  // warps without dimensions
  check_pass({16, 2, 256, 64, 900, KvType::kF16, true}, {{800, 4}, {40, 20, false}}, true);
  check_pass({8, 2, 128, 64, 600, KvType::kF32, false}, {{511, 4}, {300, 20, false}}, false);
  check_pass({2, 1, 16, 16, 40, KvType::kF16, false}, {{20, 2}}, true);
  check_pass({6, 2, 64, 64, 300, KvType::kF16, false, /*plain=*/true}, {{254, 5}}, true);
  check_pass({5, 5, 64, 64, 1400, KvType::kF16, false}, {{1300, 2}}, true);  // 320 values: a block and a quarter
  check_pass({12, 3, 64, 64, 300, KvType::kF16, true}, {{255, 3}}, true);    // three blocks of 256
  check_pass({4, 2, 48, 24, 300, KvType::kF32, false, /*plain=*/true}, {{3, 2}, {9, 20, false}}, false);
}

TEST_CASE("attention: several sequences in one pass, windows beside prompt chunks, pages in scattered order") {
  const Shape gated{4, 2, 32, 16, 700, KvType::kF16, true};
  constexpr bool kChunk = false;
  test::for_each_order([&] {
    for (const bool apart : {false, true}) {
      check_pass(gated, {{254, 5}, {0, 1}, {600, 3}}, apart);
      check_pass(gated, {{3, 2}, {250, 17, kChunk}, {511, 1}}, apart);
    }
  });
  check_pass({6, 2, 64, 64, 520, KvType::kF32, false}, {{0, 9, kChunk}, {0, 20, kChunk}, {510, 1}}, true);
  check_pass(gated, {{0, 1}, {1, 4}, {255, 1}, {256, 2}, {257, 9}, {0, 30, kChunk}, {511, 3}, {693, 7}}, true);
  // A beginning in common: two pages, and one.
  check_pass(gated, {{600, 2}, {513, 3, true, 0}, {300, 1, true, 1}}, true);
  check_pass(gated, {{520, 2}, {512, 20, kChunk, 0}, {512, 1, true, 0}}, false);
}

}  // namespace
}  // namespace foretoken::cuda
