#include "engine/model/unread_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "engine/gguf/tensor_name.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "kernels/formats/weight_codec.h"

namespace foretoken {

namespace {

/// Tensors that no text depends on.
///   v. mm. a.          encoders of images and sound, for prompts that have them
///   mtp.               an MTP layer under the names of the original: drafts only, and --mtp says that there is none
///   output_extra.      a smaller head for drafts
///   .input_scale       how processors that compute with 4-bit activations round them
constexpr std::array<std::string_view, 4> kHarmlessPrefixes = {"v.", "mm.", "a.", "mtp."};
constexpr std::string_view kHarmlessName = "output_extra.weight";
constexpr std::string_view kHarmlessSuffix = ".input_scale";

/// What a tensor does, by a part of its name, and the value that does nothing. The first entry that fits.
struct Effect {
  std::string_view part;
  bool at_end;  // of the name; otherwise anywhere in it
  std::string_view text;
  std::optional<float> nothing;
};

constexpr std::array kEffects = {
    Effect{"exp_probs_b", false, "shifts which experts are chosen", 0.0f},
    Effect{"rope_freqs.weight", true, "stretches the rotations of attention", 1.0f},
    Effect{"rope_factors_", false, "stretches the rotations of attention", 1.0f},
    Effect{"attn_sinks", false, "takes a share of every attention's softmax", std::nullopt},
    Effect{".lora_", false, "belongs to an adapter", std::nullopt},
    Effect{".scale", true, "multiplies the weight of the same name", 1.0f},
    Effect{"_scale.weight", true, "multiplies what a layer computes", 1.0f},
    Effect{".bias", true, "is added to what the matrix of the same name computes", 0.0f},
    Effect{"_norm.weight", true, "normalises what a layer computes", std::nullopt},
};

// Values are looked at in tensors of up to so many: biases of every expert are the largest.
constexpr int64_t kMostValues = int64_t{1} << 22;

bool holds_only(const GgufTensor& tensor, float value) {
  if (!tensor.type() || tensor.num_values() > kMostValues) return false;
  std::vector<float> row(static_cast<size_t>(tensor.num_values()));
  // A tensor's rows follow each other without gaps, so all of it decodes as one.
  decode_row(*tensor.type(), tensor.data, tensor.num_values(), row.data());
  return std::all_of(row.begin(), row.end(), [&](float found) { return found == value; });
}

bool is_harmless(std::string_view name) {
  return name == kHarmlessName || name.ends_with(kHarmlessSuffix) ||
         std::any_of(kHarmlessPrefixes.begin(), kHarmlessPrefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

const Effect* find_effect(std::string_view name) {
  const auto found = std::find_if(kEffects.begin(), kEffects.end(), [&](const Effect& effect) {
    return effect.at_end ? name.ends_with(effect.part) : name.find(effect.part) != std::string_view::npos;
  });
  return found == kEffects.end() ? nullptr : &*found;
}

}  // namespace

std::vector<std::string> find_unread_tensors(const GgufFile& file, const ModelConfig& config,
                                             const std::set<std::string_view, std::less<>>& read) {
  std::vector<std::string> found;
  for (const GgufTensor& tensor : file.tensors()) {
    if (read.contains(tensor.name) || is_harmless(tensor.name)) continue;
    const Effect* effect = find_effect(tensor.name);
    if (effect != nullptr && effect->nothing && holds_only(tensor, *effect->nothing)) continue;
    const std::string what =
        effect != nullptr ? fmt::format("it {}, which is not supported for {}", effect->text, config.architecture)
                          : fmt::format("{} as this program knows it has no such tensor", config.architecture);
    found.push_back(fmt::format("{}: tensor {} (shape [{}]) would not be read: {}; without it the text would be wrong",
                                file.path_of(tensor), printable(tensor.name), fmt::join(tensor.shape, ", "), what));
  }
  return found;
}

void check_unread_tensors(const GgufFile& file, const ModelConfig& config,
                          const std::set<std::string_view, std::less<>>& read) {
  const std::vector<std::string> unread = find_unread_tensors(file, config, read);
  if (!unread.empty()) throw InputError(unread.front());
}

}  // namespace foretoken
