#include <catch2/catch.hpp>
#include <optional>

#include "kernels/matmul/matmul.h"
#include "kernels/matmul/matmul_cuda.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace foretoken::cuda {
namespace {

using test::random_matrix;
using test::same_bits;

// The same rows on both sides, quantised there and here.
struct Rows {
  Rows(const Stream& stream, int num_rows, int64_t num_cols, int block, uint32_t seed)
      : host(num_rows, num_cols),
        device(num_rows, num_cols,
               block == 0    ? 0
               : block == 32 ? RowMemory::kBy32
                             : RowMemory::kBy256) {
    const std::vector<float> values = test::random_values(static_cast<size_t>(num_rows * num_cols), seed);
    std::copy(values.begin(), values.end(), host.row(0));
    for (int r = 0; r < num_rows; ++r) {
      host.quantise(Isa::kScalar, r, block);
      views.push_back(host.view(r));
    }
    copy_to_device(stream, device.rows().values, values.data(), values.size() * sizeof(float));
    if (block != 0) {
      const QuantiseDesc desc{device.rows(), num_rows, nullptr};
      launch(desc, choose_config(desc), stream);
    }
    stream.synchronize();
  }
  RowBuffer host;
  RowMemory device;
  std::vector<RowView> views;
};

std::vector<float> reference(const MatrixView& w, const std::vector<RowView>& x) {
  std::vector<float> y(x.size() * static_cast<size_t>(w.num_rows));
  std::vector<float*> rows;
  for (size_t r = 0; r < x.size(); ++r) rows.push_back(&y[r * static_cast<size_t>(w.num_rows)]);
  matmul_rows(Isa::kScalar, w, 0, w.num_rows, x.data(), static_cast<int>(x.size()), rows.data());
  return y;
}

// Every way to cut the problem up.
std::vector<MatmulConfig> configs(const MatmulDesc& desc, bool is_float) {
  std::vector<MatmulConfig> all{choose_config(desc)};
  if (is_float) {
    for (const int rows : {1, 2, 4, 8, kMaxDotRows}) {
      for (const int lane_sums : {1, 8}) all.push_back({MatmulConfig::Kernel::kFloat, rows, 2, 3, lane_sums});
    }
    return all;
  }
  for (int rows = 1; rows <= kMaxDotRows; rows = rows == kMostExactDotRows ? kMaxDotRows : rows + 1)
    all.push_back({MatmulConfig::Kernel::kDot, rows, 2, all[0].log2_slots});
  for (const int rows : {2, kMaxDotRows})
    all.push_back({MatmulConfig::Kernel::kDot, rows, 2, all[0].log2_slots, 8, /*counts_rows=*/true});
  all.push_back({MatmulConfig::Kernel::kDot, 4, 1, 3});
  for (const bool large : {false, true}) {
    all.push_back({MatmulConfig::Kernel::kTiles});
    all.back().large_tiles = large;
  }
  return all;
}

TEST_CASE("matmul: every type, every kernel, odd numbers of outputs and rows") {
  const Stream stream;
  for (const WeightTypeInfo& info : all_weight_types()) {
    const std::vector<int64_t> widths =
        info.block_size == 256  ? std::vector<int64_t>{256, 512, 2304}
        : info.block_size >= 32 ? std::vector<int64_t>{int64_t{1} * info.block_size, int64_t{3} * info.block_size,
                                                       int64_t{17} * info.block_size}
                                : std::vector<int64_t>{8, 67, 320, 1384};
    for (const int64_t num_cols : widths) {
      for (const int num_rows : {1, 2, 3, 4, 5, 9, 14}) {
        const int64_t num_outputs = num_rows == 9 ? 70 : 19;
        test::HostMatrix w =
            random_matrix(info.type, num_outputs, num_cols, static_cast<uint32_t>(num_cols + num_rows));
        if (num_rows % 2 == 1) w.view.scale = -0.7f;
        const test::DeviceMatrixMemory device = test::to_device(stream, w.view);
        const Rows x(stream, num_rows, num_cols, info.activation_block, 99);
        const std::vector<float> wanted = reference(w.view, x.views);
        const DeviceBuffer y(wanted.size() * sizeof(float));
        MatmulDesc desc;
        desc.w = device.matrix;
        desc.num_outputs = num_outputs;
        desc.x = x.device.rows();
        desc.max_rows = num_rows;
        desc.y = y.data<float>();
        desc.y_stride = num_outputs;
        for (const MatmulConfig& config : configs(desc, info.is_float())) {
          INFO(info.name << " " << num_outputs << " x " << num_cols << ", " << num_rows << " rows, kernel "
                         << static_cast<int>(config.kernel) << ", " << config.rows_at_once << " rows at once");
          fill_zero(stream, y.data(), y.size_bytes());
          launch(desc, config, stream);
          CHECK(same_bits(test::download<float>(stream, y.data(), wanted.size()), wanted));
        }
      }
    }
  }
}

TEST_CASE("matmul: large tiles, with more rows than one has, are chosen where they fill a GPU") {
  const Stream stream;
  // Two buffers of rows and, for Q5_1, one; scales of each kind; a last stage of few blocks.
  for (const WeightType type : {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kIQ2_S, WeightType::kQ8_0,
                                WeightType::kQ5_1, WeightType::kNVFP4}) {
    const WeightTypeInfo& info = weight_type_info(type);
    const int64_t num_cols = info.block_size == 256 ? 2304 : 1088, num_outputs = 70;
    const test::HostMatrix w = random_matrix(type, num_outputs, num_cols, 41);
    const test::DeviceMatrixMemory device = test::to_device(stream, w.view);
    for (const int num_rows : {127, 131}) {
      const Rows x(stream, num_rows, num_cols, info.activation_block, 43);
      const std::vector<float> wanted = reference(w.view, x.views);
      const DeviceBuffer y(wanted.size() * sizeof(float));
      MatmulDesc desc;
      desc.w = device.matrix;
      desc.num_outputs = num_outputs;
      desc.x = x.device.rows();
      desc.max_rows = num_rows;
      desc.y = y.data<float>();
      desc.y_stride = num_outputs;
      CHECK(!choose_config(desc).large_tiles);  // two or three blocks of threads
      MatmulConfig config{MatmulConfig::Kernel::kTiles};
      config.large_tiles = true;
      INFO(info.name << ", " << num_rows << " rows");
      fill_zero(stream, y.data(), y.size_bytes());
      launch(desc, config, stream);
      CHECK(same_bits(test::download<float>(stream, y.data(), wanted.size()), wanted));
      desc.num_outputs = 64 * kFewLargeTiles;
      CHECK(choose_config(desc).large_tiles);
      desc.max_rows = kFewTileRows;
      CHECK(!choose_config(desc).large_tiles);
    }
  }
}

TEST_CASE("matmul: every bit pattern of every quantised type") {
  const Stream stream;
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (info.is_float()) continue;
    const int64_t num_cols = info.block_size == 256 ? 1280 : 11 * info.block_size, num_outputs = 66;
    const test::HostMatrix w = test::noise_matrix(info.type, num_outputs, num_cols, 17);
    const test::DeviceMatrixMemory device = test::to_device(stream, w.view);
    for (const int num_rows : {1, 4, 13}) {
      const Rows x(stream, num_rows, num_cols, info.activation_block, 3);
      const std::vector<float> wanted = reference(w.view, x.views);
      const DeviceBuffer y(wanted.size() * sizeof(float));
      MatmulDesc desc;
      desc.w = device.matrix;
      desc.num_outputs = num_outputs;
      desc.x = x.device.rows();
      desc.max_rows = num_rows;
      desc.y = y.data<float>();
      desc.y_stride = num_outputs;
      INFO(info.name << ", " << num_rows << " rows");
      test::for_each_order([&] {
        fill_zero(stream, y.data(), y.size_bytes());
        launch(desc, choose_config(desc), stream);
        CHECK(same_bits(test::download<float>(stream, y.data(), wanted.size()), wanted));
      });
    }
  }
}

TEST_CASE("matmul: several matrices over the same rows, in as few launches as their types allow") {
  const Stream stream;
  const int64_t num_cols = 512;
  struct Case {
    std::vector<WeightType> types;
    std::vector<int64_t> outputs;
    size_t launches;  // of a window
  };
  const Case cases[] = {
      {{WeightType::kQ4_K, WeightType::kQ4_K, WeightType::kQ4_K, WeightType::kQ4_K}, {70, 33, 2, 5}, 1},
      {{WeightType::kQ8_0, WeightType::kF32, WeightType::kQ8_0, WeightType::kF32}, {70, 9, 3, 1}, 2},
      {{WeightType::kF32, WeightType::kF32, WeightType::kF32}, {17, 1, 64}, 1},
      {{WeightType::kQ6_K, WeightType::kQ4_K, WeightType::kQ5_K}, {40, 20, 30}, 3},
      {{WeightType::kF16, WeightType::kF16, WeightType::kF16, WeightType::kF16, WeightType::kF16, WeightType::kF16},
       {1, 2, 3, 4, 5, 6},
       2},
  };
  for (const Case& c : cases) {
    for (const int num_rows : {1, 3, 11, 20}) {
      std::vector<test::HostMatrix> matrices;
      std::vector<test::DeviceMatrixMemory> on_device;
      for (size_t i = 0; i < c.types.size(); ++i) {
        matrices.push_back(random_matrix(c.types[i], c.outputs[i], num_cols, static_cast<uint32_t>(i)));
        matrices[i].view.scale = 1.0f + 0.25f * static_cast<float>(i);
        on_device.push_back(test::to_device(stream, matrices[i].view));
      }
      const Rows by256(stream, num_rows, num_cols, 256, 5), by32(stream, num_rows, num_cols, 32, 5);
      DeviceRows x = by256.device.rows();
      x.by32 = by32.device.rows().by32;
      std::vector<DeviceBuffer> y;
      std::vector<MatmulDesc> descs(c.types.size());
      for (size_t i = 0; i < descs.size(); ++i) {
        y.emplace_back(static_cast<size_t>(num_rows * c.outputs[i]) * sizeof(float));
        descs[i].w = on_device[i].matrix;
        descs[i].num_outputs = descs[i].y_stride = c.outputs[i];
        descs[i].x = x;
        descs[i].max_rows = num_rows;
        descs[i].y = y[i].data<float>();
      }
      stream.synchronize();
      test::take_launches();
      launch_together(descs, stream);
      stream.synchronize();
      INFO(weight_type_info(c.types[0]).name << " first, " << num_rows << " rows");
      const std::optional<size_t> launches = test::take_launches();
      if (launches && num_rows <= kMaxDotRows) CHECK(*launches == c.launches);
      for (size_t i = 0; i < descs.size(); ++i) {
        const int block = weight_type_info(c.types[i]).activation_block;
        const std::vector<float> wanted = reference(matrices[i].view, (block == 32 ? by32 : by256).views);
        CHECK(same_bits(test::download<float>(stream, y[i].data(), wanted.size()), wanted));
      }
    }
  }
}

TEST_CASE("matmul: an interleaved host matrix packs to the same device rows") {
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (!can_interleave(info.type, 32, 512)) continue;
    const test::HostMatrix w = test::noise_matrix(info.type, 32, 512, 5);
    MatrixView view = w.view;
    view.layout = Layout::kInterleaved;
    std::vector<std::byte> interleaved(view.size_bytes());  // of some types more than the file has
    view.data = interleaved.data();
    interleave_rows(w.view, 0, 32, interleaved.data());
    const auto size = static_cast<size_t>(32 * device_row_bytes(info.type, 512));
    std::vector<std::byte> from_rows(size), from_groups(size);
    pack_device_rows(w.view, 0, 32, from_rows.data());
    pack_device_rows(view, 0, 32, from_groups.data());
    INFO(info.name);
    CHECK(from_rows == from_groups);
  }
}

TEST_CASE("matmul: a draft head reads its groups of rows, as many as the device knows of") {
  const Stream stream;
  for (const WeightType type : {WeightType::kQ6_K, WeightType::kF16}) {
    const WeightTypeInfo& info = weight_type_info(type);
    const int64_t num_cols = 512, vocab = 10 * kInterleave;
    const test::HostMatrix w = random_matrix(type, vocab, num_cols, 8);
    const test::DeviceMatrixMemory device = test::to_device(stream, w.view);
    const std::vector<int32_t> groups{1, 4, 5, 9, 0, 0};  // room for six, three in use
    const DeviceBuffer device_groups = test::upload(stream, groups),
                       num_groups = test::upload(stream, std::vector<int32_t>{3});
    const Rows x(stream, 2, num_cols, info.activation_block, 21);
    const std::vector<float> all = reference(w.view, x.views);
    const auto capacity = static_cast<int64_t>(groups.size()) * kInterleave;
    const DeviceBuffer y(static_cast<size_t>(2 * capacity) * sizeof(float));
    MatmulDesc desc;
    desc.w = device.matrix;
    desc.num_outputs = capacity;
    desc.x = x.device.rows();
    desc.max_rows = 2;
    desc.y = y.data<float>();
    desc.y_stride = capacity;
    desc.groups = device_groups.data<int32_t>();
    desc.device_num_groups = num_groups.data<int32_t>();
    std::vector<float> wanted(static_cast<size_t>(2 * capacity), 0.0f);
    for (int r = 0; r < 2; ++r) {
      for (int64_t o = 0; o < 3 * kInterleave; ++o) {
        const int64_t row = groups[o / kInterleave] * kInterleave + o % kInterleave;
        wanted[r * capacity + o] = all[r * vocab + row];
      }
    }
    for (const MatmulConfig& config : configs(desc, info.is_float())) {
      fill_zero(stream, y.data(), y.size_bytes());
      launch(desc, config, stream);
      CHECK(same_bits(test::download<float>(stream, y.data(), wanted.size()), wanted));
    }
  }
}

TEST_CASE("matmul: rows beyond those of the pass are left alone, and a graph replays with another number of them") {
  const Stream stream;
  const int64_t num_cols = 512, num_outputs = 33;
  const test::HostMatrix w = random_matrix(WeightType::kQ4_K, num_outputs, num_cols, 2);
  const test::DeviceMatrixMemory device = test::to_device(stream, w.view);
  const Rows x(stream, 9, num_cols, 256, 31);
  const std::vector<float> all = reference(w.view, x.views);
  const DeviceBuffer y(all.size() * sizeof(float)), num_rows(sizeof(int32_t));
  MatmulDesc desc;
  desc.w = device.matrix;
  desc.num_outputs = num_outputs;
  desc.x = x.device.rows();
  desc.max_rows = 9;
  desc.device_num_rows = num_rows.data<int32_t>();
  desc.y = y.data<float>();
  desc.y_stride = num_outputs;
  const auto work = [&] {
    fill_zero(stream, y.data(), y.size_bytes());
    launch(desc, choose_config(desc), stream);
  };
  const int32_t all_rows = 9;
  copy_to_device(stream, num_rows.data(), &all_rows, sizeof all_rows);
  work();  // loads the kernel, which a recording may not do
  const Graph graph(stream, work);
  for (const int32_t rows : {3, 9, 1}) {
    copy_to_device(stream, num_rows.data(), &rows, sizeof rows);
    stream.synchronize();
    graph.launch(stream);
    std::vector<float> wanted(all.size(), 0.0f);
    std::copy_n(all.begin(), static_cast<size_t>(rows * num_outputs), wanted.begin());
    CHECK(same_bits(test::download<float>(stream, y.data(), all.size()), wanted));
  }
}

}  // namespace
}  // namespace foretoken::cuda
