#include "engine/model/families/family.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/model/families/families.h"
#include "engine/text/utf8.h"

namespace foretoken {

const Family* find_family(std::string_view architecture) {
  const auto found = std::find_if(kFamilies.begin(), kFamilies.end(),
                                  [&](const Family* family) { return family->architecture == architecture; });
  return found == kFamilies.end() ? nullptr : *found;
}

std::string family_names() {
  std::string names;
  for (size_t i = 0; i < kFamilies.size(); ++i) {
    if (i > 0) names += i + 1 == kFamilies.size() ? " and " : ", ";
    names += kFamilies[i]->architecture;
  }
  return names;
}

namespace {

double read_positive(const Metadata& keys, std::string_view key, double fallback) {
  const double value = keys.number(key, fallback);
  if (!(value > 0)) keys.fail(key, fmt::format("{} is not positive", value));
  return value;
}

// As llama.cpp reads them: a factor without a type scales linearly, type none scales never, a factor of 0 means 1.
RopeScaling read_rope_scaling(const Metadata& keys, const ModelConfig& c) {
  const std::string type = keys.text("rope.scaling.type", "linear");
  if (type != "none" && type != "linear" && type != "yarn")
    keys.fail("rope.scaling.type", fmt::format("'{}' is not supported; none, linear and yarn are", printable(type)));
  double factor = 1;
  for (const std::string_view key : {"rope.scale_linear", "rope.scaling.factor"}) {
    const double found = keys.number(key, 0);
    if (found < 0) keys.fail(key, fmt::format("{} is negative", found));
    if (found > 0) factor = found;
  }
  RopeScaling scaling;
  const double magnitude = read_positive(keys, "rope.scaling.attn_factor", 1);
  const double own_magnitude = read_positive(keys, "rope.scaling.yarn_attn_factor", 1);
  scaling.first_context =
      read_positive(keys, "rope.scaling.original_context_length", static_cast<double>(c.context_length));
  scaling.beta_fast = read_positive(keys, "rope.scaling.yarn_beta_fast", scaling.beta_fast);
  scaling.beta_slow = read_positive(keys, "rope.scaling.yarn_beta_slow", scaling.beta_slow);
  const double extrapolation = keys.number("rope.scaling.yarn_ext_factor", -1);  // negative: not set
  scaling.factor = type == "none" ? 1 : factor;
  scaling.yarn = type == "yarn" && factor != 1;
  scaling.extrapolation = extrapolation < 0 ? 1 : extrapolation;
  scaling.magnitude = magnitude;
  if (type == "yarn" && scaling.extrapolation != 0) {
    // YaRN 3.4: attention over more positions is sharpened; queries and keys each carry the root of it.
    if (factor > 1) scaling.magnitude *= 1 + 0.1 * std::log(factor);
  } else {
    scaling.magnitude *= own_magnitude;
  }
  return scaling;
}

}  // namespace

void read_attention(const Metadata& keys, ModelConfig& c) {
  c.num_heads = static_cast<int>(keys.uniform("attention.head_count", 1, ModelConfig::kMaxHeads));
  c.num_kv_heads = keys.has("attention.head_count_kv")
                       ? static_cast<int>(keys.uniform("attention.head_count_kv", 1, ModelConfig::kMaxHeads))
                       : c.num_heads;
  if (c.num_heads % c.num_kv_heads != 0) {
    keys.fail("attention.head_count_kv",
              fmt::format("{} does not divide attention.head_count {}", c.num_kv_heads, c.num_heads));
  }
  c.head_dim = static_cast<int>(keys.integer("attention.key_length", 2, 65536, c.hidden_dim / c.num_heads));
  const int64_t value_length = keys.integer("attention.value_length", 2, 65536, c.head_dim);
  if (value_length != c.head_dim) {
    keys.fail("attention.value_length",
              fmt::format("{} differs from attention.key_length {}; they must be equal", value_length, c.head_dim));
  }
  c.rope_dim = static_cast<int>(keys.integer("rope.dimension_count", 2, c.head_dim, c.head_dim));
  if (c.rope_dim % 2 != 0)
    keys.fail("rope.dimension_count", fmt::format("{} is odd; rotations take pairs", c.rope_dim));
  c.rope_base = keys.number("rope.freq_base", 10000.0);
  if (!(c.rope_base > 0)) keys.fail("rope.freq_base", fmt::format("{} is not positive", c.rope_base));
  c.rope_scaling = read_rope_scaling(keys, c);
}

void read_dense_feed_forward(const Metadata& keys, ModelConfig& c) {
  c.dense_dim = keys.integer("feed_forward_length", 1, ModelConfig::kMaxDim);
}

void read_experts(const Metadata& keys, ModelConfig& c) {
  c.num_experts = static_cast<int>(keys.integer("expert_count", 1, ModelConfig::kMaxExperts));
  c.experts_per_token = static_cast<int>(keys.integer("expert_used_count", 1, c.num_experts));
  if (keys.has("expert_feed_forward_length")) {
    c.expert_dim = keys.uniform("expert_feed_forward_length", 1, ModelConfig::kMaxDim);
  } else {
    c.expert_dim = keys.integer("feed_forward_length", 1, ModelConfig::kMaxDim) / c.experts_per_token;
  }
}

void declare_attention(WeightLoader& load, const ModelConfig& c, const std::string& block, HeadNorms norms,
                       LayerWeights& layer) {
  AttentionWeights& to = layer.mixer.emplace<AttentionWeights>();
  const AttentionShape& shape = to.shape = {c.num_heads,
                                            c.num_kv_heads,
                                            c.head_dim,
                                            c.gated_attention,
                                            {c.rope_dim, c.rope_base, c.rope_pairs, c.rope_scaling}};
  if (load.has(block + "attn_qkv.weight")) {
    load.matrices(block + "attn_qkv.weight", c.hidden_dim,
                  {{shape.q_rows(), &to.q}, {shape.kv_dim(), &to.k}, {shape.kv_dim(), &to.v}});
  } else {
    load.matrix(block + "attn_q.weight", shape.q_rows(), c.hidden_dim, to.q);
    load.matrix(block + "attn_k.weight", shape.kv_dim(), c.hidden_dim, to.k);
    load.matrix(block + "attn_v.weight", shape.kv_dim(), c.hidden_dim, to.v);
  }
  if (load.has(block + "attn_qkv.bias")) {
    load.vectors(block + "attn_qkv.bias",
                 {{shape.q_rows(), &to.q_bias}, {shape.kv_dim(), &to.k_bias}, {shape.kv_dim(), &to.v_bias}});
  } else {
    if (load.has(block + "attn_q.bias")) load.vector(block + "attn_q.bias", shape.q_rows(), to.q_bias);
    if (load.has(block + "attn_k.bias")) load.vector(block + "attn_k.bias", shape.kv_dim(), to.k_bias);
    if (load.has(block + "attn_v.bias")) load.vector(block + "attn_v.bias", shape.kv_dim(), to.v_bias);
  }
  load.matrix(block + "attn_output.weight", c.hidden_dim, shape.query_dim(), to.output);
  if (norms == HeadNorms::kNone) return;
  load.vector(block + "attn_q_norm.weight", c.head_dim, to.q_norm);
  load.vector(block + "attn_k_norm.weight", c.head_dim, to.k_norm);
}

void declare_experts(WeightLoader& load, const ModelConfig& c, const std::string& block, LayerWeights& layer) {
  MoeWeights& to = layer.feed_forward.emplace<MoeWeights>();
  const int64_t experts = c.num_experts, dim = c.expert_dim;
  to.num_experts = to.capacity = c.num_experts;
  to.top_k = c.experts_per_token;
  load.matrix(block + "ffn_gate_inp.weight", experts, c.hidden_dim, to.router);
  if (load.has(block + "ffn_gate_up_exps.weight")) {
    load.expert_matrices(block + "ffn_gate_up_exps.weight", experts, dim, c.hidden_dim, {&to.gate, &to.up});
  } else {
    load.expert_matrices(block + "ffn_gate_exps.weight", experts, dim, c.hidden_dim, {&to.gate});
    load.expert_matrices(block + "ffn_up_exps.weight", experts, dim, c.hidden_dim, {&to.up});
  }
  load.expert_matrices(block + "ffn_down_exps.weight", experts, c.hidden_dim, dim, {&to.down});
  if (c.shared_expert_dim == 0) return;
  load.matrix(block + "ffn_gate_shexp.weight", c.shared_expert_dim, c.hidden_dim, to.shared.gate);
  load.matrix(block + "ffn_up_shexp.weight", c.shared_expert_dim, c.hidden_dim, to.shared.up);
  load.matrix(block + "ffn_down_shexp.weight", c.hidden_dim, c.shared_expert_dim, to.shared.down);
  load.vector(block + "ffn_gate_inp_shexp.weight", c.hidden_dim, to.shared_router);
}

void declare_dense_feed_forward(WeightLoader& load, const ModelConfig& c, const std::string& block,
                                LayerWeights& layer) {
  DenseWeights& to = layer.feed_forward.emplace<DenseWeights>();
  load.matrix(block + "ffn_gate.weight", c.dense_dim, c.hidden_dim, to.gate);
  load.matrix(block + "ffn_up.weight", c.dense_dim, c.hidden_dim, to.up);
  load.matrix(block + "ffn_down.weight", c.hidden_dim, c.dense_dim, to.down);
}

void declare_mtp(WeightLoader& load, const Family& family, const ModelConfig& c, ModelWeights& w) {
  const std::string block = fmt::format("blk.{}.nextn.", c.num_layers);
  MtpWeights& to = w.mtp;
  family.declare_layer(load, c, c.num_layers, to.layer);
  load.matrix(block + "eh_proj.weight", c.hidden_dim, 2 * c.hidden_dim, to.join);
  load.vector(block + "enorm.weight", c.hidden_dim, to.embed_norm);
  load.vector(block + "hnorm.weight", c.hidden_dim, to.hidden_norm);
  const std::string head_norm = block + "shared_head_norm.weight";
  load.vector(load.has(head_norm) ? head_norm : "output_norm.weight", c.hidden_dim, to.head_norm);
  to.own_embed = load.has(block + "embed_tokens.weight");
  if (to.own_embed) {
    load.lookup(block + "embed_tokens.weight", c.vocab_size, c.hidden_dim, to.embed);
  } else {
    to.embed = w.embed;
  }
  to.own_head = load.has(block + "shared_head_head.weight");
  if (to.own_head) load.head(block + "shared_head_head.weight", c.vocab_size, c.hidden_dim, {&to.head});
}

}  // namespace foretoken
