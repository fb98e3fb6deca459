#include "engine/sequence/page_pool.h"

#include "kernels/base/error.h"

namespace foretoken {

PagePool::PagePool(int num_pages) : users_(static_cast<size_t>(num_pages), 0) {
  // Low pages first: a short text touches the beginning of the memory alone.
  for (int page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

int32_t PagePool::take() {
  FT_CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  users_[page] = 1;
  return page;
}

void PagePool::share(int32_t page) {
  int32_t& users = users_.at(page);
  FT_CHECK(users > 0);
  ++users;
}

void PagePool::drop(int32_t page) {
  int32_t& users = users_.at(page);
  FT_CHECK(users > 0);
  if (--users == 0) free_.push_back(page);
}

}  // namespace foretoken
