#include "tools/bench/resampling.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

/// SplitMix64 (S. Vigna, public domain): small, and the same on every machine, unlike the standard library's
/// distributions.
class Generator {
 public:
  uint64_t below(uint64_t n) {
    state_ += 0x9e3779b97f4a7c15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % n;  // the bias of the modulus is 2^-60 for sample counts in the hundreds
  }

 private:
  uint64_t state_ = 0;
};

double median_of_sorted(std::span<const double> sorted) {
  const size_t half = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[half] : 0.5 * (sorted[half - 1] + sorted[half]);
}

}  // namespace

double median(std::span<const double> values) {
  FT_CHECK(!values.empty());
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  return median_of_sorted(sorted);
}

Interval bootstrap_median(std::span<const double> values) {
  FT_CHECK(!values.empty());
  Generator generator;
  std::vector<double> medians(kResamples);
  std::vector<double> drawn(values.size());
  for (double& m : medians) {
    for (double& value : drawn) value = values[generator.below(values.size())];
    std::sort(drawn.begin(), drawn.end());
    m = median_of_sorted(drawn);
  }
  std::sort(medians.begin(), medians.end());
  return {medians[static_cast<size_t>(0.025 * (kResamples - 1))],
          medians[static_cast<size_t>(0.975 * (kResamples - 1) + 0.5)]};
}

}  // namespace foretoken
