#include <catch2/catch.hpp>
#include <cmath>

#include "engine/sampler.h"
#include "kernels/rows/embed_cuda.h"
#include "kernels/select/choose_cuda.h"
#include "kernels/select/softmax.h"
#include "tests/kernels/cuda/cuda_pass_support.h"

namespace foretoken::cuda {
namespace {

using test::random_values;
using test::same_bits;

struct Choices {
  std::vector<int32_t> ids;
  std::vector<float> shares;
};

// Choices behind the rows of a pass; each sequence has its own sampling.
Choices choose(const Stream& stream, const std::vector<float>& logits, const std::vector<DeviceSpan>& spans,
               const std::vector<SamplingScalars>& sampling, bool by_sequence,
               const std::vector<int32_t>& groups = {}) {
  const test::PassOnDevice pass(stream, spans);
  int num_rows = 0;
  for (const DeviceSpan& span : spans) num_rows += span.num_rows;
  const auto count = static_cast<int64_t>(logits.size()) / num_rows;
  const DeviceBuffer device = test::upload(stream, logits), device_sampling = test::upload(stream, sampling),
                     device_groups = test::upload(stream, groups),
                     num_groups = test::upload(stream, std::vector<int32_t>{static_cast<int32_t>(groups.size())});
  const size_t num_results = by_sequence ? sampling.size() : static_cast<size_t>(num_rows);
  const DeviceBuffer ids(num_results * 4), shares(num_results * 4),
      work(static_cast<size_t>(ChooseDesc::work_floats(num_rows + 1)) * 4);
  ChooseDesc desc;
  desc.logits = device.data<float>();
  desc.logits_stride = desc.num_logits = count;
  if (!groups.empty()) {
    desc.groups = device_groups.data<int32_t>();
    desc.device_num_groups = num_groups.data<int32_t>();
    desc.num_ids = 41 * 16;
  }
  desc.pass = pass.pass();
  desc.sampling = device_sampling.data<SamplingScalars>();
  desc.by_sequence = by_sequence;
  desc.ids = ids.data<int32_t>();
  desc.shares = shares.data<float>();
  desc.work = work.data<float>();
  desc.max_rows = num_rows + 1;
  launch(desc, stream);
  return {test::download<int32_t>(stream, ids.data(), num_results),
          test::download<float>(stream, shares.data(), num_results)};
}

DeviceSpan span_at(int position, int num_rows, int sequence) {
  DeviceSpan span;
  span.position = position;
  span.num_rows = num_rows;
  span.sequence = sequence;
  return span;
}

// One sequence: the choice behind row 0 stands at `position`.
Choices choose(const Stream& stream, const std::vector<float>& logits, int num_rows, float temperature, uint64_t seed,
               int position, const std::vector<int32_t>& groups = {}) {
  return choose(stream, logits, {span_at(position - 1, num_rows, 0)}, {{temperature, seed}}, false, groups);
}

TEST_CASE("choice: the sampler's own, greedy and with noise") {
  const Stream stream;
  test::for_each_order([&] {
    for (const int64_t vocab : {1, 40, 20000}) {
      const int num_rows = 3;
      std::vector<float> logits = random_values(static_cast<size_t>(num_rows * vocab), static_cast<uint32_t>(vocab));
      for (int64_t i = 0; i < vocab; ++i) logits[vocab + i] = static_cast<float>(i % 7);  // row 1: ties
      for (const float temperature : {0.0f, 0.7f, 3.0f}) {
        SamplingOptions options;
        options.temperature = temperature;
        options.seed = 1234567890123u;
        const Choices got = choose(stream, logits, num_rows, temperature, options.seed, 17);
        for (int r = 0; r < num_rows; ++r) {
          const float* row = &logits[r * vocab];
          const TokenId want = choose_token(Isa::kScalar, row, vocab, options, 17 + r);
          INFO("vocabulary " << vocab << ", temperature " << temperature << ", row " << r);
          CHECK(got.ids[r] == want);
          CHECK(got.shares[r] == Approx(softmax_share(Isa::kScalar, row, vocab, want)).epsilon(1e-4));
        }
      }
    }
  });
}

TEST_CASE("choice: every sequence with its own temperature, seed and position") {
  const Stream stream;
  const int64_t vocab = 333;
  const std::vector<SamplingScalars> sampling{{0.9f, 5}, {0.0f, 0}, {1.4f, 77}, {0.9f, 6}};
  const std::vector<DeviceSpan> spans = test::in_a_row({span_at(9, 2, 2), span_at(700, 1, 0), span_at(9, 3, 1)});
  const std::vector<float> logits = random_values(static_cast<size_t>(6 * vocab), 8);
  const Choices by_row = choose(stream, logits, spans, sampling, false);
  for (const DeviceSpan& span : spans) {
    SamplingOptions options;
    options.temperature = sampling[span.sequence].temperature;
    options.seed = sampling[span.sequence].seed;
    for (int r = 0; r < span.num_rows; ++r) {
      const auto row = static_cast<size_t>(span.first_row + r);
      const TokenId want =
          choose_token(Isa::kScalar, &logits[row * static_cast<size_t>(vocab)], vocab, options, span.position + r + 1);
      CHECK(by_row.ids[row] == want);
    }
  }
  // One row of each, its result where the sequence's place is.
  const std::vector<DeviceSpan> ones = test::in_a_row({span_at(4, 1, 3), span_at(8, 1, 0)});
  const std::vector<float> two(logits.begin(), logits.begin() + 2 * vocab);
  const Choices by_sequence = choose(stream, two, ones, sampling, true);
  for (const DeviceSpan& span : ones) {
    SamplingOptions options;
    const auto at = static_cast<size_t>(span.sequence);
    options.temperature = sampling[at].temperature;
    options.seed = sampling[at].seed;
    const float* row = &two[span.first_row * vocab];
    const TokenId want = choose_token(Isa::kScalar, row, vocab, options, span.position + 1);
    CHECK(by_sequence.ids[at] == want);
    CHECK(by_sequence.shares[at] == Approx(softmax_share(Isa::kScalar, row, vocab, want)).epsilon(1e-4));
  }
}

TEST_CASE("choice: NaN and infinities as the sampler takes them") {
  const Stream stream;
  const float nan = std::nanf(""), infinity = INFINITY;
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingOptions options;
    options.temperature = temperature;
    for (const std::vector<float>& logits : std::vector<std::vector<float>>{{nan, nan, nan},
                                                                            {nan, 1.0f, 1.0f, nan},
                                                                            {-infinity, -infinity},
                                                                            {2.0f, infinity, 3.0f},
                                                                            {-infinity, -4.0f, nan}}) {
      const Choices got = choose(stream, logits, 1, temperature, 0, 3);
      CHECK(got.ids[0] == choose_token(Isa::kScalar, logits.data(), static_cast<int64_t>(logits.size()), options, 3));
    }
  }
}

TEST_CASE("choice: over the groups of a draft head, ids of the whole vocabulary") {
  const Stream stream;
  const std::vector<int32_t> groups{0, 2, 3, 9, 40};
  const int64_t vocab = 41 * 16;
  const std::vector<float> logits = random_values(groups.size() * 16, 5);
  std::vector<float> whole(static_cast<size_t>(vocab), -INFINITY);
  for (size_t g = 0; g < groups.size(); ++g)
    std::copy_n(&logits[g * 16], 16, &whole[static_cast<size_t>(groups[g]) * 16]);
  for (const float temperature : {0.0f, 1.0f}) {
    for (int position = 1; position < 12; ++position) {
      SamplingOptions options;
      options.temperature = temperature;
      const TokenId want = choose_token(Isa::kScalar, whole.data(), vocab, options, position);
      const Choices got = choose(stream, logits, 1, temperature, 0, position, groups);
      CHECK(got.ids[0] == want);
      CHECK(got.shares[0] == Approx(softmax_share(Isa::kScalar, whole.data(), vocab, want)).epsilon(1e-4));
    }
  }
}

TEST_CASE("embedding: rows of every type as decode_row gives them") {
  const Stream stream;
  for (const WeightTypeInfo& info : all_weight_types()) {
    const int64_t num_cols = 512, vocab = 9;
    const test::HostMatrix matrix = test::random_matrix(info.type, vocab, num_cols, 4);
    const test::DeviceMatrixMemory device = test::to_device(stream, matrix.view);
    const std::vector<int32_t> ids{8, 0, 3, 3};
    const DeviceBuffer device_ids = test::upload(stream, ids), to(ids.size() * static_cast<size_t>(num_cols) * 4);
    EmbedDesc desc;
    desc.matrix = device.matrix;
    desc.ids = device_ids.data<int32_t>();
    desc.to = to.data<float>();
    desc.max_rows = static_cast<int>(ids.size());
    launch(desc, stream);
    std::vector<float> wanted(ids.size() * static_cast<size_t>(num_cols));
    for (size_t r = 0; r < ids.size(); ++r) {
      decode_row(info.type, matrix.view.data + static_cast<size_t>(ids[r]) * matrix.view.row_bytes(), num_cols,
                 &wanted[r * static_cast<size_t>(num_cols)]);
    }
    INFO(info.name);
    CHECK(same_bits(test::download<float>(stream, to.data(), wanted.size()), wanted));
  }
}

}  // namespace
}  // namespace foretoken::cuda
