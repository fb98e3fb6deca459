#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/isa.h"

namespace foretoken {

/// What a page of KV memory holds.
struct KvShape {
  int num_layers = 0;  // that have keys and values: the trunk's attention layers, then the MTP layer
  int num_kv_heads = 0;
  int head_dim = 0;
  KvType type = KvType::kF16;

  /// Bytes of one head's key, or value, at one position.
  [[nodiscard]] int64_t row_bytes() const { return int64_t{head_dim} * kv_value_bytes(type); }
  /// Bytes of one head's keys and values over a page.
  [[nodiscard]] int64_t head_bytes() const { return 2 * kAttentionSplit * row_bytes(); }
  [[nodiscard]] int64_t page_bytes() const { return int64_t{num_layers} * num_kv_heads * head_bytes(); }
};

/// The host's KV memory, [page][layer][kv_head][keys, values][256 positions][head_dim]: one head's keys of a page are
/// one stream, as its values are. Positions are overwritten freely; who may read which is the engine's business.
class KvPages {
 public:
  KvPages() = default;
  KvPages(const KvShape& shape, int num_pages);

  /// One head's keys and values of a page. next_page: the page that is read next, or -1.
  [[nodiscard]] KvSplit split(int32_t page, int32_t next_page, int layer, int kv_head) const;
  /// Stores one head's key and value [head_dim] at position `offset` of a page.
  void store(Isa isa, int32_t page, int offset, int layer, int kv_head, const float* key, const float* value);

  [[nodiscard]] std::byte* page(int32_t page) { return memory_.data() + at(page, 0, 0); }
  [[nodiscard]] const std::byte* page(int32_t page) const { return memory_.data() + at(page, 0, 0); }
  [[nodiscard]] const KvShape& shape() const { return shape_; }
  [[nodiscard]] size_t size_bytes() const { return memory_.size_bytes(); }

 private:
  [[nodiscard]] size_t at(int32_t page, int layer, int kv_head) const {
    return static_cast<size_t>(page * shape_.page_bytes() +
                               (int64_t{layer} * shape_.num_kv_heads + kv_head) * shape_.head_bytes());
  }

  KvShape shape_;
  AlignedBuffer memory_;
};

}  // namespace foretoken
