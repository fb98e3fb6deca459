#pragma once

#include <cstdint>

namespace foretoken::cuda {

/// Experts of one layer that the device fetches in one pass, at most.
inline constexpr int kMostFetched = 8;

/// Which places experts that are missing may take in a pass, told to the device before it. Both sides come to the same
/// by one rule: the experts that the rows use and that have no place, in rising order, take the places of candidates in
/// the order of this list; candidates whose own expert is used are passed over.
struct FetchCandidates {
  int32_t most = 0;                    // experts that may come: 0 .. kMostFetched
  int32_t places[kMostFetched] = {};   // negative: none
  int32_t experts[kMostFetched] = {};  // who is there, negative: nobody
};

/// What comes of it, for fetch_rows.
struct FetchList {
  int32_t count = 0;
  int32_t experts[kMostFetched] = {};  // rising
  int32_t places[kMostFetched] = {};
};

}  // namespace foretoken::cuda
