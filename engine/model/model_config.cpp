#include "engine/model/model_config.h"

#include <fmt/format.h>

#include "engine/gguf/gguf.h"
#include "engine/model/metadata.h"
#include "engine/model/mtp_layout.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Upper limits that no real model reaches and that keep every product of two of them inside int64.
constexpr int64_t kMaxDim = int64_t{1} << 24;
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxExperts = 65536;
constexpr int64_t kMaxContext = int64_t{1} << 31;

void read_attention(const Metadata& keys, ModelConfig& c) {
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

void read_feed_forward(const Metadata& keys, bool moe, ModelConfig& c) {
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

void read_delta_net(const Metadata& keys, ModelConfig& c) {
  const auto listed = keys.integers("attention.recurrent_layers");
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
  if (const std::string_view type = file.get_string("general.type", "model"); type != "model") {
    throw InputError(
        fmt::format("{}: general.type: '{}' is not a model; name the model's own file", file.path(), printable(type)));
  }
  c.architecture = file.get_string("general.architecture");
  if (!is_supported(c.architecture)) {
    throw InputError(fmt::format("{}: general.architecture: '{}' is not supported; qwen35moe, qwen35 and qwen3moe are",
                                 file.path(), c.architecture));
  }
  c.name = file.get_string("general.name", "");
  const Metadata keys(file, c.architecture);
  const bool hybrid = c.architecture != "qwen3moe";

  const MtpLayout blocks = read_mtp_layout(keys, /*most=*/hybrid ? 1 : 0);
  c.num_layers = blocks.num_layers;
  c.num_mtp_layers = blocks.num_mtp_layers;
  c.mtp_absence = blocks.absence;
  c.hidden_dim = keys.integer("embedding_length", 1, kMaxDim);
  c.context_length = keys.integer("context_length", 1, kMaxContext);
  c.norm_eps = static_cast<float>(keys.number("attention.layer_norm_rms_epsilon"));
  if (!(c.norm_eps >= 0 && c.norm_eps < 1))
    keys.fail("attention.layer_norm_rms_epsilon", fmt::format("{} is outside 0 to 1", c.norm_eps));

  c.gated_attention = hybrid;
  read_attention(keys, c);
  read_feed_forward(keys, c.architecture != "qwen35", c);
  c.recurrent.assign(static_cast<size_t>(c.num_layers), false);
  if (hybrid) read_delta_net(keys, c);

  const GgufTensor* embed = file.find_tensor("token_embd.weight");
  if (embed == nullptr) throw InputError(fmt::format("{}: tensor token_embd.weight is missing", file.path()));
  if (embed->shape.size() != 2 || embed->shape[0] != c.hidden_dim || embed->shape[1] > (int64_t{1} << 30)) {
    throw InputError(fmt::format("{}: tensor token_embd.weight: shape [{}]; [{}, vocabulary] expected", file.path(),
                                 fmt::join(embed->shape, ", "), c.hidden_dim));
  }
  c.vocab_size = embed->shape[1];
  keys.check_unread(c);
  return c;
}

}  // namespace foretoken
