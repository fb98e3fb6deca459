#include <catch2/catch.hpp>

#include "kernels/select/windows_cuda.h"
#include "tests/kernels/cuda/cuda_pass_support.h"

namespace foretoken::cuda {
namespace {

DeviceSpan span_at(int position, int num_rows, int sequence) {
  DeviceSpan span;
  span.position = position;
  span.num_rows = num_rows;
  span.sequence = sequence;
  return span;
}

TEST_CASE("windows: proposals join, the host's own and the choices of each sequence") {
  const Stream stream;
  // Three windows: of 4, 3 and 1 rows; two of them grow. -1: to be chosen.
  const std::vector<DeviceSpan> windows = test::in_a_row({span_at(10, 4, 2), span_at(100, 3, 0), span_at(7, 1, 1)});
  const std::vector<DeviceSpan> steps = test::in_a_row({span_at(10, 1, 2), span_at(100, 1, 0)});
  const test::PassOnDevice window_pass(stream, windows), step_pass(stream, steps);
  const std::vector<int32_t> ids{5, 50, -1, -1, 6, -1, 60, 9};
  const DeviceBuffer window_ids = test::upload(stream, ids),
                     window_shares = test::upload(stream, std::vector<float>(8, 0.0f)),
                     step_ids = test::upload(stream, std::vector<int32_t>{0, 0});
  std::vector<int32_t> last;
  for (int i = 0; i < 2; ++i) {
    const DeviceBuffer chosen = test::upload(stream, std::vector<int32_t>{20 + i, 30 + i, 40 + i}),
                       shares = test::upload(stream, std::vector<float>{0.1f + i, 0.2f + i, 0.3f + i});
    ExtendWindowsDesc desc;
    desc.windows = window_pass.pass();
    desc.steps = step_pass.pass();
    desc.chosen = chosen.data<int32_t>();
    desc.shares = shares.data<float>();
    desc.window_ids = window_ids.data<int32_t>();
    desc.window_shares = window_shares.data<float>();
    desc.step_ids = step_ids.data<int32_t>();
    desc.num_windows = 2;
    launch(desc, stream);
    last = test::download<int32_t>(stream, step_ids.data(), 2);
    CHECK(last == (i == 0 ? std::vector<int32_t>{50, 20} : std::vector<int32_t>{41, 60}));
  }
  CHECK(test::download<int32_t>(stream, window_ids.data(), 8) == std::vector<int32_t>{5, 50, 41, -1, 6, 20, 60, 9});
  CHECK(test::download<float>(stream, window_shares.data(), 8) ==
        std::vector<float>{0.3f, 1.3f, 0, 0, 0.1f, 1.1f, 0, 0});
  const auto moved = test::download<DeviceSpan>(stream, step_pass.pass().spans, 2);
  CHECK(moved[0].position == 12);
  CHECK(moved[1].position == 102);
}

struct Accepted {
  std::vector<int32_t> num_accepted;
  PassCounts counted, last;
  std::vector<DeviceSpan> counted_spans, last_spans;
  std::vector<int32_t> counted_rows, last_rows;
};

Accepted accept(const Stream& stream, const std::vector<DeviceSpan>& windows, const std::vector<int32_t>& ids,
                const std::vector<int32_t>& choices, int num_followed) {
  const test::PassOnDevice pass(stream, windows), counted(stream, windows), last(stream, windows);
  const size_t n = windows.size();
  const DeviceBuffer window_ids = test::upload(stream, ids), device_choices = test::upload(stream, choices),
                     num_accepted = test::upload(stream, std::vector<int32_t>(n, -7)),
                     followed = test::upload(stream, std::vector<int32_t>{num_followed}),
                     last_rows = test::upload(stream, std::vector<int32_t>(n, -7));
  AcceptDesc desc;
  desc.windows = pass.pass();
  desc.window_ids = window_ids.data<int32_t>();
  desc.choices = device_choices.data<int32_t>();
  desc.num_accepted = num_accepted.data<int32_t>();
  desc.num_followed = followed.data<int32_t>();
  desc.counted = counted.pass();
  desc.last = last.pass();
  desc.last_rows = last_rows.data<int32_t>();
  launch(desc, stream);
  return {test::download<int32_t>(stream, num_accepted.data(), n),
          test::download<PassCounts>(stream, counted.pass().counts, 1)[0],
          test::download<PassCounts>(stream, last.pass().counts, 1)[0],
          test::download<DeviceSpan>(stream, counted.pass().spans, n),
          test::download<DeviceSpan>(stream, last.pass().spans, n),
          test::download<int32_t>(stream, counted.pass().span_of_row, ids.size()),
          test::download<int32_t>(stream, last_rows.data(), n)};
}

TEST_CASE("windows: the longest prefix that the choices foretold, and the rows that count") {
  const Stream stream;
  const std::vector<DeviceSpan> windows = test::in_a_row({span_at(10, 4, 2), span_at(100, 3, 0), span_at(7, 1, 1)});
  test::for_each_order([&] {
    const Accepted got = accept(stream, windows, {1, 2, 3, 4, 11, 12, 13, 21}, {2, 3, 9, 5, 12, 13, 14, 22}, 2);
    CHECK(got.num_accepted == std::vector<int32_t>{2, 2, 0});
    CHECK(got.counted.num_rows == 7);
    CHECK(got.counted.num_spans == 2);
    CHECK(got.last.num_rows == 2);
    CHECK(std::vector<int32_t>(got.counted_rows.begin(), got.counted_rows.begin() + 7) ==
          std::vector<int32_t>{0, 0, 0, -1, 1, 1, 1});
    CHECK(got.counted_spans[0].num_rows == 3);
    CHECK(got.counted_spans[0].position == 11);
    CHECK(got.counted_spans[0].sequence == 2);
    CHECK(got.counted_spans[1].first_row == 4);
    CHECK(got.last_spans[0].position == 13);
    CHECK(got.last_spans[1].position == 103);
    CHECK(got.last_spans[1].sequence == 0);
    CHECK(got.last_rows[0] == 2);
    CHECK(got.last_rows[1] == 6);
    CHECK(got.last_rows[2] == -7);
    const Accepted none = accept(stream, windows, {1, 2, 3, 4, 11, 12, 13, 21}, {3, 3, 4, 5, 12, 9, 14, 22}, 0);
    CHECK(none.num_accepted == std::vector<int32_t>{0, 1, 0});
  });
  // The widest window, all right and the last one wrong.
  std::vector<int32_t> ids(kMaxWindow), choices(kMaxWindow);
  for (int32_t i = 0; i < kMaxWindow; ++i) {
    ids[i] = i;
    choices[i] = i + 1;
  }
  CHECK(accept(stream, {span_at(3, kMaxWindow, 0)}, ids, choices, 1).num_accepted[0] == kMaxWindow - 1);
  choices[kMaxWindow - 2] = 0;
  CHECK(accept(stream, {span_at(3, kMaxWindow, 0)}, ids, choices, 1).num_accepted[0] == kMaxWindow - 2);
}

}  // namespace
}  // namespace foretoken::cuda
