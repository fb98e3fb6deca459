// Speed of the float kernels on one thread, not a test: `bench_float_kernels [isa]`. Prints the bytes that must move
// per second, beside the read bandwidth measured in the same run, or the fma per second where arithmetic is the limit.

#include <fmt/core.h>

#include <time.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/half.h"
#include "kernels/delta_net/delta_net.h"
#include "kernels/matmul/float_matmul.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"
#include "kernels/select/softmax.h"
#include "tests/kernels/attention/contiguous_kv.h"

namespace foretoken {
namespace {

/// Processor time of this thread: other programs on the machine may hold the core up for as long as they like.
double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

/// Median seconds of one call, after one to warm up. A call is repeated until it takes a measurable time.
double seconds(const std::function<void()>& call) {
  call();
  std::vector<double> times;
  int repeats = 1;
  for (double total = 0.0; times.size() < 5 || (total < 0.3 && times.size() < 500);) {
    const double begin = thread_seconds();
    for (int i = 0; i < repeats; ++i) call();
    const double taken = thread_seconds() - begin;
    if (taken < 1e-4) {
      repeats *= 2;
      continue;
    }
    times.push_back(taken / repeats);
    total += taken;
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

constexpr size_t kLargeBytes = size_t{256} << 20;  // beyond any cache

void fill(float* values, size_t n) {
  std::minstd_rand random(1);
  for (size_t i = 0; i < n; ++i) values[i] = static_cast<float>(random() % 2001) * 0.001f - 1.0f;
}

void fill_half(uint16_t* values, size_t n) {
  std::minstd_rand random(1);
  for (size_t i = 0; i < n; ++i) values[i] = float_to_half(static_cast<float>(random() % 2001) * 0.001f - 1.0f);
}

void bench_matmul(Isa isa) {
  AlignedBuffer weights(kLargeBytes);
  const int64_t num_cols = 2048;
  RowBuffer rows(64, num_cols);
  for (int64_t r = 0; r < 64; ++r) fill(rows.row(r), static_cast<size_t>(num_cols));
  std::vector<RowView> views(64);
  for (size_t r = 0; r < 64; ++r) views[r].values = rows.row(static_cast<int64_t>(r));
  for (WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16}) {
    const int64_t value_bytes = type == WeightType::kF32 ? 4 : 2;
    if (type == WeightType::kF32) {
      fill(weights.data<float>(), kLargeBytes / 4);
    } else {
      fill_half(weights.data<uint16_t>(), kLargeBytes / 2);
    }
    for (int n : {1, 2, 3, 4, 5, 8, 64}) {
      const int64_t outputs = static_cast<int64_t>(kLargeBytes) / value_bytes / num_cols / (n > 8 ? 16 : 1);
      AlignedBuffer results(static_cast<size_t>(outputs * n) * sizeof(float));
      std::vector<float*> y;
      for (int r = 0; r < n; ++r) y.push_back(results.data<float>() + r * outputs);
      const MatrixView w{weights.data(), outputs, num_cols, type, Layout::kRows};
      const double t = seconds([&] { float_matmul_rows(isa, w, 0, outputs, views.data(), n, y.data()); });
      const double bytes = static_cast<double>(outputs * num_cols * value_bytes);
      const double fmas = static_cast<double>(outputs * num_cols) * n;
      fmt::print("matmul {:4} n={:<2}  {:6.2f} GB/s  {:6.2f} Gfma/s\n", weight_type_info(type).name, n,
                 bytes / t * 1e-9, fmas / t * 1e-9);
    }
  }
}

void bench_attention(Isa isa) {
  const int head_dim = 256, heads = 8;
  const int64_t kv_len = 32768;
  AlignedBuffer cache(static_cast<size_t>(kv_len * head_dim) * 8);
  AlignedBuffer vectors(static_cast<size_t>(64 * head_dim) * 8);
  fill(vectors.data<float>(), static_cast<size_t>(64 * head_dim));
  std::vector<float> scratch(static_cast<size_t>(kAttentionSplit + head_dim));
  for (KvType type : {KvType::kF16, KvType::kF32}) {
    const size_t count = static_cast<size_t>(2 * kv_len * head_dim);
    type == KvType::kF16 ? fill_half(cache.data<uint16_t>(), count) : fill(cache.data<float>(), count);
    const size_t half_bytes = count / 2 * (type == KvType::kF16 ? 2 : 4);
    const test::ContiguousKv head{cache.data(), cache.data() + half_bytes, type};
    for (int rows : {0, 1, 2, 4, 8}) {
      const int num_queries = rows == 0 ? 1 : rows * heads;
      std::vector<AttentionQuery> queries;
      for (int q = 0; q < num_queries; ++q) {
        float* vector = vectors.data<float>() + q * head_dim;
        queries.push_back({vector, kv_len - (num_queries - 1 - q) / heads, 0.0f, 0.0f, vector + 64 * head_dim});
        attention_reset(queries.back(), head_dim);
      }
      const double t = seconds([&] {
        for (int64_t s = 0; s < kv_len / kAttentionSplit; ++s) {
          attention_split(isa, head.split(s, head_dim), head_dim, 0.0625f, s, queries.data(), num_queries,
                          scratch.data());
        }
      });
      fmt::print("attention {} queries={:<2}  {:6.2f} GB/s  {:6.2f} Gfma/s\n", type == KvType::kF16 ? "F16" : "F32",
                 num_queries, static_cast<double>(2 * half_bytes) / t * 1e-9,
                 static_cast<double>(2 * kv_len * head_dim * num_queries) / t * 1e-9);
    }
  }
}

void bench_delta_net(Isa isa) {
  const int size = 128;
  const int64_t num_heads = static_cast<int64_t>(kLargeBytes / 4) / (size * size);
  AlignedBuffer states(kLargeBytes), inputs(static_cast<size_t>(4 * 64 * size) * 4), scratch(size_t{size} * size * 4);
  fill(inputs.data<float>(), static_cast<size_t>(3 * 64 * size));
  for (const auto& [num_rows, num_committed] : {std::pair{1, 1}, {1, 0}, {2, 1}, {4, 2}, {5, 2}, {8, 3}, {64, 64}}) {
    std::vector<DeltaRow> rows;
    for (int r = 0; r < num_rows; ++r) {
      float* p = inputs.data<float>() + 4 * r * size;
      rows.push_back(
          {p, p + size, p + 2 * size, 0.9f, 0.1f, r < num_committed && num_rows < 64 ? nullptr : p + 3 * size});
    }
    const int64_t heads = num_rows == 64 ? num_heads / 16 : num_heads;
    const double t = seconds([&] {
      for (int64_t h = 0; h < heads; ++h) {
        float* state = states.data<float>() + h * size * size;
        for (int column = 0; column < size; column += 64) {
          delta_net(isa, state, size, rows.data(), num_rows, num_committed, column, column + 64, scratch.data<float>());
        }
      }
    });
    const double bytes = static_cast<double>(heads * size * size * 4 * (num_committed > 0 ? 2 : 1));
    fmt::print(
        "delta_net rows={:<2} committed={:<2}  {:6.2f} GB/s (state read and written)  {:6.2f} Gop/s  {:.2f} us a "
        "head\n",
        num_rows, num_committed, bytes / t * 1e-9, static_cast<double>(heads * size * size * 4) * num_rows / t * 1e-9,
        t / static_cast<double>(heads) * 1e6);
  }
}

void bench_rows(Isa isa) {
  const int64_t vocabulary = 248320, hidden = 2048, channels = 8192;
  AlignedBuffer a(size_t{4} << 20), b(size_t{4} << 20), out(size_t{4} << 20);
  fill(a.data<float>(), size_t{1} << 20), fill(b.data<float>(), size_t{1} << 20);
  const auto report = [](const char* name, int64_t n, double bytes_each, double t) {
    fmt::print("{:24} n={:<6}  {:8.2f} us  {:6.2f} GB/s  {:.2f} ns/value\n", name, n, t * 1e6,
               static_cast<double>(n) * bytes_each / t * 1e-9, t / static_cast<double>(n) * 1e9);
  };
  int64_t sink = 0;
  report("argmax", vocabulary, 4, seconds([&] { sink += argmax(isa, a.data<float>(), vocabulary); }));
  report("softmax", 256, 8, seconds([&] { softmax(isa, a.data<float>(), 256, out.data<float>()); }));
  report("rms_norm", hidden, 12,
         seconds([&] { rms_norm(isa, a.data<float>(), b.data<float>(), hidden, 1e-6f, out.data<float>()); }));
  report("silu_mul", 4096, 12,
         seconds([&] { silu_mul(isa, a.data<float>(), b.data<float>(), 4096, out.data<float>()); }));
  report("add_scaled", hidden, 12, seconds([&] { add_scaled(isa, 0.3f, a.data<float>(), hidden, out.data<float>()); }));
  const float* u[] = {b.data<float>(), b.data<float>() + channels, b.data<float>() + 2 * channels,
                      b.data<float>() + 3 * channels};
  report("causal_conv", channels, 36,
         seconds([&] { causal_conv(isa, a.data<float>(), 4, u, 0, channels, out.data<float>()); }));
  if (sink < 0) fmt::print("impossible\n");
}

void bench_bandwidth(Isa isa) {
  AlignedBuffer memory(kLargeBytes);
  fill(memory.data<float>(), kLargeBytes / 4);
  float sink = 0.0f;
  const double t = seconds([&] { sink += static_cast<float>(argmax(isa, memory.data<float>(), kLargeBytes / 4)); });
  fmt::print("read bandwidth {:.2f} GB/s{}\n", static_cast<double>(kLargeBytes) / t * 1e-9, sink < 0 ? "!" : "");
}

}  // namespace
}  // namespace foretoken

int main(int argc, char** argv) {
  using namespace foretoken;
  const Isa isa = argc > 1 ? isa_from_name(argv[1]) : best_isa();
  const std::string what = argc > 2 ? argv[2] : "all";
  fmt::print("instruction set {}\n", isa_name(isa));
  bench_bandwidth(isa);
  if (what == "all" || what == "rows") bench_rows(isa);
  if (what == "all" || what == "delta_net") bench_delta_net(isa);
  if (what == "all" || what == "attention") bench_attention(isa);
  if (what == "all" || what == "matmul") bench_matmul(isa);
  return 0;
}
