#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace foretoken {

/// Types a weight tensor can have, with the ids of the GGUF format (ggml's `enum ggml_type`).
enum class WeightType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
};

struct WeightTypeInfo {
  WeightType type;
  std::string_view name;  // "Q4_K"
  int block_size;         // weights in one block: 1, 32, 64, 128 or 256
  int block_bytes;        // bytes of one block in a file
  int activation_block;   // values that share one int8 scale in the row it meets: 0 (the row stays float), 32 or 256
  [[nodiscard]] constexpr bool is_float() const { return activation_block == 0; }
  /// Blocks of a row that one block of weights meets: 1, but 2 or 4 for blocks of 64 or 128 weights.
  [[nodiscard]] constexpr int num_parts() const { return is_float() ? 1 : block_size / activation_block; }
};

/// REQUIRES: `type` is one of the enumerators.
[[nodiscard]] const WeightTypeInfo& weight_type_info(WeightType type);

/// Bytes that a block takes in an interleaved matrix (interleave.h): those of the file, but for types with a grid, of which
/// that layout holds levels. REQUIRES: `type` is quantised.
[[nodiscard]] int interleaved_block_bytes(WeightType type);

/// The supported type with this GGUF id, or nothing.
[[nodiscard]] std::optional<WeightType> weight_type_from_id(uint32_t id);

/// Name of any GGUF type id, supported or not: "IQ2_XXS"; "IQ2_K of ik_llama.cpp" for the ids of that fork; "type 99" for
/// ids that nobody has given out.
[[nodiscard]] std::string_view gguf_type_name(uint32_t id);

/// The supported type with this name, any case ("q4_k"), or nothing.
[[nodiscard]] std::optional<WeightType> weight_type_from_name(std::string_view name);

/// All supported types.
[[nodiscard]] std::span<const WeightTypeInfo> all_weight_types();

}  // namespace foretoken
