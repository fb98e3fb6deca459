#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cuda/cuda_pass.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace foretoken::cuda::test {

/// A pass table on the device, with room for more spans than the pass has.
class PassOnDevice {
 public:
  PassOnDevice(const Stream& stream, const std::vector<DeviceSpan>& spans, int spare_spans = 1) {
    PassCounts counts;
    counts.num_spans = static_cast<int32_t>(spans.size());
    for (const DeviceSpan& span : spans) counts.num_rows = std::max(counts.num_rows, span.first_row + span.num_rows);
    std::vector<int32_t> span_of_row(static_cast<size_t>(counts.num_rows), -1);
    for (size_t s = 0; s < spans.size(); ++s) {
      std::fill_n(span_of_row.begin() + spans[s].first_row, spans[s].num_rows, static_cast<int32_t>(s));
    }
    std::vector<DeviceSpan> with_spare = spans;
    with_spare.resize(spans.size() + static_cast<size_t>(spare_spans));
    counts_ = upload(stream, std::vector<PassCounts>{counts});
    spans_ = upload(stream, with_spare);
    span_of_row_ = upload(stream, span_of_row);
    pass_ = {counts_.data<PassCounts>(), spans_.data<DeviceSpan>(), span_of_row_.data<int32_t>(),
             static_cast<int>(with_spare.size())};
  }
  [[nodiscard]] const DevicePass& pass() const { return pass_; }

 private:
  DeviceBuffer counts_, spans_, span_of_row_;
  DevicePass pass_;
};

/// Spans one behind the other: sets the rows that each begins at.
inline std::vector<DeviceSpan> in_a_row(std::vector<DeviceSpan> spans) {
  int32_t row = 0, window_row = 0;
  for (DeviceSpan& span : spans) {
    span.first_row = row;
    span.window_row = window_row;
    row += span.num_rows;
    if (span.is_window != 0) window_row += span.num_rows;
  }
  return spans;
}

}  // namespace foretoken::cuda::test
