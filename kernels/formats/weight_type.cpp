#include "kernels/formats/weight_type.h"

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr std::array kTypes = {
    WeightTypeInfo{WeightType::kF32, "F32", 1, 4, 0},
    WeightTypeInfo{WeightType::kF16, "F16", 1, 2, 0},
    WeightTypeInfo{WeightType::kQ4_0, "Q4_0", 32, 18, 32},
    WeightTypeInfo{WeightType::kQ4_1, "Q4_1", 32, 20, 32},
    WeightTypeInfo{WeightType::kQ5_0, "Q5_0", 32, 22, 32},
    WeightTypeInfo{WeightType::kQ5_1, "Q5_1", 32, 24, 32},
    WeightTypeInfo{WeightType::kQ8_0, "Q8_0", 32, 34, 32},
    WeightTypeInfo{WeightType::kQ2_K, "Q2_K", 256, 84, 256},
    WeightTypeInfo{WeightType::kQ3_K, "Q3_K", 256, 110, 256},
    WeightTypeInfo{WeightType::kQ4_K, "Q4_K", 256, 144, 256},
    WeightTypeInfo{WeightType::kQ5_K, "Q5_K", 256, 176, 256},
    WeightTypeInfo{WeightType::kQ6_K, "Q6_K", 256, 210, 256},
    WeightTypeInfo{WeightType::kIQ4_NL, "IQ4_NL", 32, 18, 32},
    WeightTypeInfo{WeightType::kIQ4_XS, "IQ4_XS", 256, 136, 256},
    WeightTypeInfo{WeightType::kBF16, "BF16", 1, 2, 0},
    WeightTypeInfo{WeightType::kTQ1_0, "TQ1_0", 256, 54, 256},
    WeightTypeInfo{WeightType::kTQ2_0, "TQ2_0", 256, 66, 256},
    WeightTypeInfo{WeightType::kMXFP4, "MXFP4", 32, 17, 32},
    WeightTypeInfo{WeightType::kNVFP4, "NVFP4", 64, 36, 32},
    WeightTypeInfo{WeightType::kQ1_0, "Q1_0", 128, 18, 32},
    WeightTypeInfo{WeightType::kQ2_0, "Q2_0", 64, 18, 32},
    WeightTypeInfo{WeightType::kIQ3_S, "IQ3_S", 256, 110, 256},
    WeightTypeInfo{WeightType::kIQ3_XXS, "IQ3_XXS", 256, 98, 256},
    WeightTypeInfo{WeightType::kIQ2_S, "IQ2_S", 256, 82, 256},
    WeightTypeInfo{WeightType::kIQ2_XS, "IQ2_XS", 256, 74, 256},
    WeightTypeInfo{WeightType::kIQ2_XXS, "IQ2_XXS", 256, 66, 256},
    WeightTypeInfo{WeightType::kIQ1_S, "IQ1_S", 256, 50, 256},
    WeightTypeInfo{WeightType::kIQ1_M, "IQ1_M", 256, 56, 256},
};

// Every id that ggml has given out, so that an error can say what a file holds; those from Q4_2 to IQ4_NL_8_8 that no
// reader knows any more are among them.
constexpr std::array<std::string_view, 43> kGgufNames = {
    "F32",        "F16",        "Q4_0",       "Q4_1",  "Q4_2",     "Q4_3",     "Q5_0",     "Q5_1",    "Q8_0",
    "Q8_1",       "Q2_K",       "Q3_K",       "Q4_K",  "Q5_K",     "Q6_K",     "Q8_K",     "IQ2_XXS", "IQ2_XS",
    "IQ3_XXS",    "IQ1_S",      "IQ4_NL",     "IQ3_S", "IQ2_S",    "IQ4_XS",   "I8",       "I16",     "I32",
    "I64",        "F64",        "IQ1_M",      "BF16",  "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0",
    "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4",    "Q1_0",     "Q2_0"};

struct ForkName {
  uint32_t id;
  std::string_view name;
};

// Ids that ik_llama.cpp has given out beside ggml's.
constexpr std::array kForkNames = {
    ForkName{133, "Q6_0"},       ForkName{134, "IQ1_BN"},    ForkName{135, "IQ2_BN"},     ForkName{136, "Q8_K64"},
    ForkName{137, "IQ2_K"},      ForkName{138, "IQ3_K"},     ForkName{139, "IQ4_K"},      ForkName{140, "IQ5_K"},
    ForkName{141, "IQ6_K"},      ForkName{142, "IQ2_TN"},    ForkName{143, "IQ1_TN"},     ForkName{144, "IQ4_KS"},
    ForkName{145, "IQ2_KS"},     ForkName{146, "IQ4_KSS"},   ForkName{147, "Q8_K16"},     ForkName{148, "Q8_K32"},
    ForkName{149, "Q8_KR8"},     ForkName{150, "Q8_K128"},   ForkName{151, "Q8_KV"},      ForkName{152, "IQ5_KS"},
    ForkName{153, "IQ2_KT"},     ForkName{154, "IQ3_KT"},    ForkName{155, "IQ4_KT"},     ForkName{156, "IQ3_KS"},
    ForkName{157, "IQ2_KL"},     ForkName{158, "IQ1_KT"},    ForkName{202, "Q4_0_R8"},    ForkName{206, "Q5_0_R4"},
    ForkName{208, "Q8_0_R8"},    ForkName{210, "Q2_K_R4"},   ForkName{211, "Q3_K_R4"},    ForkName{212, "Q4_K_R4"},
    ForkName{213, "Q5_K_R4"},    ForkName{214, "Q6_K_R4"},   ForkName{216, "IQ2_XXS_R4"}, ForkName{217, "IQ2_XS_R4"},
    ForkName{218, "IQ3_XXS_R4"}, ForkName{219, "IQ1_S_R4"},  ForkName{220, "IQ4_NL_R4"},  ForkName{221, "IQ3_S_R4"},
    ForkName{222, "IQ2_S_R4"},   ForkName{223, "IQ4_XS_R8"}, ForkName{229, "IQ1_M_R4"},   ForkName{230, "BF16_R16"},
    ForkName{233, "Q6_0_R4"},    ForkName{335, "IQ2_BN_R4"}, ForkName{337, "IQ2_K_R4"},   ForkName{338, "IQ3_K_R4"},
    ForkName{339, "IQ4_K_R4"},   ForkName{340, "IQ5_K_R4"},  ForkName{344, "IQ4_KS_R4"},  ForkName{352, "IQ5_KS_R4"},
    ForkName{398, "Q8_KV_R8"},   ForkName{399, "Q8_K_R8"},
};

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool same_name(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (lower(a[i]) != lower(b[i])) return false;
  }
  return true;
}

}  // namespace

const WeightTypeInfo& weight_type_info(WeightType type) {
  // Kernels ask this once a call, so the answer is a table look-up; ids without a type hold -1.
  static constexpr auto kIndex = [] {
    std::array<int8_t, kGgufNames.size()> index{};
    index.fill(-1);
    for (size_t i = 0; i < kTypes.size(); ++i) index[static_cast<size_t>(kTypes[i].type)] = static_cast<int8_t>(i);
    return index;
  }();
  const auto id = static_cast<uint32_t>(type);
  FT_CHECK(id < kIndex.size() && kIndex[id] >= 0);
  return kTypes[kIndex[id]];
}

int interleaved_block_bytes(WeightType type) {
  switch (type) {
    case WeightType::kIQ3_S:
    case WeightType::kIQ3_XXS:
      return 134;
    case WeightType::kIQ2_S:
    case WeightType::kIQ2_XS:
      return 106;
    case WeightType::kIQ2_XXS:
      return 102;
    case WeightType::kIQ1_S:
      return 70;
    case WeightType::kIQ1_M:
      return 78;
    default:
      return weight_type_info(type).block_bytes;
  }
}

std::optional<WeightType> weight_type_from_id(uint32_t id) {
  for (const WeightTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == id) return info.type;
  }
  return std::nullopt;
}

std::string_view gguf_type_name(uint32_t id) {
  if (id < kGgufNames.size()) return kGgufNames[id];
  // The view must outlive the call; a file with an unknown id is refused, so only a few strings are ever kept.
  static std::mutex mutex;
  static std::map<uint32_t, std::string> unknown;
  const std::lock_guard lock(mutex);
  const auto found = unknown.find(id);
  if (found != unknown.end()) return found->second;
  std::string name = "type " + std::to_string(id);
  for (const ForkName& fork : kForkNames) {
    if (fork.id == id) name = std::string(fork.name) + " of ik_llama.cpp";
  }
  return unknown.emplace(id, std::move(name)).first->second;
}

std::optional<WeightType> weight_type_from_name(std::string_view name) {
  for (const WeightTypeInfo& info : kTypes) {
    if (same_name(info.name, name)) return info.type;
  }
  return std::nullopt;
}

std::span<const WeightTypeInfo> all_weight_types() {
  return kTypes;
}

}  // namespace foretoken
