#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/isa.h"

namespace foretoken {

/// Keys and values of the attention layers, [layer][head][position][head_dim]: one head's positions follow each other,
/// so a split of them is one stream. Positions are overwritten freely; who may read which is the session's business.
class KvCache {
 public:
  KvCache() = default;
  KvCache(int num_layers, int num_kv_heads, int head_dim, int64_t ctx_size, KvType type);

  [[nodiscard]] KvHead head(int layer, int kv_head) const;
  /// Stores one head's key and value [head_dim] of one position.
  void store(Isa isa, int layer, int kv_head, int64_t position, const float* key, const float* value);
  /// Bytes of one head's key and value at one position.
  [[nodiscard]] int64_t position_bytes() const { return int64_t{2} * head_dim_ * (type_ == KvType::kF16 ? 2 : 4); }
  [[nodiscard]] size_t size_bytes() const;

 private:
  struct Layer {
    AlignedBuffer keys, values;
  };
  std::vector<Layer> layers_;
  int head_dim_ = 0;
  int64_t ctx_size_ = 0;
  KvType type_ = KvType::kF16;
};

}  // namespace foretoken
