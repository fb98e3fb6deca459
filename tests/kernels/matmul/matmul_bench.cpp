// bench_kernels: how near the quantised kernels come to the memory and the integer units of this machine.
//
//   bench_kernels [--type Q4_K] [--cols 2048] [--threads 1] [--mib 512] [--isa avx2] [--layout interleaved|rows]
//   [--seconds 2] [--rows 4]
//
// Per number of rows n: GB/s of weights as they lie in memory (and as they lie in a file, where those are fewer bytes),
// V(n) = time for n rows / time for one, and the share of the int8 peak (one multiply-add of bytes and one of words per
// 32 products). Rounds are interleaved (every n once, again and again) and
// the best of each is taken, since other programs share the machine; the plain read loop runs in the same rounds.
// Before any speed is shown, the product is compared with the scalar kernel's.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/base/error.h"
#include "kernels/formats/interleave.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/matmul/matmul.h"

namespace foretoken {
namespace {

struct Options {
  std::string type = "Q4_K";
  int64_t cols = 2048;
  int threads = 1;
  int64_t mib = 512;
  std::string isa;
  bool interleaved = true;
  double seconds = 2;
  int rows = 0;  // only this number of rows, for a profiler; 0: the whole list
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--type")
      options.type = value;
    else if (flag == "--cols")
      options.cols = std::stoll(value);
    else if (flag == "--threads")
      options.threads = std::stoi(value);
    else if (flag == "--mib")
      options.mib = std::stoll(value);
    else if (flag == "--isa")
      options.isa = value;
    else if (flag == "--layout")
      options.interleaved = value == "interleaved";
    else if (flag == "--seconds")
      options.seconds = std::stod(value);
    else if (flag == "--rows")
      options.rows = std::stoi(value);
    else
      throw UsageError(flag + ": unknown flag");
  }
  return options;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs body(begin, end) over [0, count) on every thread, in chunks of `grain` from a shared counter; returns seconds.
// Threads of their own, started before the clock.
template <class Body>
double timed(int num_threads, int64_t count, int64_t grain, Body body) {
  std::atomic<int> ready{0}, done{0};
  std::atomic<bool> go{false};
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < count;) body(begin, std::min(begin + grain, count));
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < num_threads; ++t) {
    threads.emplace_back([&] {
      ++ready;
      while (!go) _mm_pause();
      work();
      ++done;
    });
  }
  while (ready != num_threads - 1) std::this_thread::yield();
  const double start = now();
  go = true;
  work();
  while (done != num_threads - 1) _mm_pause();
  const double seconds = now() - start;
  for (std::thread& thread : threads) thread.join();
  return seconds;
}

// The plain read loop: every 64 bytes touched, four sums in flight.
__attribute__((target("avx2"))) int64_t read_all(const std::byte* p, size_t bytes) {
  __m256i sums[4] = {};
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4160), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4224), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4288), _MM_HINT_T0);
    for (int k = 0; k < 4; ++k) {
      const auto* at = reinterpret_cast<const __m256i*>(p + i + 64 * k);
      sums[k] = _mm256_add_epi64(sums[k], _mm256_add_epi64(_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)));
    }
  }
  const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  return _mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 1) + _mm256_extract_epi64(sum, 2) +
         _mm256_extract_epi64(sum, 3);
}

// Seconds per 32 products of bytes at the peak: independent chains of maddubs + madd + add.
__attribute__((target("avx2"))) double peak_seconds_per_32() {
  __m256i sums[8] = {};
  const __m256i u = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  __m256i s = _mm256_set1_epi8(5);
  constexpr int kTrips = 200000;
  const double start = now();
  for (int i = 0; i < kTrips; ++i) {
    for (int k = 0; k < 8; ++k) {
      asm volatile("" : "+x"(s));
      sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), ones));
    }
  }
  const double seconds = now() - start;
  for (int k = 0; k < 8; ++k) asm volatile("" ::"x"(sums[k]));
  return seconds / (8.0 * kTrips);
}

int run(const Options& options) {
  const auto type = weight_type_from_name(options.type);
  if (!type) throw UsageError(options.type + ": unknown type");
  const WeightTypeInfo& info = weight_type_info(*type);
  const Isa isa = options.isa.empty() ? best_isa() : isa_from_name(options.isa);
  const int64_t file_row_bytes = options.cols / info.block_size * info.block_bytes;
  const int64_t row_bytes =
      options.cols / info.block_size *
      (info.is_float() ? info.block_bytes
                       : block_bytes_in(options.interleaved ? Layout::kInterleaved : Layout::kRows, *type));
  const int64_t num_rows = std::max<int64_t>(16, (options.mib << 20) / row_bytes / 16 * 16);
  MatrixView rows{nullptr, num_rows, options.cols, *type, Layout::kRows};

  // 64 distinct encoded rows, repeated.
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<std::byte> some(static_cast<size_t>(64 * file_row_bytes));
  std::vector<float> values(static_cast<size_t>(options.cols));
  for (int64_t r = 0; r < 64; ++r) {
    for (float& v : values) v = normal(rng);
    encode_row(*type, values.data(), options.cols, some.data() + r * file_row_bytes);
  }
  MatrixView w = rows;
  w.layout = options.interleaved ? Layout::kInterleaved : Layout::kRows;
  AlignedBuffer memory(w.size_bytes() + 8192, "the matrix");
  const MatrixView pattern{some.data(), 64, options.cols, *type, Layout::kRows};
  std::vector<std::byte> tile(static_cast<size_t>(64 * row_bytes));
  if (options.interleaved)
    interleave_rows(pattern, 0, 64, tile.data());
  else
    tile = some;
  const size_t group_bytes = static_cast<size_t>(16 * row_bytes);
  for (int64_t g = 0; g < num_rows / 16; ++g) {
    std::memcpy(memory.data() + static_cast<size_t>(g) * group_bytes,
                tile.data() + static_cast<size_t>(g % 4) * group_bytes, group_bytes);
  }
  w.data = memory.data();

  std::vector<int> counts = {1, 2, 3, 4, 5, 6, 8, 9, 16, 64};
  if (options.rows > 0) counts = {std::min(options.rows, 64)};
  RowBuffer x(64, options.cols);
  std::vector<RowView> views;
  for (int64_t r = 0; r < 64; ++r) {
    for (int64_t i = 0; i < options.cols; ++i) x.row(r)[i] = normal(rng);
    x.quantise(isa, r, info.activation_block);
    views.push_back(x.view(r));
  }
  AlignedBuffer outputs(static_cast<size_t>(64 * num_rows) * 4, "outputs");
  const auto product = [&](Isa with, int n, int64_t begin, int64_t end) {
    float* y[64];
    for (int r = 0; r < n; ++r) y[r] = outputs.data<float>() + r * num_rows + begin;
    matmul_rows(with, w, begin, end, views.data(), n, y);
  };

  product(Isa::kScalar, 64, 0, 32);
  std::vector<float> expected;
  for (int r = 0; r < 64; ++r) {
    expected.insert(expected.end(), outputs.data<float>() + r * num_rows, outputs.data<float>() + r * num_rows + 32);
  }
  product(isa, 64, 0, 32);
  for (int r = 0; r < 64; ++r) {
    if (std::memcmp(&expected[static_cast<size_t>(r) * 32], outputs.data<float>() + r * num_rows, 32 * 4) != 0) {
      std::fprintf(stderr, "bench_kernels: row %d differs from the scalar kernel\n", r);
      return 1;
    }
  }

  constexpr int64_t kGrain = 64;
  std::vector<double> best(counts.size(), 1e9);
  double best_read = 1e9, peak = 1e9;
  const double deadline = now() + options.seconds;
  do {
    best_read = std::min(best_read, timed(options.threads, num_rows, 1024, [&](int64_t begin, int64_t end) {
                           const int64_t sum =
                               read_all(w.data + begin * row_bytes, static_cast<size_t>((end - begin) * row_bytes));
                           asm volatile("" ::"r"(sum));
                         }));
    peak = std::min(peak, peak_seconds_per_32());
    for (size_t i = 0; i < counts.size(); ++i) {
      // Many rows compute for long: an eighth of the matrix is enough.
      const int64_t count = counts[i] >= 16 ? std::max<int64_t>(kGrain, num_rows / 8 / kGrain * kGrain) : num_rows;
      const double seconds = timed(options.threads, count, kGrain,
                                   [&](int64_t begin, int64_t end) { product(isa, counts[i], begin, end); });
      best[i] = std::min(best[i], seconds * static_cast<double>(num_rows) / static_cast<double>(count));
    }
  } while (now() < deadline);

  const double bytes = static_cast<double>(w.size_bytes()), file_bytes = static_cast<double>(rows.size_bytes());
  std::printf(
      "%s %lld x %lld, %.0f MiB, %s, %s, %d thread%s: plain read %.2f GB/s, int8 peak %.0f G products/s a thread\n",
      options.type.c_str(), static_cast<long long>(num_rows), static_cast<long long>(options.cols), bytes / (1 << 20),
      std::string(isa_name(isa)).c_str(), options.interleaved ? "interleaved" : "rows", options.threads,
      options.threads == 1 ? "" : "s", bytes / best_read * 1e-9, 32 / peak * 1e-9);
  for (size_t i = 0; i < counts.size(); ++i) {
    const double products = static_cast<double>(num_rows) * static_cast<double>(options.cols) * counts[i];
    std::printf("  n %2d  %6.2f GB/s (%3.0f%% of read)  V %6.3f  %6.1f G products/s (%3.0f%% of peak)", counts[i],
                bytes / best[i] * 1e-9, 100 * best_read / best[i], best[i] / best[0], products / best[i] * 1e-9,
                100 * products / best[i] / (32 / peak * options.threads));
    if (file_bytes < bytes) std::printf("  of the file %6.2f GB/s", file_bytes / best[i] * 1e-9);
    std::printf("\n");
  }
  return 0;
}

}  // namespace
}  // namespace foretoken

int main(int argc, char** argv) {
  try {
    return foretoken::run(foretoken::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_kernels: %s\n", error.what());
    return 2;
  }
}
