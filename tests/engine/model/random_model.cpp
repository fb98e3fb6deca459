#include "tests/engine/model/random_model.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "kernels/base/error.h"
#include "kernels/formats/weight_codec.h"

namespace foretoken::test {

namespace {

/// SplitMix64 (Steele et al. 2014), and a normal distribution as near as four uniform values come to it: exact
/// arithmetic, so every machine draws the same weights, which std::normal_distribution does not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53; }
  double normal() {
    double sum = -2;
    for (int i = 0; i < 4; ++i) sum += uniform();
    return sum * 1.7320508075688772;  // a uniform value has variance 1/12
  }

 private:
  uint64_t state_;
};

void append_utf8(uint32_t code_point, std::string& text) {  // below U+0800
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else {
    text += static_cast<char>(0xc0 | (code_point >> 6));
    text += static_cast<char>(0x80 | (code_point & 0x3f));
  }
}

/// The 256 byte tokens as GPT-2 spells them (printable bytes as themselves, the others from U+0100 on), three merges,
/// three control tokens, then words that no merge reaches.
void add_vocabulary(int64_t size, GgufEdit& to) {
  std::vector<std::string> tokens;
  std::vector<int64_t> kinds;
  const auto add = [&](std::string token, int64_t kind) {
    tokens.push_back(std::move(token));
    kinds.push_back(kind);
  };
  uint32_t next_shifted = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    std::string token;
    append_utf8(printable ? byte : next_shifted++, token);
    add(std::move(token), 1);
  }
  for (const char* merged : {"th", "he", "in"}) add(merged, 1);
  for (const char* control : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) add(control, 3);
  FT_CHECK(static_cast<size_t>(size) >= tokens.size());
  for (int i = 0; tokens.size() < static_cast<size_t>(size); ++i) add(fmt::format("w{}", i), 1);
  to.set_string("tokenizer.ggml.model", "gpt2");
  to.set_string("tokenizer.ggml.pre", "qwen2");
  to.set_strings("tokenizer.ggml.tokens", tokens);
  to.set_int32s("tokenizer.ggml.token_type", kinds);
  to.set_strings("tokenizer.ggml.merges", {"t h", "h e", "i n"});
  to.set_uint32("tokenizer.ggml.eos_token_id", 261);
  to.set_bool("tokenizer.ggml.add_bos_token", false);
}

class Builder {
 public:
  explicit Builder(const RandomModel& model) : m_(model), random_(model.seed) {}

  GgufEdit build() {
    add_keys();
    add_vocabulary(m_.vocab_size, out_);
    matrix("token_embd.weight", {m_.hidden_dim, m_.vocab_size}, 1.0);
    vector("output_norm.weight", m_.hidden_dim, 1.0, 0.05);
    if (!m_.tied_head) matrix("output.weight", {m_.hidden_dim, m_.vocab_size});
    if (m_.scales && m_.tied_head) scale("output.scale", 1);
    for (int i = 0; i < m_.num_layers; ++i) add_layer(i, hybrid() && (i + 1) % m_.attention_interval != 0);
    if (has_mtp()) add_mtp();
    return std::move(out_);
  }

 private:
  [[nodiscard]] bool llama() const { return m_.architecture == "llama"; }
  [[nodiscard]] bool next() const { return m_.architecture == "qwen3next"; }
  [[nodiscard]] bool hybrid() const { return m_.architecture != "qwen3moe" && !llama(); }
  [[nodiscard]] bool routed() const { return m_.architecture != "qwen35" && !llama(); }
  [[nodiscard]] bool has_mtp() const { return hybrid() && m_.mtp; }

  void key(const char* name, int64_t value) {
    out_.set_uint32(m_.architecture + "." + name, static_cast<uint32_t>(value));
  }

  void add_keys() {
    out_.set_string("general.architecture", m_.architecture);
    key("block_count", m_.num_layers + (has_mtp() ? 1 : 0));
    key("context_length", m_.context_length);
    key("embedding_length", m_.hidden_dim);
    key("attention.head_count", m_.num_heads);
    key("attention.head_count_kv", m_.num_kv_heads);
    key("attention.key_length", m_.head_dim);
    key("attention.value_length", m_.head_dim);
    out_.set_float32(m_.architecture + ".attention.layer_norm_rms_epsilon", 1e-6f);
    out_.set_float32(m_.architecture + ".rope.freq_base", 10000.0f);
    if (routed()) {
      key("expert_count", m_.num_experts);
      key("expert_used_count", m_.experts_per_token);
      key("expert_feed_forward_length", m_.expert_dim);
    } else {
      key("feed_forward_length", m_.shared_dim);
    }
    if (llama()) key("rope.dimension_count", m_.head_dim);
    if (!hybrid()) return;
    if (routed()) key("expert_shared_feed_forward_length", m_.shared_dim);
    key("rope.dimension_count", m_.rope_dim);
    const int64_t third = (m_.rope_dim / 2 + 2) / 3;
    if (!next())
      out_.set_int32s(m_.architecture + ".rope.dimension_sections", {third, third, m_.rope_dim / 2 - 2 * third, 0});
    key("ssm.conv_kernel", m_.conv_taps);
    key("ssm.state_size", m_.state_size);
    key("ssm.group_count", m_.num_key_heads);
    key("ssm.time_step_rank", m_.num_value_heads);
    key("ssm.inner_size", int64_t{m_.state_size} * m_.num_value_heads);
    key("full_attention_interval", m_.attention_interval);
    if (has_mtp()) key("nextn_predict_layers", 1);
  }

  void add_layer(int index, bool recurrent) {
    block_ = fmt::format("blk.{}.", index);
    vector(block_ + "attn_norm.weight", m_.hidden_dim, 1.0, 0.05);
    vector(block_ + (hybrid() ? "post_attention_norm.weight" : "ffn_norm.weight"), m_.hidden_dim, 1.0, 0.05);
    recurrent ? add_delta_net() : add_attention();
    if (routed()) {
      add_experts();
    } else {
      add_swiglu("");
    }
  }

  void add_attention() {
    const int64_t q_dim = int64_t{m_.num_heads} * m_.head_dim, kv_dim = int64_t{m_.num_kv_heads} * m_.head_dim;
    const int64_t q_rows = hybrid() ? 2 * q_dim : q_dim;
    if (m_.fused_qkv) {
      matrix(block_ + "attn_qkv.weight", {m_.hidden_dim, q_rows + 2 * kv_dim});
    } else {
      matrix(block_ + "attn_q.weight", {m_.hidden_dim, q_rows});
      matrix(block_ + "attn_k.weight", {m_.hidden_dim, kv_dim});
      matrix(block_ + "attn_v.weight", {m_.hidden_dim, kv_dim});
    }
    if (m_.attention_bias && m_.fused_qkv) vector(block_ + "attn_qkv.bias", q_rows + 2 * kv_dim, 0.0, 0.5);
    if (m_.attention_bias && !m_.fused_qkv) {
      vector(block_ + "attn_q.bias", q_rows, 0.0, 0.5);
      vector(block_ + "attn_k.bias", kv_dim, 0.0, 0.5);
      vector(block_ + "attn_v.bias", kv_dim, 0.0, 0.5);
    }
    matrix(block_ + "attn_output.weight", {q_dim, m_.hidden_dim});
    if (llama()) return;
    vector(block_ + "attn_q_norm.weight", m_.head_dim, 1.0, 0.05);
    vector(block_ + "attn_k_norm.weight", m_.head_dim, 1.0, 0.05);
  }

  void add_delta_net() {
    const int64_t value_dim = int64_t{m_.state_size} * m_.num_value_heads;
    const int64_t channels = 2 * int64_t{m_.state_size} * m_.num_key_heads + value_dim;
    if (m_.fused_inputs) {
      matrix(block_ + "ssm_in.weight", {m_.hidden_dim, channels + value_dim});
    } else {
      matrix(block_ + "attn_qkv.weight", {m_.hidden_dim, channels});
      matrix(block_ + "attn_gate.weight", {m_.hidden_dim, value_dim});
    }
    if (next()) {
      matrix(block_ + "ssm_ba.weight", {m_.hidden_dim, 2 * m_.num_value_heads});
    } else {
      matrix(block_ + "ssm_beta.weight", {m_.hidden_dim, m_.num_value_heads});
      matrix(block_ + "ssm_alpha.weight", {m_.hidden_dim, m_.num_value_heads});
    }
    matrix(block_ + "ssm_out.weight", {value_dim, m_.hidden_dim});
    floats(block_ + "ssm_conv1d.weight", {m_.conv_taps, channels},
           [&] { return random_.normal() / std::sqrt(m_.conv_taps); });
    vector(block_ + "ssm_dt.bias", m_.num_value_heads, 0.0, 1.0);
    floats(block_ + "ssm_a", {m_.num_value_heads}, [&] { return -std::exp(-3 + 4.5 * random_.uniform()); });
    vector(block_ + "ssm_norm.weight", m_.state_size, 1.0, 0.05);
  }

  void add_experts() {
    const std::string router = block_ + "ffn_gate_inp.weight";
    encoded(router, {m_.hidden_dim, m_.num_experts}, rule_for(router).value_or(WeightType::kF32),
            [&] { return random_.normal() / std::sqrt(static_cast<double>(m_.hidden_dim)); });
    if (m_.fused_gate_up) {
      matrix(block_ + "ffn_gate_up_exps.weight", {m_.hidden_dim, 2 * m_.expert_dim, m_.num_experts});
    } else {
      matrix(block_ + "ffn_gate_exps.weight", {m_.hidden_dim, m_.expert_dim, m_.num_experts});
      matrix(block_ + "ffn_up_exps.weight", {m_.hidden_dim, m_.expert_dim, m_.num_experts});
    }
    matrix(block_ + "ffn_down_exps.weight", {m_.expert_dim, m_.hidden_dim, m_.num_experts});
    if (!hybrid()) return;
    vector(block_ + "ffn_gate_inp_shexp.weight", m_.hidden_dim, 0.0, 1 / std::sqrt(static_cast<double>(m_.hidden_dim)));
    add_swiglu("_shexp");
  }

  void add_swiglu(const std::string& suffix) {
    matrix(block_ + "ffn_gate" + suffix + ".weight", {m_.hidden_dim, m_.shared_dim});
    matrix(block_ + "ffn_up" + suffix + ".weight", {m_.hidden_dim, m_.shared_dim});
    matrix(block_ + "ffn_down" + suffix + ".weight", {m_.shared_dim, m_.hidden_dim});
  }

  void add_mtp() {
    add_layer(m_.num_layers, /*recurrent=*/false);
    for (const char* name : {"enorm", "hnorm", "shared_head_norm"}) {
      vector(fmt::format("{}nextn.{}.weight", block_, name), m_.hidden_dim, 1.0, 0.05);
    }
    matrix(block_ + "nextn.eh_proj.weight", {2 * m_.hidden_dim, m_.hidden_dim});
  }

  [[nodiscard]] std::optional<WeightType> rule_for(const std::string& name) const {
    for (const auto& [part, type] : m_.rules) {
      if (part[0] == '^' ? name.starts_with(part.substr(1)) : name.find(part) != std::string::npos) return type;
    }
    return std::nullopt;
  }

  // Values of N(0, scale^2), in the type whose turn it is. scale 0: 1 / sqrt(inputs).
  void matrix(const std::string& name, std::vector<int64_t> shape, double scale = 0) {
    if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(shape[0]));
    WeightType type = m_.types[turn_++ % m_.types.size()];
    type = rule_for(name).value_or(type);
    if (shape[0] % weight_type_info(type).block_size != 0)
      type = shape[0] % 32 == 0 ? WeightType::kQ8_0 : WeightType::kF16;
    if (m_.scales && name != "token_embd.weight")
      this->scale(name.substr(0, name.size() - 6) + "scale", shape.size() == 3 ? shape[2] : 1);
    encoded(name, std::move(shape), type, [&] { return scale * random_.normal(); });
  }

  // Of magnitudes that keep a model's numbers in their ranges; some negative.
  void scale(const std::string& name, int64_t count) {
    floats(name, {count}, [&] { return (random_.uniform() < 0.2 ? -1 : 1) * (0.5 + random_.uniform()); });
  }

  void vector(const std::string& name, int64_t size, double centre, double spread) {
    floats(name, {size}, [&] { return centre + spread * random_.normal(); });
  }

  template <class Draw>
  void floats(const std::string& name, std::vector<int64_t> shape, Draw&& draw) {
    encoded(name, std::move(shape), WeightType::kF32, draw);
  }

  template <class Draw>
  void encoded(const std::string& name, std::vector<int64_t> shape, WeightType type, Draw&& draw) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(draw());
    const WeightTypeInfo& info = weight_type_info(type);
    std::vector<std::byte> bytes(static_cast<size_t>(count / info.block_size * info.block_bytes));
    encode_row(type, values.data(), count, bytes.data());
    out_.tensors.push_back({name, static_cast<uint32_t>(type), std::move(shape), std::move(bytes)});
  }

  const RandomModel& m_;
  Random random_;
  GgufEdit out_;
  std::string block_;  // "blk.N."
  size_t turn_ = 0;
};

}  // namespace

GgufEdit RandomModel::build() const {
  return Builder(*this).build();
}

RandomModel small_model(const std::string& architecture) {
  RandomModel spec;
  spec.architecture = architecture;
  spec.hidden_dim = 64;
  spec.head_dim = 32;
  spec.rope_dim = 16;
  spec.state_size = 32;
  spec.num_key_heads = 2;
  spec.num_value_heads = 4;
  spec.num_experts = 6;
  spec.expert_dim = 64;
  spec.shared_dim = 64;
  spec.types = {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kF16, WeightType::kQ5_1, WeightType::kMXFP4};
  return spec;
}

RandomModel matrix_model(const std::string& architecture) {
  RandomModel spec;
  spec.architecture = architecture;
  spec.hidden_dim = 128;
  spec.head_dim = 64;
  spec.state_size = 32;
  spec.num_key_heads = 4;
  spec.num_value_heads = 8;
  spec.num_experts = 6;
  spec.expert_dim = 256;
  spec.shared_dim = 256;
  spec.types = {WeightType::kQ4_K, WeightType::kQ4_0, WeightType::kF16,  WeightType::kQ6_K,
                WeightType::kQ8_0, WeightType::kQ5_K, WeightType::kMXFP4};
  return spec;
}

std::vector<TokenId> random_ids(int count, int64_t limit, uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> ids(static_cast<size_t>(count));
  for (TokenId& id : ids) id = static_cast<TokenId>(random.next() % static_cast<uint64_t>(limit));
  return ids;
}

}  // namespace foretoken::test
