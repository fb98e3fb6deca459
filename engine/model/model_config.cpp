#include "engine/model/model_config.h"

#include <fmt/format.h>

#include "engine/gguf/gguf.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Upper limits that no real model reaches and that keep every product of two of them inside int64.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxDim = int64_t{1} << 24;
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxExperts = 65536;
constexpr int64_t kMaxContext = int64_t{1} << 31;

// Reads the keys of one architecture: "qwen35moe." + key.
class Keys {
 public:
  Keys(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  int64_t integer(std::string_view key, int64_t min, int64_t max) const {
    return file_.get_int(prefix_ + std::string(key), min, max);
  }
  int64_t integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
    return file_.get_int(prefix_ + std::string(key), min, max, fallback);
  }
  double number(std::string_view key) const { return file_.get_float(prefix_ + std::string(key)); }
  double number(std::string_view key, double fallback) const {
    return file_.get_float(prefix_ + std::string(key), fallback);
  }
  bool has(std::string_view key) const { return file_.find(prefix_ + std::string(key)) != nullptr; }

  // A count that some converters write once for each layer: all entries must be equal.
  int64_t uniform(std::string_view key, int64_t min, int64_t max) const {
    const std::string full = prefix_ + std::string(key);
    const GgufValue* value = file_.find(full);
    if (value == nullptr || !std::holds_alternative<std::shared_ptr<const GgufArray>>(*value))
      return integer(key, min, max);
    const auto entries = file_.find_int_array(full);
    if (!entries || entries->empty())
      throw InputError(fmt::format("{}: key {}: an array of integers is needed", file_.path(), full));
    int64_t found = 0;
    for (int64_t entry : *entries) {
      if (entry == 0) continue;  // layers without attention
      if (entry < min || entry > max || (found != 0 && entry != found)) {
        throw InputError(fmt::format(
            "{}: key {}: value {} in an array; layers of different shapes are not supported, {} to {} allowed",
            file_.path(), full, entry, min, max));
      }
      found = entry;
    }
    if (found == 0)
      throw InputError(fmt::format("{}: key {}: all entries are 0; at least {} is needed", file_.path(), full, min));
    return found;
  }

  [[noreturn]] void fail(std::string_view key, std::string_view what) const {
    throw InputError(fmt::format("{}: key {}{}: {}", file_.path(), prefix_, key, what));
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

void read_attention(const Keys& keys, ModelConfig& c) {
  c.num_heads = static_cast<int>(keys.uniform("attention.head_count", 1, kMaxHeads));
  c.num_kv_heads = keys.has("attention.head_count_kv")
                       ? static_cast<int>(keys.uniform("attention.head_count_kv", 1, kMaxHeads))
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
}

void read_feed_forward(const Keys& keys, bool moe, ModelConfig& c) {
  if (!moe) {
    c.shared_expert_dim = keys.integer("feed_forward_length", 1, kMaxDim);
    return;
  }
  c.num_experts = static_cast<int>(keys.integer("expert_count", 1, kMaxExperts));
  c.experts_per_token = static_cast<int>(keys.integer("expert_used_count", 1, c.num_experts));
  if (keys.has("expert_feed_forward_length")) {
    c.expert_dim = keys.integer("expert_feed_forward_length", 1, kMaxDim);
  } else {
    c.expert_dim = keys.integer("feed_forward_length", 1, kMaxDim) / c.experts_per_token;
  }
  if (c.architecture == "qwen35moe") {
    const int64_t fallback = keys.integer("feed_forward_length", 1, kMaxDim, c.expert_dim);
    c.shared_expert_dim = keys.integer("expert_shared_feed_forward_length", 1, kMaxDim, fallback);
  }
}

void read_delta_net(const Keys& keys, const GgufFile& file, ModelConfig& c) {
  const auto listed = file.find_int_array(c.architecture + ".attention.recurrent_layers");
  if (listed) {
    // Either one flag a layer, or the indices of the recurrent ones; a file's array of num_layers entries of 0 and 1 is
    // flags.
    const auto layers = static_cast<size_t>(c.num_layers);
    const bool flags = listed->size() >= layers;
    for (size_t i = 0; i < listed->size(); ++i) {
      const int64_t value = (*listed)[i];
      if (flags ? value < 0 || value > 1 : value < 0 || value >= c.num_layers) {
        keys.fail("attention.recurrent_layers",
                  fmt::format("entry {} is {}; flags 0 or 1 or layers below {} allowed", i, value, c.num_layers));
      }
      if (flags && i < layers) c.recurrent[i] = value != 0;
      if (!flags) c.recurrent[static_cast<size_t>(value)] = true;
    }
  } else {
    const int64_t interval = keys.integer("full_attention_interval", 1, kMaxLayers, 4);
    for (int64_t i = 0; i < c.num_layers; ++i) c.recurrent[static_cast<size_t>(i)] = (i + 1) % interval != 0;
  }
  c.state_size = static_cast<int>(keys.integer("ssm.state_size", 16, 4096));
  if (c.state_size % 16 != 0) keys.fail("ssm.state_size", fmt::format("{} is no multiple of 16", c.state_size));
  c.num_key_heads = static_cast<int>(keys.integer("ssm.group_count", 1, kMaxHeads));
  c.num_value_heads = static_cast<int>(keys.integer("ssm.time_step_rank", 1, kMaxHeads));
  if (c.num_value_heads % c.num_key_heads != 0) {
    keys.fail("ssm.time_step_rank",
              fmt::format("{} value heads are no multiple of ssm.group_count {}", c.num_value_heads, c.num_key_heads));
  }
  c.conv_taps = static_cast<int>(keys.integer("ssm.conv_kernel", 1, 64));
  const int64_t inner = keys.integer("ssm.inner_size", 1, int64_t{1} << 40, c.value_dim());
  if (inner != c.value_dim()) {
    keys.fail("ssm.inner_size",
              fmt::format("{} differs from ssm.state_size x ssm.time_step_rank = {}", inner, c.value_dim()));
  }
}

}  // namespace

bool ModelConfig::is_supported(std::string_view architecture) {
  return architecture == "qwen35moe" || architecture == "qwen35" || architecture == "qwen3moe";
}

ModelConfig ModelConfig::read(const GgufFile& file) {
  ModelConfig c;
  c.architecture = file.get_string("general.architecture");
  if (!is_supported(c.architecture)) {
    throw InputError(fmt::format("{}: general.architecture: '{}' is not supported; qwen35moe, qwen35 and qwen3moe are",
                                 file.path(), c.architecture));
  }
  c.name = file.get_string("general.name", "");
  const Keys keys(file, c.architecture + ".");
  const bool hybrid = c.architecture != "qwen3moe";

  const int64_t num_blocks = keys.integer("block_count", 1, kMaxLayers);
  c.num_mtp_layers = static_cast<int>(keys.integer("nextn_predict_layers", 0, kMaxLayers, 0));
  if (c.num_mtp_layers > (hybrid ? 1 : 0)) {
    keys.fail("nextn_predict_layers",
              fmt::format("{} MTP layers; {} supports at most {}", c.num_mtp_layers, c.architecture, hybrid ? 1 : 0));
  }
  if (c.num_mtp_layers >= num_blocks)
    keys.fail("block_count", fmt::format("{} leaves no trunk layer beside the MTP layer", num_blocks));
  c.num_layers = static_cast<int>(num_blocks) - c.num_mtp_layers;
  c.hidden_dim = keys.integer("embedding_length", 1, kMaxDim);
  c.context_length = keys.integer("context_length", 1, kMaxContext);
  c.norm_eps = static_cast<float>(keys.number("attention.layer_norm_rms_epsilon"));
  if (!(c.norm_eps >= 0 && c.norm_eps < 1))
    keys.fail("attention.layer_norm_rms_epsilon", fmt::format("{} is outside 0 to 1", c.norm_eps));
  const std::string_view scaling = file.get_string(c.architecture + ".rope.scaling.type", "none");
  if (scaling != "none") {
    keys.fail("rope.scaling.type", fmt::format("'{}' is not supported; only unscaled rotations (none) are", scaling));
  }

  c.gated_attention = hybrid;
  read_attention(keys, c);
  read_feed_forward(keys, c.architecture != "qwen35", c);
  c.recurrent.assign(static_cast<size_t>(c.num_layers), false);
  if (hybrid) read_delta_net(keys, file, c);

  const GgufTensor* embed = file.find_tensor("token_embd.weight");
  if (embed == nullptr) throw InputError(fmt::format("{}: tensor token_embd.weight is missing", file.path()));
  if (embed->shape.size() != 2 || embed->shape[0] != c.hidden_dim || embed->shape[1] > (int64_t{1} << 30)) {
    throw InputError(fmt::format("{}: tensor token_embd.weight: shape [{}]; [{}, vocabulary] expected", file.path(),
                                 fmt::join(embed->shape, ", "), c.hidden_dim));
  }
  c.vocab_size = embed->shape[1];
  return c;
}

}  // namespace foretoken
