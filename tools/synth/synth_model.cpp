#include "tools/synth/synth_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <memory>

#include "kernels/base/error.h"
#include "kernels/base/math.h"
#include "tools/synth/synth_chain.h"
#include "tools/synth/synth_random.h"
#include "tools/synth/synth_vocabulary.h"
#include "tools/synth/synth_weights.h"

namespace foretoken {

namespace {

using synth::Chain;
using synth::ChainSpec;
using synth::derive;
using synth::uniform;
using synth::WeightWriter;

// ChatML, as these models are trained with.
constexpr const char* kChatTemplate =
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

// What all layers of a chain model together add to an embedding of unit variance, as a standard deviation: large enough
// that a wrong bit anywhere shows in the logits, small enough to leave routing and text what the embedding says.
constexpr double kChainLayersShare = 0.08;

// 'general.file_type' of llama.cpp's files, for the types that have one of their own.
std::optional<uint32_t> file_type(const SynthSpec& spec) {
  if (spec.types.empty()) return 15;
  if (spec.types.size() > 1) return std::nullopt;
  switch (spec.types[0]) {
    case WeightType::kF32:
      return 0;
    case WeightType::kF16:
      return 1;
    case WeightType::kQ8_0:
      return 7;
    case WeightType::kBF16:
      return 32;
    default:
      return std::nullopt;
  }
}

class ModelWriter {
 public:
  explicit ModelWriter(const SynthSpec& spec)
      : spec_(spec),
        p_(spec.architecture + '.'),
        hybrid_(spec.is_hybrid()),
        routed_(spec.has_experts()),
        next_(spec.architecture == "qwen3next"),
        llama_(spec.architecture == "llama"),
        weights_(spec.seed) {
    if (spec.text == SynthSpec::Text::kChain) {
      chain_ = std::make_unique<Chain>(ChainSpec{.hidden_dim = spec.hidden_dim,
                                                 .vocab_size = spec.vocab_size,
                                                 .num_experts = routed_ ? spec.num_experts : 0,
                                                 .experts_per_token = routed_ ? spec.experts_per_token : 0,
                                                 .acceptance = spec.acceptance,
                                                 .overlap = spec.overlap,
                                                 .seed = spec.seed});
      report_.cycle_length = chain_->cycle().length();
      if (spec.has_mtp()) report_.acceptance = chain_->acceptance();
      if (routed_) report_.overlap = chain_->measured_overlap(weights_.key(router_name(0)));
      report_.first_ids = chain_->cycle().continuation(chain_->cycle().id_at(-1 + chain_->cycle().length()), 32);
    }
    const double num_branches = 2.0 * num_blocks();
    branch_scale_ = chain_ ? kChainLayersShare / std::sqrt(num_branches) : 1.0;
    norm_spread_ = chain_ ? 0.02f : 0.05f;
  }

  SynthReport write(const std::string& path, const std::function<void(size_t, size_t)>& progress) {
    add_keys();
    add_vocabulary();
    add_ends();
    for (int layer = 0; layer < spec_.num_layers; ++layer) {
      add_layer(layer, !hybrid_ || (layer + 1) % spec_.attention_interval == 0);
    }
    if (spec_.has_mtp()) add_mtp();
    check_room(path);
    report_.file_bytes = weights_.file().write(path, progress);
    report_.num_tensors = weights_.num_tensors();
    report_.num_weights = weights_.num_weights();
    return report_;
  }

 private:
  [[nodiscard]] int num_blocks() const { return spec_.num_layers + (spec_.has_mtp() ? 1 : 0); }
  static std::string router_name(int layer) { return fmt::format("blk.{}.ffn_gate_inp.weight", layer); }

  void check_room(const std::string& path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) return;  // a pipe, a device
    const auto folder = std::filesystem::absolute(path).parent_path();
    const auto space = std::filesystem::space(folder, error);
    const size_t needed = weights_.file().data_bytes();
    if (error || space.available >= needed) return;  // opening the file names what is wrong with the folder
    throw InputError(
        fmt::format("{}: the model needs {:.2f} GB, {} has {:.2f} GB free; make room or ask for fewer --layers", path,
                    static_cast<double>(needed) / 1e9, folder.string(), static_cast<double>(space.available) / 1e9));
  }

  // --- metadata

  void number(const char* key, int64_t value) { weights_.file().add_uint32(p_ + key, static_cast<uint32_t>(value)); }

  void add_keys() {
    GgufWriter& file = weights_.file();
    file.add_string("general.architecture", spec_.architecture);
    file.add_string("general.name", fmt::format("foretoken synth {}", chain_ ? "chain" : "random"));
    if (const auto type = file_type(spec_)) file.add_uint32("general.file_type", *type);
    file.add_uint32("general.quantization_version", 2);
    number("block_count", num_blocks());
    number("context_length", spec_.context_length);
    number("embedding_length", spec_.hidden_dim);
    number("attention.head_count", spec_.num_heads);
    number("attention.head_count_kv", spec_.num_kv_heads);
    number("attention.key_length", spec_.head_dim);
    number("attention.value_length", spec_.head_dim);
    file.add_float32(p_ + "attention.layer_norm_rms_epsilon", 1e-6f);
    file.add_float32(p_ + "rope.freq_base", static_cast<float>(spec_.rope_base));
    if (routed_) {
      number("expert_count", spec_.num_experts);
      number("expert_used_count", spec_.experts_per_token);
      number("expert_feed_forward_length", spec_.expert_dim);
    } else {
      number("feed_forward_length", spec_.shared_expert_dim);
    }
    if (llama_) number("rope.dimension_count", spec_.rope_dim);
    if (hybrid_) add_hybrid_keys();
    add_synth_keys();
  }

  void add_hybrid_keys() {
    if (routed_) number("expert_shared_feed_forward_length", spec_.shared_expert_dim);
    number("rope.dimension_count", spec_.rope_dim);
    if (!next_) {
      const int pairs = spec_.rope_dim / 2;  // dealt over time, height and width
      const std::vector<int32_t> sections = {(pairs + 2) / 3, (pairs + 1) / 3, pairs / 3, 0};
      weights_.file().add_int32s(p_ + "rope.dimension_sections", sections);
    }
    number("ssm.conv_kernel", spec_.conv_taps);
    number("ssm.state_size", spec_.state_size);
    number("ssm.group_count", spec_.num_key_heads);
    number("ssm.time_step_rank", spec_.num_value_heads);
    number("ssm.inner_size", int64_t{spec_.state_size} * spec_.num_value_heads);
    number("full_attention_interval", spec_.attention_interval);
    if (spec_.has_mtp()) number("nextn_predict_layers", 1);
  }

  void add_synth_keys() {
    GgufWriter& file = weights_.file();
    file.add_string("foretoken.synth.text", chain_ ? "chain" : "random");
    file.add_string("foretoken.synth.seed", std::to_string(spec_.seed));
    if (!chain_) return;
    file.add_uint32("foretoken.synth.cycle_length", static_cast<uint32_t>(report_.cycle_length));
    file.add_int32s("foretoken.synth.first_ids", report_.first_ids);
    if (spec_.has_mtp()) file.add_float32("foretoken.synth.acceptance", static_cast<float>(report_.acceptance));
    if (routed_) file.add_float32("foretoken.synth.overlap", static_cast<float>(report_.overlap));
  }

  void add_vocabulary() {
    const synth::Vocabulary vocabulary = synth::Vocabulary::make(spec_.vocab_size);
    GgufWriter& file = weights_.file();
    file.add_string("tokenizer.ggml.model", "gpt2");
    file.add_string("tokenizer.ggml.pre", llama_ ? "smollm" : hybrid_ && !next_ ? "qwen35" : "qwen2");
    file.add_strings("tokenizer.ggml.tokens", vocabulary.tokens);
    file.add_int32s("tokenizer.ggml.token_type", vocabulary.types);
    file.add_strings("tokenizer.ggml.merges", vocabulary.merges);
    file.add_uint32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(vocabulary.end_of_turn));
    file.add_uint32("tokenizer.ggml.padding_token_id", static_cast<uint32_t>(vocabulary.end_of_text));
    file.add_bool("tokenizer.ggml.add_bos_token", false);
    file.add_string("tokenizer.chat_template", kChatTemplate);
  }

  // --- tensors

  // The type of the next matrix.
  WeightType type_of(std::string_view name, int layer, int64_t row_values) {
    const auto mixture = [&] {
      const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
      if (has("ssm_alpha") || has("ssm_beta") || has("ssm_ba.")) return WeightType::kQ8_0;
      if (name == "output.weight" || has("attn_v.") || (has("ffn_down") && layer % 2 == 0)) return WeightType::kQ6_K;
      if (has("attn_qkv") || has("attn_gate")) return WeightType::kQ5_K;
      return WeightType::kQ4_K;
    };
    const WeightType wanted = spec_.types.empty() ? mixture() : spec_.types[next_type_++ % spec_.types.size()];
    for (WeightType type : {wanted, WeightType::kQ8_0}) {
      if (row_values % weight_type_info(type).block_size == 0) return type;
    }
    return WeightType::kF16;
  }

  // layer < 0: outside of the blocks.
  void matrix(int layer, const std::string& name, std::vector<int64_t> shape, double scale = 1,
              const synth::IsZeroRow& is_zero = {}) {
    const std::string full = layer < 0 ? name : fmt::format("blk.{}.{}", layer, name);
    const WeightType type = type_of(full, layer, shape[0]);
    weights_.add_matrix(full, type, std::move(shape), scale, is_zero);
  }

  void vector(int layer, const std::string& name, int64_t n, float center, float spread) {
    weights_.add_vector(layer < 0 ? name : fmt::format("blk.{}.{}", layer, name), n, center, spread);
  }
  void norm(int layer, const std::string& name, int64_t n) { vector(layer, name, n, 1.0f, norm_spread_); }

  // Embedding and head.
  void add_ends() {
    const int64_t dim = spec_.hidden_dim, vocab = spec_.vocab_size;
    if (chain_) {
      const Chain* chain = chain_.get();
      weights_.add_rows("token_embd.weight", type_of("token_embd.weight", -1, dim), {dim, vocab},
                        [chain](int64_t id, float* row) { chain->embedding_row(static_cast<TokenId>(id), row); });
      norm(-1, "output_norm.weight", dim);
      weights_.add_rows("output.weight", type_of("output.weight", -1, dim), {dim, vocab},
                        [chain](int64_t id, float* row) { chain->head_row(static_cast<TokenId>(id), row); });
      return;
    }
    matrix(-1, "token_embd.weight", {dim, vocab}, std::sqrt(static_cast<double>(dim)));  // unit variance
    norm(-1, "output_norm.weight", dim);
    if (spec_.tied_head) return;
    matrix(-1, "output.weight", {dim, vocab}, 1,
           [vocab](int64_t id) { return !synth::is_printable(static_cast<TokenId>(id), vocab); });
  }

  void add_layer(int layer, bool attention) {
    norm(layer, "attn_norm.weight", spec_.hidden_dim);
    norm(layer, hybrid_ ? "post_attention_norm.weight" : "ffn_norm.weight", spec_.hidden_dim);
    attention ? add_attention(layer) : add_delta_net(layer);
    if (routed_) {
      add_experts(layer);
      if (hybrid_) add_shared_expert(layer);
    } else {
      add_feed_forward(layer, "", spec_.shared_expert_dim);
    }
  }

  void add_attention(int layer) {
    const int64_t dim = spec_.hidden_dim, heads = int64_t{spec_.num_heads} * spec_.head_dim,
                  kv_heads = int64_t{spec_.num_kv_heads} * spec_.head_dim;
    matrix(layer, "attn_q.weight", {dim, hybrid_ ? 2 * heads : heads});  // with the gates
    matrix(layer, "attn_k.weight", {dim, kv_heads});
    matrix(layer, "attn_v.weight", {dim, kv_heads});
    matrix(layer, "attn_output.weight", {heads, dim}, branch_scale_);
    if (llama_) return;
    norm(layer, "attn_q_norm.weight", spec_.head_dim);
    norm(layer, "attn_k_norm.weight", spec_.head_dim);
  }

  void add_delta_net(int layer) {
    const int64_t dim = spec_.hidden_dim, value_heads = spec_.num_value_heads,
                  key_dim = int64_t{spec_.state_size} * spec_.num_key_heads, value_dim = spec_.state_size * value_heads;
    matrix(layer, "attn_qkv.weight", {dim, 2 * key_dim + value_dim});
    matrix(layer, "attn_gate.weight", {dim, value_dim});
    weights_.add_matrix(fmt::format("blk.{}.ssm_conv1d.weight", layer), WeightType::kF32,
                        {spec_.conv_taps, 2 * key_dim + value_dim});
    vector(layer, "ssm_dt.bias", value_heads, 0.0f, 1.0f);
    // -exp(A_log), A_log even between -3 and 1.5: a state forgets half of itself within a token or within thirty. Its
    // norm stays bounded: keys have length 1, beta is below 1, decays are too.
    const std::string a_name = fmt::format("blk.{}.ssm_a", layer);
    weights_.add_rows(
        a_name, WeightType::kF32, {value_heads}, [key = weights_.key(a_name), value_heads](int64_t, float* a) {
          for (int64_t head = 0; head < value_heads; ++head) {
            a[head] = -math::exp(static_cast<float>(4.5 * uniform(derive(key, static_cast<uint64_t>(head))) - 3));
          }
        });
    if (next_) {
      matrix(layer, "ssm_ba.weight", {dim, 2 * value_heads});
    } else {
      matrix(layer, "ssm_beta.weight", {dim, value_heads});
      matrix(layer, "ssm_alpha.weight", {dim, value_heads});
    }
    norm(layer, "ssm_norm.weight", spec_.state_size);
    matrix(layer, "ssm_out.weight", {value_dim, dim}, branch_scale_);
  }

  void add_experts(int layer) {
    const int64_t dim = spec_.hidden_dim, expert_dim = spec_.expert_dim, experts = spec_.num_experts;
    const std::string router = router_name(layer);
    if (chain_) {
      weights_.add_rows(router, WeightType::kF32, {dim, experts},
                        [chain = chain_.get(), key = weights_.key(router)](int64_t expert, float* row) {
                          chain->router_row(key, expert, row);
                        });
    } else {
      weights_.add_matrix(router, WeightType::kF32, {dim, experts});
    }
    if (spec_.fused_gate_up) {
      matrix(layer, "ffn_gate_up_exps.weight", {dim, 2 * expert_dim, experts});
    } else {
      matrix(layer, "ffn_gate_exps.weight", {dim, expert_dim, experts});
      matrix(layer, "ffn_up_exps.weight", {dim, expert_dim, experts});
    }
    matrix(layer, "ffn_down_exps.weight", {expert_dim, dim, experts}, branch_scale_);
  }

  void add_shared_expert(int layer) {
    vector(layer, "ffn_gate_inp_shexp.weight", spec_.hidden_dim, 0.0f,
           1.0f / std::sqrt(static_cast<float>(spec_.hidden_dim)));
    add_feed_forward(layer, "_shexp", spec_.shared_expert_dim);
  }

  void add_feed_forward(int layer, const std::string& suffix, int64_t inner_dim) {
    const int64_t dim = spec_.hidden_dim;
    matrix(layer, "ffn_gate" + suffix + ".weight", {dim, inner_dim});
    matrix(layer, "ffn_up" + suffix + ".weight", {dim, inner_dim});
    matrix(layer, "ffn_down" + suffix + ".weight", {inner_dim, dim}, branch_scale_);
  }

  void add_mtp() {
    const int layer = spec_.num_layers;
    const int64_t dim = spec_.hidden_dim;
    add_layer(layer, /*attention=*/true);
    norm(layer, "nextn.enorm.weight", dim);
    norm(layer, "nextn.hnorm.weight", dim);
    norm(layer, "nextn.shared_head_norm.weight", dim);
    if (!chain_) return matrix(layer, "nextn.eh_proj.weight", {2 * dim, dim});
    const std::string name = fmt::format("blk.{}.nextn.eh_proj.weight", layer);
    weights_.add_rows(name, type_of(name, layer, 2 * dim), {2 * dim, dim},
                      [chain = chain_.get()](int64_t output, float* row) { chain->eh_proj_row(output, row); });
  }

  const SynthSpec& spec_;
  const std::string p_;
  const bool hybrid_, routed_, next_, llama_;
  WeightWriter weights_;
  std::unique_ptr<Chain> chain_;
  SynthReport report_;
  double branch_scale_;
  float norm_spread_;
  size_t next_type_ = 0;
};

[[noreturn]] void refuse(std::string_view what, std::string_view value, std::string_view limits) {
  throw UsageError(fmt::format("{} {}: {}", what, value, limits));
}

void check_range(std::string_view what, int64_t value, int64_t min, int64_t max, int64_t multiple_of = 1) {
  if (value >= min && value <= max && value % multiple_of == 0) return;
  refuse(what, std::to_string(value),
         multiple_of == 1 ? fmt::format("{} to {} allowed", min, max)
                          : fmt::format("a multiple of {} from {} to {} is needed", multiple_of, min, max));
}

void check_share(std::string_view what, double value) {
  if (!(value >= 0 && value <= 1)) refuse(what, fmt::format("{}", value), "0 to 1 allowed");
}

}  // namespace

std::vector<std::string> SynthSpec::shape_names() {
  return {"tiny", "qwen3.6-35b-a3b", "qwen3-coder-30b-a3b", "qwen3-coder-next-80b-a3b", "smollm2-135m"};
}

std::vector<std::string> SynthSpec::architectures() {
  return {"qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama"};
}

SynthSpec SynthSpec::for_shape(std::string_view name) {
  SynthSpec s;
  if (name == "tiny") return s;
  s.hidden_dim = 2048;
  s.context_length = 262144;
  s.experts_per_token = 8;
  if (name == "qwen3.6-35b-a3b") {
    s.num_layers = 40;
    s.vocab_size = 248320;
    s.num_heads = 16, s.num_kv_heads = 2, s.head_dim = 256, s.rope_dim = 64;
    s.num_experts = 256;
    s.expert_dim = 512, s.shared_expert_dim = 512;
    s.state_size = 128, s.num_key_heads = 16, s.num_value_heads = 32;
    return s;
  }
  if (name == "qwen3-coder-30b-a3b") {
    s.architecture = "qwen3moe";
    s.num_layers = 48;
    s.vocab_size = 151936;
    s.num_heads = 32, s.num_kv_heads = 4, s.head_dim = 128, s.rope_dim = 128;
    s.num_experts = 128;
    s.expert_dim = 768;
    return s;
  }
  if (name == "qwen3-coder-next-80b-a3b") {
    s.architecture = "qwen3next";
    s.num_layers = 48;
    s.vocab_size = 151936;
    s.num_heads = 16, s.num_kv_heads = 2, s.head_dim = 256, s.rope_dim = 64;
    s.num_experts = 512, s.experts_per_token = 10;
    s.expert_dim = 512, s.shared_expert_dim = 512;
    s.state_size = 128, s.num_key_heads = 16, s.num_value_heads = 32;
    return s;
  }
  if (name == "smollm2-135m") {
    s.architecture = "llama";
    s.num_layers = 30;
    s.hidden_dim = 576, s.shared_expert_dim = 1536;
    s.vocab_size = 49152;
    s.context_length = 8192;
    s.num_heads = 9, s.num_kv_heads = 3, s.head_dim = 64, s.rope_dim = 64, s.rope_base = 1e5;
    return s;
  }
  throw UsageError(fmt::format("--shape {}: unknown; known: {}", name, fmt::join(shape_names(), ", ")));
}

void SynthSpec::set_types(std::string_view text) {
  types.clear();
  if (text == "q4_k_m" || text == "Q4_K_M") return;
  for (std::string_view rest = text;;) {
    const size_t comma = rest.find(',');
    const auto type = weight_type_from_name(rest.substr(0, comma));
    if (!type) {
      std::string known = "q4_k_m";
      for (const WeightTypeInfo& info : all_weight_types()) {
        known += ", ";
        for (char c : info.name) known += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
      }
      throw UsageError(
          fmt::format("--type {}: '{}' is unknown; known: {}; several with commas are dealt over the matrices", text,
                      rest.substr(0, comma), known));
    }
    types.push_back(*type);
    if (comma == std::string_view::npos) return;
    rest.remove_prefix(comma + 1);
  }
}

void SynthSpec::check() const {
  const std::vector<std::string> known = architectures();
  if (std::find(known.begin(), known.end(), architecture) == known.end())
    refuse("--arch", architecture, fmt::format("unknown; known: {}", fmt::join(known, ", ")));
  constexpr int64_t kMost = 1 << 20;
  check_range("--layers", num_layers, 1, 1024);
  check_range("--attention-interval", attention_interval, 1, 1024);
  check_range("--hidden-dim", hidden_dim, 64, kMost, 32);
  check_range("--vocab-size", vocab_size, synth::Vocabulary::kSmallest, int64_t{1} << 24);
  check_range("--context-length", context_length, 1, int64_t{1} << 30);
  check_range("--kv-heads", num_kv_heads, 1, 65536);
  check_range("--heads", num_heads, num_kv_heads, 65536, num_kv_heads);
  check_range("--head-dim", head_dim, 2, 4096, 2);
  check_range("--rope-dim", rope_dim, 2, head_dim, 2);
  if (rotates_whole_heads() && rope_dim != head_dim) {
    refuse("--rope-dim", std::to_string(rope_dim),
           fmt::format("{} rotates whole heads: {} is needed", architecture, head_dim));
  }
  check_range("--experts", num_experts, 1, 65536);
  check_range("--experts-per-token", experts_per_token, 1, num_experts);
  check_range("--expert-dim", expert_dim, 1, kMost);
  check_range("--shared-expert-dim", shared_expert_dim, 1, kMost);
  check_range("--state-size", state_size, 16, 4096, 16);
  check_range("--key-heads", num_key_heads, 1, 65536);
  check_range("--value-heads", num_value_heads, num_key_heads, 65536, num_key_heads);
  check_range("--conv-taps", conv_taps, 1, 64);
  check_share("--acceptance", acceptance);
  check_share("--overlap", overlap);
  if (tied_head && text == Text::kChain) {
    throw UsageError("--tied-head: a chain model's head differs from its embedding; add --text random");
  }
}

SynthReport write_synth_model(const std::string& path, const SynthSpec& spec,
                              const std::function<void(size_t, size_t)>& progress) {
  spec.check();
  return ModelWriter(spec).write(path, progress);
}

std::vector<TokenId> known_continuation(const SynthSpec& spec, TokenId last, int64_t count) {
  FT_CHECK(spec.text == SynthSpec::Text::kChain && last >= 0 && last < spec.vocab_size);
  return synth::Cycle(spec.vocab_size, spec.seed).continuation(last, count);
}

std::optional<std::vector<TokenId>> known_continuation(const GgufFile& file, TokenId last, int64_t count) {
  if (file.get_string("foretoken.synth.text", "") != "chain") return std::nullopt;
  const std::string_view text = file.get_string("foretoken.synth.seed");
  SynthSpec spec;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), spec.seed);
  const auto first_ids = file.find_int_array("foretoken.synth.first_ids");
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (error != std::errc() || end != text.data() + text.size() || !first_ids || first_ids->empty() ||
      embedding == nullptr || embedding->shape.size() != 2 || embedding->shape[1] < synth::Vocabulary::kSmallest ||
      last < 0 || last >= embedding->shape[1]) {
    return std::nullopt;
  }
  spec.vocab_size = embedding->shape[1];
  // The file's own first ids say whether this program still makes cycles as the one that wrote it.
  const auto first =
      known_continuation(spec, static_cast<TokenId>(first_ids->front()), static_cast<int64_t>(first_ids->size()) - 1);
  if (!std::equal(first.begin(), first.end(), first_ids->begin() + 1, first_ids->end())) return std::nullopt;
  return known_continuation(spec, last, count);
}

}  // namespace foretoken
