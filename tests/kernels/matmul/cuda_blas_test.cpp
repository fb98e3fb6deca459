#include "kernels/cuda/cuda_blas.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/base/half.h"
#include "kernels/base/math.h"
#include "kernels/matmul/matmul_cuda.h"
#include "tests/kernels/cuda/cuda_test_support.h"

// F16 and BF16 matrices by cuBLAS: not the contract's bits, but as near as the split of a row and float sums in any
// order come, and the same bits for any number of rows. The emulation's sums have an order that hangs on the problem's
// shape, so that a problem which is not padded is seen here.

namespace foretoken::cuda {
namespace {

using test::random_matrix;
using test::same_bits;

constexpr WeightType kTypes[] = {WeightType::kF16, WeightType::kBF16};

/// The library with its memory.
class BlasMemory {
 public:
  BlasMemory(const Stream& stream, int64_t max_cols, int64_t max_outputs)
      : workspace_(kBlasWorkspaceBytes),
        columns_(static_cast<size_t>(2 * kBlasRows * max_cols) * sizeof(uint16_t)),
        scales_(kBlasRows * sizeof(float)),
        products_(static_cast<size_t>(2 * kBlasRows * max_outputs) * sizeof(float)),
        library_(stream, workspace_.data()),
        work_{&library_, workspace_.data(), columns_.data<uint16_t>(), scales_.data<float>(), products_.data<float>(),
              max_cols,  max_outputs} {}
  BlasMemory(const BlasMemory&) = delete;
  [[nodiscard]] const BlasWork* work() const { return &work_; }

 private:
  DeviceBuffer workspace_, columns_, scales_, products_;
  Blas library_;
  BlasWork work_;
};

/// Rows of sizes that F16 could not hold, 2^smallest to 2^100; one of zeros, one with a value far above the rest.
std::vector<float> rows_of_all_sizes(int num_rows, int64_t num_cols, uint32_t seed, int smallest = -100) {
  std::vector<float> x = test::random_values(static_cast<size_t>(num_rows * num_cols), seed);
  const int exponents[] = {0, 100, -60, 12, smallest, -9, 20};
  for (int r = 0; r < num_rows; ++r) {
    float* row = &x[r * num_cols];
    if (r % 9 == 7) std::fill_n(row, num_cols, 0.0f);
    if (r % 9 == 8) row[num_cols / 2] = 3e4f;
    for (int64_t i = 0; i < num_cols; ++i) row[i] = std::ldexp(row[i], exponents[r % 7]);
  }
  return x;
}

/// One problem on the device.
struct Problem {
  Problem(const Stream& s, const MatrixView& w, const std::vector<float>& x, const BlasWork* blas)
      : stream(s),
        matrix(test::to_device(s, w)),
        values(test::upload(s, x)),
        y(x.size() / static_cast<size_t>(w.num_cols) * static_cast<size_t>(w.num_rows) * sizeof(float)) {
    desc.w = matrix.matrix;
    desc.num_outputs = desc.y_stride = w.num_rows;
    desc.x.values = values.data<float>();
    desc.x.num_cols = w.num_cols;
    desc.max_rows = static_cast<int>(x.size() / static_cast<size_t>(w.num_cols));
    desc.y = y.data<float>();
    desc.blas = blas;
  }

  std::vector<float> run() {
    const MatmulConfig config = choose_config(desc);
    REQUIRE(config.kernel == MatmulConfig::Kernel::kBlas);
    fill_zero(stream, y.data(), y.size_bytes());
    launch(desc, config, stream);
    return test::download<float>(stream, y.data(), y.size_bytes() / sizeof(float));
  }

  const Stream& stream;
  test::DeviceMatrixMemory matrix;
  DeviceBuffer values, y;
  MatmulDesc desc;
};

double weight(const MatrixView& w, int64_t row, int64_t column) {
  const auto* bits = reinterpret_cast<const uint16_t*>(w.data + static_cast<size_t>(row) * w.row_bytes());
  return w.type == WeightType::kF16 ? half_to_float(bits[column]) : bfloat_to_float(bits[column]);
}

// With S = sum |w x|, W = sum |w| and A = W max |x|:
//   the split   2^-22 S for F16, and where low is a small half 2^-25 / s for each value: 2^-39 A, since the largest
//               becomes 2^14 at least, or 2^-151 W where s is at its bound; 2^-17 S for BF16;
//   the sums    two of num_cols values, in any order, each step rounding or, as tensor cores do, cutting off, by 2^-23
//   at
//               most; then their own sum, and what |high| + |low| is more than |x|: (num_cols + 2) 2^-23 S;
//   the scale   exact, unless the result is a denormal: 2^-150.
double tolerance(WeightType type, double sum, double weights, double largest, int64_t num_cols) {
  const double split =
      type == WeightType::kF16 ? 0x1p-22 * sum + 0x1p-39 * weights * largest + 0x1p-151 * weights : 0x1p-17 * sum;
  return split + static_cast<double>(num_cols + 2) * 0x1p-23 * sum + 0x1p-150;
}

TEST_CASE("cublas: products are as near as the split of a row and float sums allow") {
  const Stream stream;
  for (const WeightType type : kTypes) {
    for (const int64_t num_cols : {8, 67, 320, 1032}) {
      for (const int num_rows : {1, 9, 33}) {
        const int64_t num_outputs = num_rows == 9 ? 131 : 70;
        const test::HostMatrix w = random_matrix(type, num_outputs, num_cols, static_cast<uint32_t>(num_cols));
        const std::vector<float> x = rows_of_all_sizes(num_rows, num_cols, 5, type == WeightType::kF16 ? -130 : -100);
        // Room for a part of the outputs alone: the others come in further pieces.
        const BlasMemory memory(stream, round_up(num_cols, 8), num_rows == 9 ? 64 : 160);
        Problem problem(stream, w.view, x, memory.work());
        const std::vector<float> y = problem.run();
        double worst = 0;
        for (int r = 0; r < num_rows; ++r) {
          for (int64_t o = 0; o < num_outputs; ++o) {
            double exact = 0, sum = 0, weights = 0, largest = 0;
            for (int64_t i = 0; i < num_cols; ++i) {
              const double v = x[r * num_cols + i], product = weight(w.view, o, i) * v;
              exact += product;
              sum += std::abs(product);
              weights += std::abs(weight(w.view, o, i));
              largest = std::max(largest, std::abs(v));
            }
            const double error = std::abs(y[r * num_outputs + o] - exact);
            const double allowed = tolerance(type, sum, weights, largest, num_cols);
            worst = std::max(worst, std::isnan(error) ? 1e9 : error / allowed);
          }
        }
        INFO(weight_type_info(type).name << " " << num_outputs << " x " << num_cols << ", " << num_rows << " rows");
        CHECK(worst <= 1.0);
      }
    }
  }
}

TEST_CASE("cublas: a row's bits hang neither on the number of rows nor on its place among them") {
  const Stream stream;
  for (const WeightType type : kTypes) {
    const int64_t num_cols = 104, num_outputs = 83;
    const test::HostMatrix w = random_matrix(type, num_outputs, num_cols, 4),
                           up = random_matrix(type, num_outputs, num_cols, 6);
    const std::vector<float> x = rows_of_all_sizes(70, num_cols, 11);
    const BlasMemory memory(stream, num_cols, 64);
    const test::DeviceMatrixMemory device_up = test::to_device(stream, up.view);
    for (const bool pair : {false, true}) {
      Problem all(stream, w.view, x, memory.work());
      if (pair) all.desc.up = device_up.matrix;
      const std::vector<float> wanted = all.run();
      for (const int num_rows : {1, 2, 4, 5, 31, 32, 33}) {
        const int first = num_rows % 3;
        const auto from = [num_rows, first](const std::vector<float>& rows, int64_t stride) {
          return std::vector<float>(rows.begin() + first * stride, rows.begin() + (first + num_rows) * stride);
        };
        Problem some(stream, w.view, from(x, num_cols), memory.work());
        if (pair) some.desc.up = device_up.matrix;
        INFO(weight_type_info(type).name << (pair ? " gate and up, " : ", ") << num_rows << " rows");
        test::for_each_order([&] { CHECK(same_bits(some.run(), from(wanted, num_outputs))); });
      }
    }
  }
}

TEST_CASE("cublas: gate and up are the two products, joined as everywhere") {
  const Stream stream;
  const int64_t num_cols = 96, num_outputs = 150;
  const BlasMemory memory(stream, num_cols, 128);
  const std::vector<float> x = rows_of_all_sizes(4, num_cols, 2);
  const test::HostMatrix gate = random_matrix(WeightType::kF16, num_outputs, num_cols, 3),
                         up = random_matrix(WeightType::kF16, num_outputs, num_cols, 9);
  Problem first(stream, gate.view, x, memory.work()), second(stream, up.view, x, memory.work());
  std::vector<float> wanted = first.run();
  const std::vector<float> ups = second.run();
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = math::silu(wanted[i]) * ups[i];
  first.desc.up = second.desc.w;
  CHECK(same_bits(first.run(), wanted));
}

TEST_CASE("cublas: a graph replays with another number of rows, and leaves the others alone") {
  const Stream stream;
  const int64_t num_cols = 72, num_outputs = 66;
  const test::HostMatrix w = random_matrix(WeightType::kF16, num_outputs, num_cols, 2);
  std::vector<float> x = rows_of_all_sizes(40, num_cols, 31);
  const BlasMemory memory(stream, num_cols, 144);
  Problem problem(stream, w.view, x, memory.work());
  const std::vector<float> all = problem.run();
  const DeviceBuffer num_rows(sizeof(int32_t));
  problem.desc.device_num_rows = num_rows.data<int32_t>();
  const Graph graph(stream, [&] {
    fill_zero(stream, problem.y.data(), problem.y.size_bytes());
    launch(problem.desc, choose_config(problem.desc), stream);
  });
  for (const int32_t rows : {3, 40, 32, 33, 1}) {
    copy_to_device(stream, num_rows.data(), &rows, sizeof rows);
    // What lies behind the rows is no number.
    std::vector<float> values = x;
    std::fill(values.begin() + rows * num_cols, values.end(), NAN);
    copy_to_device(stream, problem.values.data(), values.data(), values.size() * sizeof(float));
    stream.synchronize();
    graph.launch(stream);
    std::vector<float> wanted(all.size(), 0.0f);
    std::copy_n(all.begin(), static_cast<size_t>(rows * num_outputs), wanted.begin());
    INFO(rows << " rows");
    CHECK(same_bits(test::download<float>(stream, problem.y.data(), all.size()), wanted));
  }
}

TEST_CASE("cublas: what is no number in a row stays in it") {
  const Stream stream;
  for (const WeightType type : kTypes) {
    const test::HostMatrix w = random_matrix(type, 64, 64, 1);
    std::vector<float> x = test::random_values(3 * 64, 8);
    const BlasMemory memory(stream, 64, 64);
    const std::vector<float> before = Problem(stream, w.view, x, memory.work()).run();
    x[64 + 5] = NAN;
    x[128 + 7] = INFINITY;
    const std::vector<float> y = Problem(stream, w.view, x, memory.work()).run();
    CHECK(std::equal(y.begin(), y.begin() + 64, before.begin()));
    for (size_t i = 64; i < 192; ++i) CHECK_FALSE(std::isfinite(y[i]));
  }
}

TEST_CASE("cublas: it takes whole F16 and BF16 matrices that are worth it, for any number of rows, and no others") {
  const Stream stream;
  const BlasMemory memory(stream, 256, 512);
  const auto kernel = [&](WeightType type, int64_t num_rows, auto&& change) {
    MatmulDesc desc;
    desc.w = {nullptr, num_rows, 256, device_row_bytes(type, 256), type};
    desc.num_outputs = num_rows;
    desc.blas = memory.work();
    desc.max_rows = 1;
    change(desc);
    return choose_config(desc).kernel;
  };
  const auto plain = [](MatmulDesc&) {};
  using Kernel = MatmulConfig::Kernel;
  for (const WeightTypeInfo& info : all_weight_types()) {
    INFO(info.name);
    const bool taken = info.type == WeightType::kF16 || info.type == WeightType::kBF16;
    CHECK((kernel(info.type, 64, plain) == Kernel::kBlas) == taken);
  }
  for (const int rows : {2, 9, 33, 500}) {
    CHECK(kernel(WeightType::kBF16, 64, [rows](MatmulDesc& d) { d.max_rows = rows; }) == Kernel::kBlas);
    CHECK(kernel(WeightType::kBF16, 63, [rows](MatmulDesc& d) { d.max_rows = rows; }) == Kernel::kFloat);
  }
  CHECK(kernel(WeightType::kF16, 64, [](MatmulDesc& d) { d.max_buckets = 3; }) == Kernel::kFloat);
  const int32_t group = 0;
  CHECK(kernel(WeightType::kF16, 64, [&](MatmulDesc& d) { d.groups = &group; }) == Kernel::kFloat);
  CHECK(kernel(WeightType::kF16, 64, [](MatmulDesc& d) { d.blas = nullptr; }) == Kernel::kFloat);
  const BlasWork without;
  CHECK(kernel(WeightType::kF16, 64, [&](MatmulDesc& d) { d.blas = &without; }) == Kernel::kFloat);
}

}  // namespace
}  // namespace foretoken::cuda
