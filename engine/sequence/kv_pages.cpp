#include "engine/sequence/kv_pages.h"

namespace foretoken {

KvShape::KvShape(std::span<const AttentionShape> layers, KvType type) : type_(type) {
  for (const AttentionShape& shape : layers) {
    const int64_t row_bytes = int64_t{shape.head_dim} * kv_value_bytes(type);
    const int64_t head_bytes = 2 * kAttentionSplit * row_bytes;
    layers_.push_back({shape.head_dim, row_bytes, head_bytes, page_bytes_});
    page_bytes_ += shape.num_kv_heads * head_bytes;
  }
}

KvPages::KvPages(const KvShape& shape, int num_pages)
    : shape_(shape), memory_(static_cast<size_t>(num_pages * shape.page_bytes()), "the KV cache") {}

KvSplit KvPages::split(int32_t page, int32_t next_page, int layer, int kv_head) const {
  const KvShape::Layer& of = shape_.layer(layer);
  const std::byte* keys = memory_.data() + head_offset(page, of, kv_head);
  return {keys, keys + of.head_bytes / 2, shape_.type(),
          next_page < 0 ? nullptr : memory_.data() + head_offset(next_page, of, kv_head)};
}

void KvPages::store(Isa isa, int32_t page, int offset, int layer, int kv_head, const float* key, const float* value) {
  const KvShape::Layer& of = shape_.layer(layer);
  std::byte* keys = memory_.data() + head_offset(page, of, kv_head) + offset * of.row_bytes;
  store_kv(isa, key, of.head_dim, shape_.type(), keys);
  store_kv(isa, value, of.head_dim, shape_.type(), keys + of.head_bytes / 2);
}

}  // namespace foretoken
