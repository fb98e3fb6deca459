#pragma once

namespace foretoken {

/// How many of the experts that a layer misses the device fetches itself, while the CPU computes the others: as many that
/// both are done at the same time, if the next passes are as the last ones were. Changes the time alone.
///
/// With m experts missing, t_f seconds to fetch one and t_c to compute one: f t_f = (m - f) t_c. Windows and prompt chunks
/// have numbers of their own, since more rows make the CPU slower and the bus not.
class FetchBalance {
 public:
  /// most: never more; at least one is fetched, so that the entries learn what is used.
  FetchBalance(double seconds_to_fetch, int most);

  [[nodiscard]] int fetched(bool has_chunks) const;
  /// A layer of a pass missed so many experts, and the CPU computed some of them in this time.
  void learn(bool has_chunks, int missing, int computed, double seconds);

 private:
  struct Means {
    double missing = 0;     // of a layer
    double seconds = 0;     // to compute one
    bool is_known = false;  // the first observation is taken as it is
  };

  const double seconds_to_fetch_;
  const int most_;
  Means of_windows_, of_chunks_;
};

}  // namespace foretoken
