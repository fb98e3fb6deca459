#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <set>
#include <vector>

#include "engine/cuda/hot_experts.h"
#include "kernels/cuda/fetch_rows_cuda.h"
#include "kernels/formats/grid_levels.h"
#include "kernels/select/router_cuda.h"
#include "tests/kernels/cuda/bucket_memory.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace foretoken::cuda {
namespace {

// A host matrix of some experts, in either layout, whose memory kernels may read.
struct HostExperts {
  HostExperts(WeightType type, int num_experts, int64_t stride_rows, int64_t num_cols, bool interleaved, uint32_t seed)
      : matrix(test::noise_matrix(type, num_experts * stride_rows, num_cols, seed)), view(matrix.view) {
    bytes.resize(64 + view.size_bytes());
    const auto at = reinterpret_cast<uintptr_t>(bytes.data());
    std::byte* begin = bytes.data() + (64 - at % 64);
    if (interleaved) {
      view.layout = Layout::kInterleaved;
      interleave_rows(matrix.view, 0, view.num_rows, begin);
    } else {
      std::copy(matrix.bytes.begin(), matrix.bytes.end(), begin);
    }
    view.data = begin;
    registered = RegisteredMemory(begin, view.size_bytes());
  }

  test::HostMatrix matrix;  // in the file's layout
  MatrixView view;
  std::vector<std::byte> bytes;
  RegisteredMemory registered;
};

TEST_CASE("fetch: experts of every type and layout come to their places as they are packed for the device") {
  const Stream stream;
  constexpr int kExperts = 4, kPlaces = 3;
  for (const WeightTypeInfo& info : all_weight_types()) {
    const bool has_groups = can_interleave(info.type, kInterleave, 512) && !has_levels(info.type);
    for (const bool interleaved : {false, true}) {
      if (interleaved && !has_groups) continue;
      // Column blocks that leave a gap behind a plane, and more of them than go at once; rows that are no whole group.
      for (const int64_t num_cols : {int64_t{info.block_size}, int64_t{5 * info.block_size}, int64_t{4096 + 256}}) {
        if (num_cols % info.block_size != 0) continue;
        const int64_t stride = interleaved ? 2 * kInterleave : 19;
        HostExperts experts(info.type, kExperts, stride, num_cols, interleaved, 3);
        REQUIRE(experts.registered.is_registered());
        REQUIRE(can_fetch(experts.view, stride));
        const int64_t row_bytes = device_row_bytes(info.type, num_cols);
        const auto bytes_of_expert = static_cast<size_t>(stride * row_bytes);
        const std::vector<std::byte> before(kPlaces * bytes_of_expert, std::byte{0xa5});
        const DeviceBuffer places = test::upload(stream, before);
        FetchList list;
        list.count = 2;
        list.experts[0] = 1;
        list.places[0] = 2;
        list.experts[1] = 3;
        list.places[1] = 0;
        const DeviceBuffer device_list = test::upload(stream, std::vector<FetchList>{list});
        FetchDesc desc;
        desc.num_matrices = 1;
        desc.matrices[0] = {experts.view.data,
                            static_cast<int64_t>(experts.view.row_bytes()),
                            interleaved,
                            stride,
                            {places.data(), kPlaces * stride, num_cols, row_bytes, info.type, 1.0f}};
        desc.list = device_list.data<FetchList>();
        launch(desc, stream);

        std::vector<std::byte> wanted = before;
        for (int i = 0; i < list.count; ++i) {
          pack_device_rows(experts.matrix.view, list.experts[i] * stride, (list.experts[i] + 1) * stride,
                           wanted.data() + static_cast<size_t>(list.places[i]) * bytes_of_expert);
        }
        INFO(info.name << (interleaved ? ", interleaved" : "") << ", " << num_cols << " columns");
        CHECK(test::download<std::byte>(stream, places.data(), wanted.size()) == wanted);
      }
    }
  }
}

TEST_CASE("fetch: what there is no kernel for") {
  const HostExperts grid(WeightType::kIQ3_S, 1, kInterleave, 256, /*interleaved=*/false, 1);
  CHECK(can_fetch(grid.view, kInterleave));
  MatrixView view = grid.view;
  view.layout = Layout::kInterleaved;
  CHECK_FALSE(can_fetch(view, kInterleave));  // another form in memory
  view.type = WeightType::kQ4_K;
  CHECK(can_fetch(view, kInterleave));
  CHECK_FALSE(can_fetch(view, kInterleave / 2));  // an expert begins within a group
}

TEST_CASE("fetch: host and device choose the same experts and places") {
  const Stream stream;
  std::mt19937 random(11);
  constexpr int kExperts = 40;
  for (int round = 0; round < 60; ++round) {
    const int placed = static_cast<int>(random() % 10), entries = static_cast<int>(random() % 14);
    const int most = static_cast<int>(random() % (kMostFetched + 1)), top_k = 1 + static_cast<int>(random() % 6);
    const int num_rows = round % 5 == 0 ? 40 : 1 + static_cast<int>(random() % 6);
    HotExperts hot({placed}, kExperts, entries);
    const test::BucketMemory memory(kExperts, top_k, num_rows);
    const DeviceBuffer fetched = test::upload(stream, std::vector<FetchList>(1));
    for (int pass = 0; pass < 6; ++pass) {
      std::vector<int32_t> experts;
      for (int r = 0; r < num_rows; ++r) {
        std::set<int32_t> chosen;
        while (static_cast<int>(chosen.size()) < top_k) chosen.insert(static_cast<int32_t>(random() % kExperts));
        experts.insert(experts.end(), chosen.begin(), chosen.end());
      }
      const std::vector<int32_t> places(hot.places(0).begin(), hot.places(0).end());
      const FetchCandidates candidates = hot.candidates(0, most);
      const DeviceBuffer device_experts = test::upload(stream, experts), device_places = test::upload(stream, places),
                         device_candidates = test::upload(stream, std::vector<FetchCandidates>{candidates});
      GroupDesc group = test::group_desc(memory, device_experts, kExperts, top_k, num_rows);
      group.places = device_places.data<int32_t>();
      group.candidates = device_candidates.data<FetchCandidates>();
      group.fetched = fetched.data<FetchList>();
      launch(group, stream);

      const std::set<int32_t> used_set(experts.begin(), experts.end());
      const std::vector<int32_t> used(used_set.begin(), used_set.end());
      for (const int32_t e : used) hot.count(0, e);
      const ReadsByPlace before = hot.reads();
      const int count = hot.fetch(0, used, candidates);
      CHECK(count <= most);
      CHECK(hot.reads().fetched - before.fetched == count);
      CHECK(hot.reads().total() == before.total());

      const FetchList list = test::download<FetchList>(stream, fetched.data(), 1)[0];
      REQUIRE(list.count == count);
      std::vector<int32_t> wanted;  // places of the buckets
      int listed = 0;
      for (const int32_t e : used) {
        const int32_t place = hot.places(0)[e];
        if (place < 0) continue;
        wanted.push_back(place);
        if (places[e] >= 0) continue;
        CHECK(list.experts[listed] == e);
        CHECK(list.places[listed++] == place);
      }
      CHECK(listed == count);
      const auto got = static_cast<size_t>(test::download<int32_t>(stream, memory.num_buckets.data(), 1)[0]);
      CHECK(test::download<int32_t>(stream, memory.experts.data(), got) == wanted);
    }
  }
}

}  // namespace
}  // namespace foretoken::cuda
