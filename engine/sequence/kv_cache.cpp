#include "engine/sequence/kv_cache.h"

namespace foretoken {

namespace {
size_t value_bytes(KvType type) {
  return type == KvType::kF16 ? 2 : 4;
}
}  // namespace

KvCache::KvCache(int num_layers, int num_kv_heads, int head_dim, int64_t ctx_size, KvType type)
    : head_dim_(head_dim), ctx_size_(ctx_size), type_(type) {
  const size_t bytes = static_cast<size_t>(num_kv_heads) * static_cast<size_t>(ctx_size) *
                       static_cast<size_t>(head_dim) * value_bytes(type);
  for (int i = 0; i < num_layers; ++i)
    layers_.push_back({AlignedBuffer(bytes, "the KV cache"), AlignedBuffer(bytes, "the KV cache")});
}

KvHead KvCache::head(int layer, int kv_head) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  const size_t offset = static_cast<size_t>(kv_head) * static_cast<size_t>(ctx_size_) * static_cast<size_t>(head_dim_) *
                        value_bytes(type_);
  return {l.keys.data() + offset, l.values.data() + offset, type_};
}

void KvCache::store(Isa isa, int layer, int kv_head, int64_t position, const float* key, const float* value) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  const int64_t row = kv_head * ctx_size_ + position;
  const size_t offset = static_cast<size_t>(row) * static_cast<size_t>(head_dim_) * value_bytes(type_);
  store_kv(isa, key, head_dim_, type_, l.keys.data() + offset);
  store_kv(isa, value, head_dim_, type_, l.values.data() + offset);
}

size_t KvCache::size_bytes() const {
  size_t bytes = 0;
  for (const Layer& l : layers_) bytes += l.keys.size_bytes() + l.values.size_bytes();
  return bytes;
}

}  // namespace foretoken
