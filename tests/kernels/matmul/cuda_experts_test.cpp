#include <catch2/catch.hpp>
#include <optional>

#include "kernels/matmul/matmul.h"
#include "kernels/matmul/matmul_cuda.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "kernels/rows/rms_norm.h"
#include "kernels/rows/rms_norm_cuda.h"
#include "kernels/select/router_cuda.h"
#include "moe/buckets.h"
#include "moe/router.h"
#include "tests/kernels/cuda/bucket_memory.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace foretoken::cuda {
namespace {

using test::random_values;
using test::same_bits;

size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

RouteDesc route_desc(const DeviceBuffer& logits, int num_experts, int top_k, const DeviceBuffer& experts,
                     const DeviceBuffer& weights, const DeviceBuffer& shared_weight, int num_rows) {
  RouteDesc desc;
  desc.logits = logits.data<float>();
  desc.num_experts = num_experts;
  desc.top_k = top_k;
  desc.experts = experts.data<int32_t>();
  desc.weights = weights.data<float>();
  desc.shared_weight = shared_weight.data<float>();
  desc.max_rows = num_rows;
  return desc;
}

TEST_CASE("router: experts, weights and the shared expert's weight, ties to the lower index") {
  const Stream stream;
  for (const int num_experts : {5, 32, 60, 128, 256, 400, 700}) {
    const int num_rows = 4, top_k = std::min(8, num_experts);
    std::vector<float> logits = random_values(index(num_rows * num_experts), static_cast<uint32_t>(num_experts));
    for (int i = 0; i < num_experts; ++i)
      logits[index(num_experts + i)] = static_cast<float>(i % 3);  // row 1: nothing but ties
    const auto shared_products = random_values(index(num_rows), 7);
    const DeviceBuffer device_logits = test::upload(stream, logits), shared = test::upload(stream, shared_products);
    const DeviceBuffer experts(index(num_rows * top_k) * 4), weights(index(num_rows * top_k) * 4);
    launch(route_desc(device_logits, num_experts, top_k, experts, weights, shared, num_rows), stream);

    Routing routing;
    routing.resize(num_rows, top_k);
    std::vector<float> shared_weight(num_rows, 1.0f);
    for (int r = 0; r < num_rows; ++r) {
      route_row(Isa::kScalar, &logits[index(r * num_experts)], num_experts, r, routing);
      sigmoid_gate(Isa::kScalar, &shared_products[index(r)], 1, &shared_weight[index(r)]);
    }
    INFO(num_experts << " experts");
    CHECK(test::download<int32_t>(stream, experts.data(), routing.experts.size()) == routing.experts);
    CHECK(same_bits(test::download<float>(stream, weights.data(), routing.weights.size()), routing.weights));
    CHECK(same_bits(test::download<float>(stream, shared.data(), shared_weight.size()), shared_weight));
  }
}

Routing random_routing(int num_rows, int num_experts, int top_k, uint32_t seed) {
  Routing routing;
  routing.resize(num_rows, top_k);
  for (int r = 0; r < num_rows; ++r) {
    std::vector<float> logits = random_values(index(num_experts), seed + static_cast<uint32_t>(r));
    route_row(Isa::kScalar, logits.data(), num_experts, r, routing);
  }
  return routing;
}

TEST_CASE("buckets: every slot in its expert's bucket, rising") {
  const Stream stream;
  test::for_each_order([&] {
    for (const int num_experts : {4, 33, 256}) {
      for (const int num_rows : {1, 3, 40, 130}) {
        // With as many as there are, each bucket has all rows: 40 are tiles of 16, 16 and 8, or of 32 and 8, or one; 130
        // are more than one of any size.
        const int top_k = std::min(4, num_experts);
        const Routing routing = random_routing(num_rows, num_experts, top_k, 3);
        const DeviceBuffer experts = test::upload(stream, routing.experts);
        const test::BucketMemory memory(num_experts, top_k, num_rows);
        const GroupDesc group = test::group_desc(memory, experts, num_experts, top_k, num_rows);
        launch(group, stream);

        BucketList list;
        group_by_expert(routing, 0, num_rows, num_experts, list);
        std::sort(list.buckets.begin(), list.buckets.end(),
                  [](const Bucket& a, const Bucket& b) { return a.expert < b.expert; });
        const int num_buckets = test::download<int32_t>(stream, memory.num_buckets.data(), 1)[0];
        REQUIRE(num_buckets == static_cast<int>(list.buckets.size()));
        const auto got_experts = test::download<int32_t>(stream, memory.experts.data(), index(num_buckets));
        const auto begins = test::download<int32_t>(stream, memory.begins.data(), index(num_buckets + 1));
        const auto slots = test::download<int32_t>(stream, memory.slots.data(), index(num_rows * top_k));
        CHECK(begins.back() == num_rows * top_k);
        for (int b = 0; b < num_buckets; ++b) {
          const Bucket& want = list.buckets[index(b)];
          CHECK(got_experts[index(b)] == want.expert);
          REQUIRE(begins[index(b + 1)] - begins[index(b)] == want.num_slots);
          for (int i = 0; i < want.num_slots; ++i)
            CHECK(slots[index(begins[index(b)] + i)] == list.slots[index(want.slots_begin + i)]);
        }
        const auto num_tiles = test::download<int32_t>(stream, memory.num_tiles.data(), kTileSizes);
        for (int size = 0; size < kTileSizes; ++size) {
          std::vector<std::pair<int32_t, int32_t>> wanted, got;
          for (int b = 0; b < num_buckets; ++b) {
            for (int first = 0; first < list.buckets[index(b)].num_slots; first += tile_rows(size))
              wanted.emplace_back(b, first);
          }
          REQUIRE(num_tiles[index(size)] <= group.max_tiles(size));
          for (const BucketTile& tile :
               test::download<BucketTile>(stream, memory.tiles[index(size)].data(), index(num_tiles[index(size)])))
            got.emplace_back(tile.bucket, tile.first);
          CHECK(got == wanted);
        }
      }
    }
  });
}

TEST_CASE("router and buckets in one launch: the same as one after the other") {
  const Stream stream;
  for (const int num_experts : {4, 33, 256, 400, 700}) {
    for (const int num_rows : {1, 9, 32, 33}) {
      const int top_k = std::min(8, num_experts);
      const auto num_slots = index(num_rows * top_k);
      const std::vector<float> logits =
          random_values(index(num_rows * num_experts), static_cast<uint32_t>(num_experts + num_rows));
      const DeviceBuffer device_logits = test::upload(stream, logits);
      // Every third expert is not on the device, the others close up.
      std::vector<int32_t> places(index(num_experts));
      for (int e = 0, next = 0; e < num_experts; ++e) places[index(e)] = e % 3 == 1 ? -1 : next++;
      const DeviceBuffer device_places = test::upload(stream, places);
      struct Result {
        std::vector<int32_t> experts, bucket_experts, begins, slots;
        std::vector<float> weights, shared;
        std::optional<size_t> launches;
      };
      const auto run = [&](bool together) {
        const DeviceBuffer shared = test::upload(stream, random_values(index(num_rows), 4)), experts(num_slots * 4),
                           weights(num_slots * 4);
        const test::BucketMemory memory(num_experts, top_k, num_rows);
        const RouteDesc route = route_desc(device_logits, num_experts, top_k, experts, weights, shared, num_rows);
        GroupDesc group = test::group_desc(memory, experts, num_experts, top_k, num_rows);
        group.places = device_places.data<int32_t>();
        stream.synchronize();
        test::take_launches();
        if (together) {
          launch(route, group, stream);
        } else {
          launch(route, stream);
          launch(group, stream);
        }
        stream.synchronize();
        Result result;
        result.launches = test::take_launches();
        const auto buckets = index(test::download<int32_t>(stream, memory.num_buckets.data(), 1)[0]);
        result.experts = test::download<int32_t>(stream, experts.data(), num_slots);
        result.weights = test::download<float>(stream, weights.data(), num_slots);
        result.shared = test::download<float>(stream, shared.data(), index(num_rows));
        result.bucket_experts = test::download<int32_t>(stream, memory.experts.data(), buckets);
        result.begins = test::download<int32_t>(stream, memory.begins.data(), buckets + 1);
        result.slots = test::download<int32_t>(stream, memory.slots.data(), index(result.begins.back()));
        return result;
      };
      test::for_each_order([&] {
        const Result apart = run(false), together = run(true);
        INFO(num_experts << " experts, " << num_rows << " rows");
        CHECK(together.experts == apart.experts);
        CHECK(same_bits(together.weights, apart.weights));
        CHECK(same_bits(together.shared, apart.shared));
        CHECK(together.bucket_experts == apart.bucket_experts);
        CHECK(together.begins == apart.begins);
        CHECK(together.slots == apart.slots);
        if (together.launches) CHECK(*together.launches == (num_rows <= 32 && num_experts <= 512 ? 1u : 2u));
      });
    }
  }
}

/// The product of each bucket's rows and its expert's matrix, of num_outputs rows. y: a row a slot.
MatmulDesc bucket_product(const DeviceMatrix& w, int64_t num_outputs, const DeviceRows& x, int slots_per_input,
                          float* y, const GroupDesc& group) {
  MatmulDesc desc;
  desc.w = w;
  desc.num_outputs = desc.expert_stride = desc.y_stride = num_outputs;
  desc.x = x;
  desc.max_rows = group.max_rows;
  desc.y = y;
  desc.buckets = group.buckets();
  desc.max_buckets = group.max_buckets();
  desc.max_slots = group.max_slots();
  desc.slots_per_input = slots_per_input;
  return desc;
}

#ifdef FORETOKEN_CUDA_EMULATION
TEST_CASE("experts: a prompt's launches have a block of threads for each tile that there can be, and no more") {
  // A bucket can have all rows, but not all buckets can.
  const Stream stream;
  const int num_experts = 64, top_k = 4, num_rows = 96, num_slots = num_rows * top_k;
  const int64_t dim = 256;
  const test::HostMatrix matrix = test::random_matrix(WeightType::kQ8_0, num_experts * dim, dim, 1);
  const test::DeviceMatrixMemory w = test::to_device(stream, matrix.view);
  const RowMemory x(num_rows, dim, RowMemory::kBy32);
  fill_zero(stream, x.rows().values, index(num_rows * dim) * 4);
  const QuantiseDesc quantise{x.rows(), num_rows, nullptr};
  launch(quantise, choose_config(quantise), stream);
  const DeviceBuffer experts = test::upload(stream, random_routing(num_rows, num_experts, top_k, 5).experts),
                     y(index(num_slots * dim) * 4);
  const test::BucketMemory memory(num_experts, top_k, num_rows);
  const GroupDesc group = test::group_desc(memory, experts, num_experts, top_k, num_rows);
  launch(group, stream);
  MatmulDesc desc = bucket_product(w.matrix, dim, x.rows(), top_k, y.data<float>(), group);
  for (const bool pair : {false, true}) {
    if (pair) desc.up = w.matrix;
    stream.synchronize();
    const uint64_t before = emulation::threads_run();
    launch(desc, choose_config(desc), stream);
    stream.synchronize();
    const uint64_t blocks = (emulation::threads_run() - before) / 128, outputs = 4;
    const int rows = pair ? 16 : 32;
    CHECK(blocks == outputs * index((num_slots + num_experts * (rows - 1)) / rows));
    CHECK(blocks <= outputs * index(num_slots / rows + num_experts));
  }
}
#endif

enum class SharedExpert { kNone, kPlain, kGated };

// gate-up and down of a whole layer, each in one launch, against every (row, expert) on its own. A shared expert is one
// more bucket of both launches, its rows behind those of the slots. places: of each expert on the device, -1 where it is
// not; its slots then bring nothing.
void check_experts(WeightType gate_type, WeightType down_type, int num_rows, int num_experts, int top_k,
                   SharedExpert shared_expert = SharedExpert::kNone, const std::vector<int32_t>& places = {}) {
  const Stream stream;
  const int64_t hidden = 512, inner = 256;
  const WeightTypeInfo &gate_info = weight_type_info(gate_type), &down_info = weight_type_info(down_type);
  const test::HostMatrix gate = test::random_matrix(gate_type, num_experts * inner, hidden, 1),
                         up = test::random_matrix(gate_type, num_experts * inner, hidden, 2),
                         down = test::random_matrix(down_type, num_experts * hidden, inner, 3);
  const bool has_shared = shared_expert != SharedExpert::kNone;
  test::HostMatrix shared_gate = test::random_matrix(gate_type, inner, hidden, 31),
                   shared_up = test::random_matrix(gate_type, inner, hidden, 32),
                   shared_down = test::random_matrix(down_type, hidden, inner, 33);
  shared_gate.view.scale = 0.75f;
  shared_up.view.scale = 1.5f;
  shared_down.view.scale = -1.25f;
  const std::vector<float> shared_weight = random_values(index(num_rows), 34);
  // Each expert's matrices have a scale of their own.
  const std::vector<float> gate_scales = random_values(index(num_experts), 21),
                           up_scales = random_values(index(num_experts), 22),
                           down_scales = random_values(index(num_experts), 23);
  const auto expert_of = [](const test::HostMatrix& all, int64_t e, int64_t rows, const std::vector<float>& scales) {
    MatrixView matrix = all.view.slice_rows(e * rows, (e + 1) * rows);
    matrix.scale = scales[index(e)];
    return matrix;
  };
  const Routing routing = random_routing(num_rows, num_experts, top_k, 11);
  const auto x = random_values(index(num_rows * hidden), 5), residual = random_values(index(num_rows * hidden), 6);

  const auto is_there = [&](int64_t e) { return places.empty() || places[index(e)] >= 0; };
  const std::vector<float> nothing(index(hidden), 0.0f);

  // The reference, one slot after the other.
  RowBuffer host_x(num_rows, hidden), host_inner(1, inner);
  std::copy(x.begin(), x.end(), host_x.row(0));
  std::vector<float> wanted = residual;
  for (int r = 0; r < num_rows; ++r) {
    host_x.quantise(Isa::kScalar, r, gate_info.activation_block);
    std::vector<float> sum(index(hidden), 0.0f);
    const auto add_expert = [&](const MatrixView& w_gate, const MatrixView& w_up, const MatrixView& w_down,
                                float weight) {
      std::vector<float> g(index(inner)), u(index(inner)), y(index(hidden));
      float *gp = g.data(), *up_p = u.data(), *yp = y.data();
      const RowView row = host_x.view(r);
      matmul_rows(Isa::kScalar, w_gate, 0, inner, &row, 1, &gp);
      matmul_rows(Isa::kScalar, w_up, 0, inner, &row, 1, &up_p);
      silu_mul(Isa::kScalar, gp, up_p, inner, host_inner.row(0));
      host_inner.quantise(Isa::kScalar, 0, down_info.activation_block);
      const RowView inner_row = host_inner.view(0);
      matmul_rows(Isa::kScalar, w_down, 0, hidden, &inner_row, 1, &yp);
      add_scaled(Isa::kScalar, weight, yp, hidden, sum.data());
    };
    for (int rank = 0; rank < top_k; ++rank) {
      const int64_t slot = r * top_k + rank, e = routing.experts[index(slot)];
      if (is_there(e)) {
        add_expert(expert_of(gate, e, inner, gate_scales), expert_of(up, e, inner, up_scales),
                   expert_of(down, e, hidden, down_scales), routing.weights[index(slot)]);
      } else {
        add_scaled(Isa::kScalar, routing.weights[index(slot)], nothing.data(), hidden, sum.data());
      }
    }
    if (has_shared) {
      add_expert(shared_gate.view, shared_up.view, shared_down.view,
                 shared_expert == SharedExpert::kGated ? shared_weight[index(r)] : 1.0f);
    }
    add(Isa::kScalar, sum.data(), hidden, &wanted[index(r * hidden)]);
  }

  // The device.
  const auto bits = [](const WeightTypeInfo& info) {
    return info.activation_block == 0 ? 0u : info.activation_block == 32 ? RowMemory::kBy32 : RowMemory::kBy256;
  };
  const test::DeviceMatrixMemory d_gate = test::to_device(stream, gate.view), d_up = test::to_device(stream, up.view),
                                 d_down = test::to_device(stream, down.view);
  const test::DeviceMatrixMemory d_shared_gate = test::to_device(stream, shared_gate.view),
                                 d_shared_up = test::to_device(stream, shared_up.view),
                                 d_shared_down = test::to_device(stream, shared_down.view);
  const int num_slots = num_rows * top_k, all_rows = num_slots + (has_shared ? num_rows : 0);
  const RowMemory d_x(num_rows, hidden, bits(gate_info)), d_inner(all_rows, inner, bits(down_info));
  const DeviceBuffer experts = test::upload(stream, routing.experts), weights = test::upload(stream, routing.weights),
                     d_residual = test::upload(stream, residual);
  const DeviceBuffer d_gate_scales = test::upload(stream, gate_scales), d_up_scales = test::upload(stream, up_scales),
                     d_down_scales = test::upload(stream, down_scales);
  const DeviceBuffer slots(index(all_rows * hidden) * 4), device_places = test::upload(stream, places),
                                                          device_shared_weight = test::upload(stream, shared_weight);
  fill_zero(stream, slots.data(), slots.size_bytes());
  fill_zero(stream, d_inner.rows().values, index(all_rows * inner) * 4);
  copy_to_device(stream, d_x.rows().values, x.data(), x.size() * 4);
  const QuantiseDesc quantise_x{d_x.rows(), num_rows, nullptr};
  launch(quantise_x, choose_config(quantise_x), stream);
  const test::BucketMemory memory(num_experts, top_k, num_rows);
  GroupDesc group = test::group_desc(memory, experts, num_experts, top_k, num_rows);
  if (!places.empty()) group.places = device_places.data<int32_t>();
  launch(group, stream);

  MatmulDesc gate_up = bucket_product(d_gate.matrix, inner, d_x.rows(), top_k, d_inner.rows().values, group);
  gate_up.up = d_up.matrix;
  gate_up.scales = d_gate_scales.data<float>();
  gate_up.up_scales = d_up_scales.data<float>();
  if (has_shared) gate_up.shared = {d_shared_gate.matrix, d_shared_up.matrix, 0, num_slots};
  launch(gate_up, choose_config(gate_up), stream);
  const QuantiseDesc quantise_inner{d_inner.rows(), all_rows, nullptr};
  launch(quantise_inner, choose_config(quantise_inner), stream);
  MatmulDesc down_desc = bucket_product(d_down.matrix, hidden, d_inner.rows(), 1, slots.data<float>(), group);
  down_desc.scales = d_down_scales.data<float>();
  if (has_shared) down_desc.shared = {d_shared_down.matrix, {}, num_slots, num_slots};
  launch(down_desc, choose_config(down_desc), stream);
  NormRowsDesc combine;
  combine.residual = d_residual.data<float>();
  combine.num_cols = hidden;
  combine.experts.slots = slots.data<float>();
  combine.experts.weights = weights.data<float>();
  combine.experts.top_k = top_k;
  if (has_shared) combine.experts.shared = slots.data<float>() + int64_t{num_slots} * hidden;
  if (shared_expert == SharedExpert::kGated) combine.experts.shared_weight = device_shared_weight.data<float>();
  combine.max_rows = num_rows;
  launch(combine, choose_config(combine), stream);
  INFO(gate_info.name << " and " << down_info.name << ", " << num_rows << " rows");
  CHECK(same_bits(test::download<float>(stream, d_residual.data(), wanted.size()), wanted));
}

TEST_CASE("experts: buckets through gate-up and down in one launch each") {
  for (const int num_rows : {1, 3, 9, 20}) {
    check_experts(WeightType::kQ4_K, WeightType::kQ6_K, num_rows, 8, 3);
    check_experts(WeightType::kQ8_0, WeightType::kQ4_0, num_rows, 5, 2);
  }
  check_experts(WeightType::kF16, WeightType::kBF16, 3, 4, 2);
  check_experts(WeightType::kIQ4_XS, WeightType::kMXFP4, 2, 4, 4);
  check_experts(WeightType::kQ5_K, WeightType::kQ3_K, 14, 3, 2);
  check_experts(WeightType::kNVFP4, WeightType::kQ2_0, 3, 4, 2);
  check_experts(WeightType::kNVFP4, WeightType::kTQ1_0, 20, 3, 2);
  check_experts(WeightType::kQ6_K, WeightType::kNVFP4, 132, 3, 2);  // large tiles
}

TEST_CASE("experts: the shared expert as one more bucket") {
  // Rows around what one launch takes at once: 1, 2, 4 or 12 of the dots, 16 and 32 of the tiles.
  for (const SharedExpert shared : {SharedExpert::kPlain, SharedExpert::kGated}) {
    for (const int num_rows : {1, 2, 4, 5, 12, 13, 33}) {
      check_experts(WeightType::kQ4_K, WeightType::kQ6_K, num_rows, 6, 2, shared);
    }
    check_experts(WeightType::kQ8_0, WeightType::kQ4_0, 3, 5, 5, shared);  // each row in every bucket
    // More than 64 rows a bucket: large tiles, of which the shared expert's rows fill one and begin another.
    check_experts(WeightType::kQ4_K, WeightType::kQ5_1, 140, 2, 1, shared);
    check_experts(WeightType::kQ8_0, WeightType::kIQ4_NL, 20, 1, 1, shared);
    check_experts(WeightType::kF16, WeightType::kBF16, 1, 4, 2, shared);
    check_experts(WeightType::kF16, WeightType::kBF16, 9, 4, 2, shared);
    // No routed expert on the device: the shared one is the only bucket.
    check_experts(WeightType::kQ5_K, WeightType::kQ4_K, 3, 4, 2, shared, {-1, -1, -1, -1});
    check_experts(WeightType::kQ5_K, WeightType::kQ4_K, 14, 4, 2, shared, {-1, -1, -1, -1});
    check_experts(WeightType::kF32, WeightType::kF16, 2, 4, 2, shared, {-1, 1, -1, 3});
  }
}

TEST_CASE("experts: a bucket's outputs, an odd number, with however many blocks of threads") {
  const Stream stream;
  const int num_experts = 3, top_k = 2;
  const int64_t num_outputs = 37;
  struct Case {
    WeightType type;
    int64_t num_cols;  // of one, three and eight blocks: a warp has eight, two and one pairs of outputs at once
  };
  for (const Case& c : {Case{WeightType::kQ4_K, 256}, {WeightType::kQ8_0, 96}, {WeightType::kQ6_K, 2048}}) {
    const int block = weight_type_info(c.type).activation_block;
    // The last expert's rows end where the matrix does, and each expert has a bucket.
    const test::HostMatrix gate = test::random_matrix(c.type, num_experts * num_outputs, c.num_cols, 1),
                           up = test::random_matrix(c.type, num_experts * num_outputs, c.num_cols, 2);
    const test::DeviceMatrixMemory d_gate = test::to_device(stream, gate.view), d_up = test::to_device(stream, up.view);
    for (const int num_rows : {1, 2, 5, 12}) {
      const int num_slots = num_rows * top_k;
      std::vector<int32_t> expert_of(index(num_slots));
      for (int slot = 0; slot < num_slots; ++slot)
        expert_of[index(slot)] = (slot / top_k + slot % top_k + 1) % num_experts;
      const auto x = random_values(index(num_rows * c.num_cols), 5);
      RowBuffer host_x(num_rows, c.num_cols);
      std::copy(x.begin(), x.end(), host_x.row(0));
      for (int r = 0; r < num_rows; ++r) host_x.quantise(Isa::kScalar, r, block);
      const RowMemory d_x(num_rows, c.num_cols, block == 32 ? RowMemory::kBy32 : RowMemory::kBy256);
      copy_to_device(stream, d_x.rows().values, x.data(), x.size() * 4);
      const QuantiseDesc quantise{d_x.rows(), num_rows, nullptr};
      launch(quantise, choose_config(quantise), stream);
      const DeviceBuffer experts = test::upload(stream, expert_of), y(index(num_slots * num_outputs) * 4);
      const test::BucketMemory memory(num_experts, top_k, num_rows);
      const GroupDesc group = test::group_desc(memory, experts, num_experts, top_k, num_rows);
      launch(group, stream);
      for (const bool pair : {false, true}) {
        std::vector<float> wanted(index(num_slots * num_outputs)), other(index(num_outputs));
        for (int slot = 0; slot < num_slots; ++slot) {
          const int64_t e = expert_of[index(slot)];
          const RowView row = host_x.view(slot / top_k);
          float *to = &wanted[index(slot * num_outputs)], *to_other = other.data();
          matmul_rows(Isa::kScalar, gate.view, e * num_outputs, (e + 1) * num_outputs, &row, 1, &to);
          if (!pair) continue;
          matmul_rows(Isa::kScalar, up.view, e * num_outputs, (e + 1) * num_outputs, &row, 1, &to_other);
          silu_mul(Isa::kScalar, to, to_other, num_outputs, to);
        }
        MatmulDesc desc = bucket_product(d_gate.matrix, num_outputs, d_x.rows(), top_k, y.data<float>(), group);
        if (pair) desc.up = d_up.matrix;
        for (const int warps : {1, 4}) {
          for (const int held : {1, 2 * desc.max_buckets, 0}) {
            MatmulConfig config = choose_config(desc);
            REQUIRE(config.held_blocks > 0);
            config.warps_per_block = warps;
            config.held_blocks = held;
            fill_zero(stream, y.data(), y.size_bytes());
            launch(desc, config, stream);
            INFO(weight_type_info(c.type).name << ", " << num_rows << " rows, " << warps << " warps, " << held
                                               << " blocks");
            CHECK(same_bits(test::download<float>(stream, y.data(), wanted.size()), wanted));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::cuda
