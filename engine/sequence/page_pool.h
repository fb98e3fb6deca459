#pragma once

#include <cstdint>
#include <vector>

namespace foretoken {

/// Which pages of an engine's KV memory are in use, and by how many sequences each: bookkeeping of the host alone,
/// whoever holds the memory. A page that several sequences share is full and never written again.
///
/// Nothing is allocated after construction.
class PagePool {
 public:
  explicit PagePool(int num_pages);

  [[nodiscard]] int num_pages() const { return static_cast<int>(users_.size()); }
  [[nodiscard]] int num_free() const { return static_cast<int>(free_.size()); }

  /// A page with one user. REQUIRES: num_free() > 0.
  [[nodiscard]] int32_t take();
  /// One user more. REQUIRES: the page is in use.
  void share(int32_t page);
  /// One user less; without users the page is free.
  void drop(int32_t page);

 private:
  std::vector<int32_t> users_;  // [num_pages]
  std::vector<int32_t> free_;   // the next one to take last
};

}  // namespace foretoken
