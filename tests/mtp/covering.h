#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

// Few settings in which every two values of two axes meet: what breaks bits is mostly one value, or two together.

namespace foretoken::test {

/// Rows [axes] of value indices, sizes[a] values of axis a, so that each pair of values of each two axes stands in some
/// row. Greedy: each row takes the first pair that is still missing, then axis by axis the value that brings most
/// missing pairs with it, the best of several tries; ties by `seed`. The same rows for the same arguments.
inline std::vector<std::vector<int>> pairwise_covering(const std::vector<int>& sizes, uint64_t seed) {
  const size_t num_axes = sizes.size();
  // missing[a][b][va * sizes[b] + vb], a < b
  std::vector<std::vector<std::vector<bool>>> missing(num_axes, std::vector<std::vector<bool>>(num_axes));
  for (size_t a = 0; a < num_axes; ++a) {
    for (size_t b = a + 1; b < num_axes; ++b) missing[a][b].assign(sizes[a] * sizes[b], true);
  }
  const auto bit = [&](size_t a, int va, size_t b, int vb) {
    if (a > b) {
      std::swap(a, b);
      std::swap(va, vb);
    }
    return missing[a][b][va * sizes[b] + vb];
  };
  std::mt19937_64 random(seed);
  std::vector<std::vector<int>> rows;
  constexpr int kTries = 20;
  for (;;) {
    // The first missing pair begins the row.
    size_t first = num_axes, second = num_axes;
    int at = 0;
    for (size_t a = 0; a < num_axes && first == num_axes; ++a) {
      for (size_t b = a + 1; b < num_axes && first == num_axes; ++b) {
        const auto found = std::find(missing[a][b].begin(), missing[a][b].end(), true);
        if (found == missing[a][b].end()) continue;
        first = a;
        second = b;
        at = static_cast<int>(found - missing[a][b].begin());
      }
    }
    if (first == num_axes) return rows;

    std::vector<int> best;
    int best_new = -1;
    for (int attempt = 0; attempt < kTries; ++attempt) {
      std::vector<int> row(num_axes, -1);
      row[first] = at / sizes[second];
      row[second] = at % sizes[second];
      std::vector<size_t> others;
      for (size_t a = 0; a < num_axes; ++a) {
        if (row[a] < 0) others.push_back(a);
      }
      // Not std::shuffle, whose order is the library's own.
      for (size_t i = others.size(); i > 1; --i) std::swap(others[i - 1], others[random() % i]);
      int num_new = 1;
      for (const size_t a : others) {
        const auto begin = static_cast<int>(random() % static_cast<uint64_t>(sizes[a]));
        int most = -1;
        for (int i = 0; i < sizes[a]; ++i) {
          const int value = (begin + i) % sizes[a];
          int count = 0;
          for (size_t b = 0; b < num_axes; ++b) count += b != a && row[b] >= 0 && bit(a, value, b, row[b]) ? 1 : 0;
          if (count <= most) continue;
          most = count;
          row[a] = value;
        }
        num_new += most;
      }
      if (num_new <= best_new) continue;
      best_new = num_new;
      best = std::move(row);
    }
    for (size_t a = 0; a < num_axes; ++a) {
      for (size_t b = a + 1; b < num_axes; ++b) missing[a][b][best[a] * sizes[b] + best[b]] = false;
    }
    rows.push_back(std::move(best));
  }
}

}  // namespace foretoken::test
