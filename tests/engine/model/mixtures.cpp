#include "tests/engine/model/mixtures.h"

namespace foretoken::test {

namespace {

using Rules = std::vector<std::pair<std::string, std::string>>;

// What models of eight experts get beside the type of the name.
Rules with_attention(Rules rules) {
  rules.insert(rules.end(), {{"attn_k.", "Q8_0"}, {"attn_v.", "Q8_0"}, {"attn_output", "Q5_K"}});
  return rules;
}

}  // namespace

const std::vector<Mixture>& mixtures() {
  static const std::vector<Mixture> all = {
      {"F32", "F32", {}},
      {"F16", "F16", {}},
      {"BF16", "BF16", {}},
      {"Q4_0", "Q4_0", {{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q4_1"}}},
      {"Q4_1", "Q4_1", {{"^output.", "Q6_K"}}},
      {"Q5_0", "Q5_0", {{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q5_1"}}},
      {"Q5_1", "Q5_1", {{"^output.", "Q6_K"}}},
      {"Q8_0", "Q8_0", {}},
      {"Q2_K", "Q2_K", with_attention({{"^output.", "Q6_K"}, {"ffn_down", "Q3_K"}})},
      {"Q2_K_S", "Q2_K", {{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q4_K"}, {"attn_v.", "Q8_0"}}},
      {"Q3_K_S", "Q3_K", with_attention({{"^output.", "Q6_K"}})},
      {"Q3_K_M", "Q3_K",
       with_attention({{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q5_K"}, {"ffn_down", "Q4_K"}, {"attn_qkv", "Q4_K"}})},
      {"Q3_K_L", "Q3_K", with_attention({{"^output.", "Q6_K"}, {"ffn_down", "Q5_K"}, {"attn_qkv", "Q4_K"}})},
      {"Q4_K_S", "Q4_K", with_attention({{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q5_K"}})},
      {"Q4_K_M", "Q4_K", with_attention({{"^output.", "Q6_K"}, {"ffn_down", "Q6_K"}, {"attn_qkv", "Q5_K"}})},
      {"Q5_K_S", "Q5_K", {{"^output.", "Q6_K"}, {"attn_v.", "Q8_0"}, {"attn_k.", "Q8_0"}}},
      {"Q5_K_M",
       "Q5_K",
       {{"^output.", "Q6_K"}, {"ffn_down", "Q6_K"}, {"attn_qkv", "Q6_K"}, {"attn_v.", "Q8_0"}, {"attn_k.", "Q8_0"}}},
      {"Q6_K", "Q6_K", {{"attn_v.", "Q8_0"}, {"attn_k.", "Q8_0"}}},
      {"IQ4_NL", "IQ4_NL", with_attention({{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q5_K"}})},
      {"IQ4_XS", "IQ4_XS", with_attention({{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q5_K"}})},
      {"MXFP4_MOE", "Q8_0", {{"_exps", "MXFP4"}}},
      {"IQ3_M", "IQ3_S", with_attention({{"^output.", "Q6_K"}, {"blk.0.ffn_down", "Q4_K"}, {"attn_qkv", "Q4_K"}})},
      {"IQ3_S", "IQ3_S", with_attention({{"^output.", "Q6_K"}})},
      {"IQ3_XS", "IQ3_S",
       with_attention(
           {{"^output.", "Q6_K"}, {"attn_q.", "IQ3_XXS"}, {"ffn_gate_exps", "IQ3_XXS"}, {"ffn_up_exps", "IQ3_XXS"}})},
      {"IQ3_XXS", "IQ3_XXS",
       with_attention({{"^output.", "Q5_K"}, {"token_embd", "IQ3_S"}, {"attn_q.", "IQ2_S"}, {"ffn_down", "Q3_K"}})},
      {"IQ2_M", "IQ2_S", with_attention({{"^output.", "Q5_K"}, {"token_embd", "IQ3_S"}, {"blk.0.ffn_down", "IQ3_S"}})},
      {"IQ2_S", "IQ2_XS", with_attention({{"^output.", "Q5_K"}, {"token_embd", "IQ3_S"}, {"blk.0.ffn_down", "IQ3_S"}})},
      {"IQ2_XS", "IQ2_XS", with_attention({{"^output.", "Q5_K"}, {"token_embd", "Q2_K"}, {"blk.0.ffn_down", "Q2_K"}})},
      {"IQ2_XXS", "IQ2_XXS",
       with_attention({{"^output.", "Q5_K"}, {"token_embd", "Q2_K"}, {"blk.0.ffn_down", "Q2_K"}})},
      {"IQ1_M",
       "IQ1_M",
       {{"^output.", "Q5_K"}, {"token_embd", "Q2_K"}, {"attn_v.", "Q4_K"}, {"attn_output", "IQ2_XXS"}}},
      {"IQ1_S",
       "IQ1_S",
       {{"^output.", "Q5_K"}, {"token_embd", "Q2_K"}, {"attn_v.", "Q4_K"}, {"attn_output", "IQ2_XXS"}}},
      {"TQ1_0", "TQ1_0", {{"^output.", "Q6_K"}, {"token_embd", "Q4_K"}}},
      {"TQ2_0", "TQ2_0", {{"^output.", "Q6_K"}, {"token_embd", "Q4_K"}}},
      {"Q1_0", "Q1_0", {{"^output.", "Q6_K"}}},
      {"Q2_0", "Q2_0", {{"^output.", "Q6_K"}, {"token_embd", "Q4_K"}}},
      {"NVFP4", "NVFP4", {{"^output.", "Q8_0"}, {"token_embd", "BF16"}}, /*scales=*/true},
      // As people publish them.
      {"UD-IQ4_XS", "Q8_0", {{"ffn_gate_exps", "IQ3_S"}, {"ffn_up_exps", "IQ3_S"}, {"ffn_down_exps", "IQ4_NL"}}},
      {"UD-IQ3_S", "Q6_K", {{"ffn_gate_exps", "IQ3_XXS"}, {"ffn_up_exps", "IQ3_XXS"}, {"ffn_down_exps", "IQ3_S"}}},
      {"UD-Q4_K_XL", "Q8_0", {{"ffn_gate_exps", "Q4_K"}, {"ffn_up_exps", "Q4_K"}, {"ffn_down_exps", "Q5_1"}}},
      {"UD-Q5_K_XL", "Q5_K", {{"attn", "Q8_0"}, {"ffn_down_exps", "Q8_0"}}},
      {"UD-Q6_K_XL", "Q6_K", {{"attn", "Q8_0"}, {"ffn_down_exps", "Q8_0"}}},
      {"UD-Q2_0", "Q8_0", {{"ffn_gate_exps", "Q2_0"}, {"ffn_up_exps", "Q2_0"}, {"ffn_down_exps", "IQ4_NL"}}},
      {"F16 routers", "Q4_K", {{"ffn_gate_inp", "F16"}, {"attn", "Q8_0"}}},
      {"BF16 routers", "Q4_K", {{"ffn_gate_inp", "BF16"}, {"attn", "Q8_0"}}},
      {"MTP layer in Q4_0", "Q6_K", {{"blk.2.", "Q4_0"}}},
      {"MTP layer in BF16", "Q4_K", {{"blk.2.", "BF16"}}},
      {"MTP layer in F16", "Q4_K", {{"blk.2.", "F16"}}},
      {"F16 eh_proj", "Q4_K", {{"eh_proj", "F16"}}},
      // Rows that are no multiples of 256: the next smaller type with blocks of 32.
      {"Q4_K_M, rows of 96", "Q4_K",
       with_attention({{"^output.", "Q6_K"}, {"blk.0.ffn_down_exps", "Q8_0"}, {"ffn_down_exps", "Q5_0"}}),
       /*scales=*/false,
       /*expert_dim=*/96},
      {"IQ4_XS, rows of 96", "IQ4_XS", {{"ffn_down_exps", "IQ4_NL"}}, /*scales=*/false, /*expert_dim=*/96},
      {"Q2_0, rows of 192", "Q2_0", {{"^output.", "Q6_K"}}, /*scales=*/false, /*expert_dim=*/192},
      {"NVFP4, rows of 192", "NVFP4", {}, /*scales=*/true, /*expert_dim=*/192},
  };
  return all;
}

std::vector<std::string> unsupported_types(const Mixture& mixture) {
  std::vector<std::string> found;
  const auto look_at = [&](const std::string& type) {
    if (!weight_type_from_name(type)) found.push_back(type);
  };
  look_at(mixture.type);
  for (const auto& [part, type] : mixture.rules) look_at(type);
  return found;
}

RandomModel model_of(const Mixture& mixture) {
  RandomModel spec;
  spec.expert_dim = mixture.expert_dim;
  spec.scales = mixture.scales;
  spec.types = {*weight_type_from_name(mixture.type)};
  for (const auto& [part, type] : mixture.rules) spec.rules.emplace_back(part, *weight_type_from_name(type));
  return spec;
}

}  // namespace foretoken::test
