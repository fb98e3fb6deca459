#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention.h"

namespace foretoken::test {

/// Keys and values of one head whose positions all follow each other: position p at data + p * head_dim elements.
struct ContiguousKv {
  const void* keys;
  const void* values;
  KvType type;

  [[nodiscard]] KvSplit split(int64_t split_idx, int head_dim) const {
    const size_t offset =
        static_cast<size_t>(split_idx * kAttentionSplit * head_dim) * (type == KvType::kF16 ? 2u : 4u);
    return {static_cast<const std::byte*>(keys) + offset, static_cast<const std::byte*>(values) + offset, type,
            nullptr};
  }
};

}  // namespace foretoken::test
