#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/weights.h"
#include "kernels/attention/rope.h"
#include "kernels/base/error.h"

namespace foretoken {

/// The rotations of all layers of a model, a table each.
class RopeTables {
 public:
  RopeTables(std::span<const RopeShape> shapes, int64_t ctx_size) : shapes_(shapes.begin(), shapes.end()) {
    for (const RopeShape& shape : shapes_) tables_.push_back(shape.table(ctx_size));
  }

  [[nodiscard]] const RopeTable& of(const RopeShape& shape) const {
    const auto found = std::find(shapes_.begin(), shapes_.end(), shape);
    FT_CHECK(found != shapes_.end());
    return tables_[found - shapes_.begin()];
  }

  [[nodiscard]] static size_t size_bytes(std::span<const RopeShape> shapes, int64_t ctx_size) {
    size_t bytes = 0;
    for (const RopeShape& shape : shapes) bytes += static_cast<size_t>(ctx_size * shape.dim) * sizeof(float);
    return bytes;
  }

 private:
  std::vector<RopeShape> shapes_;
  std::vector<RopeTable> tables_;
};

}  // namespace foretoken
