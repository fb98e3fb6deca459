#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "engine/gguf/gguf.h"
#include "kernels/formats/weight_type.h"

namespace foretoken::requantise {

/// What a matrix is for, by its name. Everything of an MTP layer is kMtp, but for a head of its own.
enum class Role { kHead, kEmbedding, kExperts, kExpertsDown, kFeedForward, kAttention, kDeltaNet, kMtp, kRouter };
inline constexpr int kNumRoles = 9;

/// Which types a file's matrices get.
struct TypeRules {
  std::optional<WeightType> all;  // of matrices without a rule; nothing: they stay as they are
  std::array<std::optional<WeightType>, kNumRoles> roles;
  /// A head of this type for drafts alone: a copy of the head as the MTP layer's own.
  std::optional<WeightType> draft_head;

  [[nodiscard]] std::optional<WeightType>& operator[](Role role) { return roles[static_cast<size_t>(role)]; }
  [[nodiscard]] const std::optional<WeightType>& operator[](Role role) const {
    return roles[static_cast<size_t>(role)];
  }
};

/// The role of a matrix; nothing for what is never quantised: vectors, norms, convolutions, biases and scales.
[[nodiscard]] std::optional<Role> find_role(const GgufFile& file, const GgufTensor& tensor);

/// `wanted`, or where its blocks do not divide rows of `row_values` the type that takes its place: with blocks of 32, or
/// F16.
[[nodiscard]] WeightType fitting_type(WeightType wanted, int64_t row_values);

struct Report {
  struct Sum {
    int num_tensors = 0;
    size_t bytes = 0;
  };
  size_t bytes_before = 0, bytes_after = 0;       // whole files
  std::map<std::string_view, Sum> before, after;  // by type
  std::map<std::pair<WeightType, WeightType>, int>
      replaced;  // matrices by the type that was wanted and the one they got
};

/// Writes `file` again as `out`, as GgufWriter writes: metadata as it is but for what says how the file was split and
/// quantised, a matrix whose type stays byte for byte. Throws InputError for a matrix that cannot be read, and for a draft
/// head without an MTP layer.
[[nodiscard]] Report write_requantised(const GgufFile& file, const std::string& out, const TypeRules& rules,
                                       const std::function<void(size_t done, size_t all)>& progress = {});

}  // namespace foretoken::requantise
