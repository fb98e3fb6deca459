#include "engine/sequence/kv_pages.h"

namespace foretoken {

KvPages::KvPages(const KvShape& shape, int num_pages)
    : shape_(shape), memory_(static_cast<size_t>(num_pages * shape.page_bytes()), "the KV cache") {}

KvSplit KvPages::split(int32_t page, int32_t next_page, int layer, int kv_head) const {
  const std::byte* keys = memory_.data() + at(page, layer, kv_head);
  return {keys, keys + shape_.head_bytes() / 2, shape_.type,
          next_page < 0 ? nullptr : memory_.data() + at(next_page, layer, kv_head)};
}

void KvPages::store(Isa isa, int32_t page, int offset, int layer, int kv_head, const float* key, const float* value) {
  std::byte* keys = memory_.data() + at(page, layer, kv_head) + offset * shape_.row_bytes();
  store_kv(isa, key, shape_.head_dim, shape_.type, keys);
  store_kv(isa, value, shape_.head_dim, shape_.type, keys + shape_.head_bytes() / 2);
}

}  // namespace foretoken
