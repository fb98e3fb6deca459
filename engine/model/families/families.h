#pragma once

#include <array>
#include <string_view>
#include <tuple>

#include "engine/model/families/llama.h"
#include "engine/model/families/qwen35.h"
#include "engine/model/families/qwen3moe.h"
#include "kernels/base/error.h"

namespace foretoken {

/// The families that the program runs. A new one has a header and a source beside these, and an entry here.
using Families = std::tuple<Qwen35Moe, Qwen35, Qwen3Next, Qwen3Moe, Llama>;

inline constexpr auto kFamilies = std::apply(
    [](auto... family) { return std::array<const Family*, sizeof...(family)>{&decltype(family)::kFamily...}; },
    Families());

/// How a family computes, for one kind of pass.
template <class Pass>
struct FamilyText {
  using Matrix = typename Pass::Matrix;
  using Ids = typename Pass::Ids;
  using Hidden = typename Pass::Hidden;
  using Rows = typename Pass::Rows;

  void (*layer)(Pass&, const BasicLayerWeights<Matrix>&) = nullptr;
  // The MTP block in two steps: between them rows whose output nobody wants may be left behind.
  void (*mtp_take_in)(Pass&, const BasicMtpWeights<Matrix>&, const Ids&, const Hidden&) = nullptr;
  void (*mtp_finish)(Pass&, const BasicMtpWeights<Matrix>&, Rows&) = nullptr;

  /// REQUIRES: find_family(architecture) knows it.
  [[nodiscard]] static FamilyText of(std::string_view architecture) {
    FamilyText text;
    std::apply([&](auto... family) { (take(family, architecture, text), ...); }, Families());
    FT_CHECK(text.layer != nullptr);
    return text;
  }

  /// The trunk: rows of `ids` through all layers, `to` after the final norm.
  void trunk(Pass& pass, const BasicModelWeights<Matrix>& weights, const Ids& ids, Rows& to) const {
    pass.embed(weights.embed, ids);
    for (const BasicLayerWeights<Matrix>& weights_of_layer : weights.layers) layer(pass, weights_of_layer);
    pass.norm_to(weights.output_norm, pass.inputs_of(weights.head), to);
  }

 private:
  template <class Text>
  static void take(Text, std::string_view architecture, FamilyText& to) {
    if (Text::kFamily.architecture != architecture) return;
    to.layer = &Text::template layer<Pass>;
    to.mtp_take_in = &Text::Mtp::template take_in<Pass>;
    to.mtp_finish = &Text::Mtp::template finish<Pass>;
  }
};

}  // namespace foretoken
