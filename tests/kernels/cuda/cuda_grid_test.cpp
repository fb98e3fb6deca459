#ifdef FORETOKEN_CUDA_EMULATION

#include <catch2/catch.hpp>

#include "kernels/attention/attention_cuda.h"
#include "kernels/delta_net/delta_net_cuda.h"
#include "kernels/matmul/matmul_cuda.h"
#include "kernels/rows/embed_cuda.h"
#include "kernels/rows/quantise_row_cuda.h"
#include "kernels/rows/rms_norm_cuda.h"
#include "kernels/rows/rows_cuda.h"
#include "kernels/select/choose_cuda.h"
#include "kernels/select/router_cuda.h"
#include "kernels/select/windows_cuda.h"
#include "tests/kernels/cuda/cuda_test_support.h"

// A grid's y and z end at 65,535. Every launch is recorded, and not run, at the largest sizes that the flags and the
// loader let through: the emulation refuses a grid that a GPU would refuse.

namespace foretoken::cuda {
namespace {

constexpr int kRows = 1 << 16;       // --prompt-chunk
constexpr int kExpertsOfRow = 32;    // rows times experts_per_token are rows too
constexpr int kSequences = 1 << 10;  // with a window each
constexpr int64_t kCols = 8192;
constexpr int64_t kVocab = 300000;

// Recorded launches read and write nothing: any address that is aligned will do.
template <class T>
T* somewhere() {
  alignas(256) static std::byte memory[256];
  return reinterpret_cast<T*>(memory);
}

QuantRows quant_rows(int block) {
  return {somewhere<int8_t>(), somewhere<float>(), somewhere<int16_t>(), kCols / block};
}

DeviceRows all_forms() {
  return {somewhere<float>(), kCols, quant_rows(32), quant_rows(256)};
}

DevicePass pass_of(int max_spans) {
  return {somewhere<PassCounts>(), somewhere<DeviceSpan>(), somewhere<int32_t>(), max_spans};
}

DeviceMatrix matrix(WeightType type, int64_t num_rows) {
  return {somewhere<std::byte>(), num_rows, kCols, device_row_bytes(type, kCols), type};
}

TEST_CASE("every launch fits a grid at the largest sizes that the flags allow") {
  const Stream stream;
  struct Guard {
    Guard() { emulation::assume_kernels_loaded(true); }
    ~Guard() { emulation::assume_kernels_loaded(false); }
  } const guard;
  const auto record = [&](const auto& work) { CHECK_NOTHROW(Graph(stream, work)); };
  SECTION("the emulation refuses what a GPU would refuse") {
    const auto body = [] {};
    CHECK_THROWS_WITH(launch_body(stream, {{1, 65536}, {32}}, "too_high", body), Catch::Contains("no GPU takes it"));
    CHECK_THROWS_AS(launch_body(stream, {{1}, {1025}}, "too_wide", body), EmulationError);
    CHECK_THROWS_AS(launch_body(stream, {{0}, {32}}, "nothing", body), EmulationError);
  }
  SECTION("rows") {
    record([&] {
      const QuantiseDesc quantise{all_forms(), kRows * kExpertsOfRow, nullptr};
      launch(quantise, choose_config(quantise), stream);
      NormRowsDesc norm;
      norm.residual = norm.out = somewhere<float>();
      norm.num_cols = norm.out_stride = kCols;
      norm.weight = somewhere<float>();
      norm.max_rows = kRows;
      launch(norm, choose_config(norm), stream);
      GatedNormRowsDesc gated;
      gated.x = gated.z = gated.weight = gated.out = somewhere<float>();
      gated.num_heads = static_cast<int>(kCols / 128);
      gated.head_dim = 128;
      gated.max_rows = kRows;
      launch(gated, choose_config(gated), stream);
      const int32_t* list = somewhere<int32_t>();
      launch(GatherRowsDesc{somewhere<float>(), list, somewhere<float>(), kCols, kRows}, stream);
      launch(ScatterRowsDesc{somewhere<float>(), list, somewhere<float>(), kCols, kRows * kExpertsOfRow}, stream);
      SendRowsDesc send;
      send.num_cols = kCols;
      send.num_rows = kRows;
      launch(send, stream);
      ReceiveRowsDesc receive;
      receive.num_cols = kCols;
      receive.max_rows = kRows * kExpertsOfRow;
      launch(receive, stream);
      launch(SiluMulDesc{somewhere<float>(), somewhere<float>(), int64_t{kRows} * kExpertsOfRow * 4096}, stream);
    });
    for (const WeightTypeInfo& info : all_weight_types()) {
      record([&] {
        launch(EmbedDesc{matrix(info.type, kVocab), somewhere<int32_t>(), somewhere<float>(), kRows, nullptr}, stream);
      });
    }
  }
  SECTION("attention and delta net") {
    PrepareAttentionDesc prepare;
    prepare.q = prepare.k = prepare.v = somewhere<float>();
    AttentionDesc attention;
    prepare.num_heads = attention.num_heads = 128;
    prepare.num_kv_heads = attention.num_kv_heads = 4;
    prepare.head_dim = attention.head_dim = 128;
    attention.kv.pages_per_sequence = (1 << 20) / kAttentionSplit;
    attention.parts = somewhere<float>();
    prepare.max_rows = attention.max_rows = kRows + kSequences;
    prepare.pass = attention.pass = pass_of(kSequences);
    record([&] {
      launch(prepare, stream);
      launch(attention, choose_config(attention), stream);
    });
    ConvolveDesc convolve;
    convolve.taps = 4;
    DeltaNetDesc net;
    convolve.state_size = net.state_size = 128;
    convolve.num_key_heads = net.num_key_heads = 64;
    convolve.num_value_heads = net.num_value_heads = 128;
    convolve.banks.window_rows = 1;
    convolve.pass = net.pass = pass_of(kSequences);
    record([&] {
      launch(convolve, stream);
      launch(net, stream);
    });
  }
  SECTION("matrices, whole and by expert") {
    for (const WeightTypeInfo& info : all_weight_types()) {
      MatmulDesc whole;
      whole.w = matrix(info.type, kVocab);
      whole.num_outputs = kVocab;
      whole.x = all_forms();
      whole.max_rows = kRows;
      whole.y = somewhere<float>();
      whole.y_stride = kVocab;
      MatmulDesc buckets = whole;
      buckets.w = matrix(info.type, int64_t{kMaxExperts} * 1024);
      buckets.num_outputs = buckets.y_stride = buckets.expert_stride = 1024;
      buckets.buckets = {somewhere<int32_t>(), somewhere<int32_t>(), somewhere<int32_t>(),
                         somewhere<int32_t>(), somewhere<int32_t>(), {}};
      for (const BucketTile*& tiles : buckets.buckets.tiles) tiles = somewhere<BucketTile>();
      buckets.max_buckets = kMaxExperts;
      buckets.max_slots = kRows * kExpertsOfRow;
      buckets.slots_per_input = kExpertsOfRow;
      record([&] {
        launch(whole, choose_config(whole), stream);
        launch(buckets, choose_config(buckets), stream);
      });
    }
    RouteDesc route;
    route.num_experts = kMaxExperts;
    route.top_k = kExpertsOfRow;
    route.max_rows = kRows;
    GroupDesc group;
    group.num_experts = kMaxExperts;
    group.top_k = kExpertsOfRow;
    group.max_rows = kRows;
    record([&] {
      launch(route, stream);
      launch(group, stream);
      launch(route, group, stream);
    });
  }
  SECTION("choices and windows") {
    ChooseDesc choose;
    choose.logits = choose.work = somewhere<float>();
    choose.num_logits = choose.logits_stride = kVocab;
    choose.sampling = somewhere<SamplingScalars>();
    choose.pass = pass_of(kSequences);
    choose.max_rows = kSequences * kMaxWindow;
    ExtendWindowsDesc extend;
    extend.num_windows = kSequences;
    AcceptDesc accept;
    accept.windows = pass_of(kSequences);
    record([&] {
      launch(choose, stream);
      launch(extend, stream);
      launch(accept, stream);
    });
  }
}

}  // namespace
}  // namespace foretoken::cuda

#endif
