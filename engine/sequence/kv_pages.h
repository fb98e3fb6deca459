#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/weights.h"
#include "kernels/attention/attention.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/isa.h"

namespace foretoken {

/// What a page of KV memory holds: [layer][kv_head][keys, values][256 positions][head_dim].
class KvShape {
 public:
  KvShape() = default;
  /// `layers`: those that have keys and values, the trunk's and then the MTP layer.
  KvShape(std::span<const AttentionShape> layers, KvType type);

  struct Layer {
    int head_dim = 0;
    int64_t row_bytes = 0;   // of one head's key, or value, at one position
    int64_t head_bytes = 0;  // of one head's keys and values over a page
    int64_t offset = 0;      // of the layer in a page
  };
  [[nodiscard]] const Layer& layer(int index) const { return layers_[index]; }
  [[nodiscard]] int num_layers() const { return static_cast<int>(layers_.size()); }
  [[nodiscard]] KvType type() const { return type_; }
  [[nodiscard]] int64_t page_bytes() const { return page_bytes_; }

 private:
  std::vector<Layer> layers_;
  KvType type_ = KvType::kF16;
  int64_t page_bytes_ = 0;
};

/// The host's KV memory, page after page: one head's keys of a page are one stream, as its values are. Positions are
/// overwritten freely; who may read which is the engine's business.
class KvPages {
 public:
  KvPages() = default;
  KvPages(const KvShape& shape, int num_pages);

  /// One head's keys and values of a page. next_page: the page that is read next, or -1.
  [[nodiscard]] KvSplit split(int32_t page, int32_t next_page, int layer, int kv_head) const;
  /// Stores one head's key and value [head_dim] at position `offset` of a page.
  void store(Isa isa, int32_t page, int offset, int layer, int kv_head, const float* key, const float* value);

  [[nodiscard]] std::byte* page(int32_t page) { return memory_.data() + page_offset(page); }
  [[nodiscard]] const std::byte* page(int32_t page) const { return memory_.data() + page_offset(page); }
  [[nodiscard]] const KvShape& shape() const { return shape_; }
  [[nodiscard]] size_t size_bytes() const { return memory_.size_bytes(); }

 private:
  [[nodiscard]] size_t page_offset(int32_t page) const { return static_cast<size_t>(page * shape_.page_bytes()); }
  [[nodiscard]] size_t head_offset(int32_t page, const KvShape::Layer& layer, int kv_head) const {
    return page_offset(page) + static_cast<size_t>(layer.offset + kv_head * layer.head_bytes);
  }

  KvShape shape_;
  AlignedBuffer memory_;
};

}  // namespace foretoken
