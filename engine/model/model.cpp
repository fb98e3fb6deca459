#include "engine/model/model.h"

#include <fmt/format.h>

#include <chrono>

#include "engine/model/metadata.h"
#include "engine/model/mtp_layout.h"
#include "engine/model/unread_tensors.h"
#include "engine/model/weight_loader.h"
#include "engine/model/weights.h"
#include "kernels/base/error.h"

namespace foretoken {

struct Model::Impl {
  explicit Impl(GgufFile opened)
      : file(std::move(opened)), config(ModelConfig::read(file)), tokenizer(Tokenizer::load(file)) {}

  GgufFile file;
  ModelConfig config;
  Tokenizer tokenizer;
  std::string fingerprint;
  double load_seconds = 0;
  ModelWeights weights;
};

namespace {

void declare_attention(WeightLoader& load, const ModelConfig& c, const std::string& block, AttentionWeights& to) {
  const int64_t q_dim = int64_t{c.num_heads} * c.head_dim, kv_dim = int64_t{c.num_kv_heads} * c.head_dim;
  load.matrix(block + "attn_q.weight", c.gated_attention ? 2 * q_dim : q_dim, c.hidden_dim, to.q);
  load.matrix(block + "attn_k.weight", kv_dim, c.hidden_dim, to.k);
  load.matrix(block + "attn_v.weight", kv_dim, c.hidden_dim, to.v);
  load.matrix(block + "attn_output.weight", c.hidden_dim, q_dim, to.output);
  load.vector(block + "attn_q_norm.weight", c.head_dim, to.q_norm);
  load.vector(block + "attn_k_norm.weight", c.head_dim, to.k_norm);
}

void declare_delta_net(WeightLoader& load, const ModelConfig& c, const std::string& block, DeltaNetWeights& to) {
  load.matrix(block + "attn_qkv.weight", c.conv_channels(), c.hidden_dim, to.qkv);
  load.matrix(block + "attn_gate.weight", c.value_dim(), c.hidden_dim, to.gate);
  load.matrix(block + "ssm_beta.weight", c.num_value_heads, c.hidden_dim, to.beta);
  load.matrix(block + "ssm_alpha.weight", c.num_value_heads, c.hidden_dim, to.alpha);
  load.matrix(block + "ssm_out.weight", c.hidden_dim, c.value_dim(), to.out);
  load.vector(block + "ssm_conv1d.weight", c.conv_channels() * c.conv_taps, to.conv);
  load.vector(block + "ssm_dt.bias", c.num_value_heads, to.dt);
  load.vector(block + "ssm_a", c.num_value_heads, to.a);
  load.vector(block + "ssm_norm.weight", c.state_size, to.norm);
}

void declare_experts(WeightLoader& load, const ModelConfig& c, const std::string& block, MoeWeights& to) {
  const int64_t experts = c.num_experts, dim = c.expert_dim;
  to.num_experts = c.num_experts;
  to.top_k = c.experts_per_token;
  load.matrix(block + "ffn_gate_inp.weight", experts, c.hidden_dim, to.router);
  to.gate = to.up = {{}, dim, 0, dim};
  to.down = {{}, c.hidden_dim, 0, c.hidden_dim};
  if (load.has(block + "ffn_gate_up_exps.weight")) {
    // One tensor: of each expert's 2F rows the first F are gate, the rest up.
    to.gate = {{}, 2 * dim, 0, dim};
    to.up = {{}, 2 * dim, dim, dim};
    load.expert_matrices(block + "ffn_gate_up_exps.weight", experts, 2 * dim, c.hidden_dim, to.gate.all, /*parts=*/2);
  } else {
    load.expert_matrices(block + "ffn_gate_exps.weight", experts, dim, c.hidden_dim, to.gate.all);
    load.expert_matrices(block + "ffn_up_exps.weight", experts, dim, c.hidden_dim, to.up.all);
  }
  load.expert_matrices(block + "ffn_down_exps.weight", experts, c.hidden_dim, dim, to.down.all);
  if (c.shared_expert_dim == 0) return;
  load.matrix(block + "ffn_gate_shexp.weight", c.shared_expert_dim, c.hidden_dim, to.shared_gate);
  load.matrix(block + "ffn_up_shexp.weight", c.shared_expert_dim, c.hidden_dim, to.shared_up);
  load.matrix(block + "ffn_down_shexp.weight", c.hidden_dim, c.shared_expert_dim, to.shared_down);
  load.vector(block + "ffn_gate_inp_shexp.weight", c.hidden_dim, to.shared_router);
}

void declare_dense(WeightLoader& load, const ModelConfig& c, const std::string& block, MoeWeights& to) {
  load.matrix(block + "ffn_gate.weight", c.shared_expert_dim, c.hidden_dim, to.shared_gate);
  load.matrix(block + "ffn_up.weight", c.shared_expert_dim, c.hidden_dim, to.shared_up);
  load.matrix(block + "ffn_down.weight", c.hidden_dim, c.shared_expert_dim, to.shared_down);
}

void declare_layer(WeightLoader& load, const ModelConfig& c, int index, bool recurrent, LayerWeights& to) {
  const std::string block = fmt::format("blk.{}.", index);
  to.recurrent = recurrent;
  load.vector(block + "attn_norm.weight", c.hidden_dim, to.mix_norm);
  load.vector(block + (c.architecture == "qwen3moe" ? "ffn_norm.weight" : "post_attention_norm.weight"), c.hidden_dim,
              to.ffn_norm);
  if (recurrent) {
    declare_delta_net(load, c, block, to.delta_net);
  } else {
    declare_attention(load, c, block, to.attention);
  }
  if (c.num_experts > 0) {
    declare_experts(load, c, block, to.moe);
  } else {
    declare_dense(load, c, block, to.moe);
  }
}

void declare_mtp(WeightLoader& load, const ModelConfig& c, MtpWeights& to) {
  const std::string block = fmt::format("blk.{}.nextn.", c.num_layers);
  declare_layer(load, c, c.num_layers, /*recurrent=*/false, to.layer);
  load.matrix(block + "eh_proj.weight", c.hidden_dim, 2 * c.hidden_dim, to.join);
  load.vector(block + "enorm.weight", c.hidden_dim, to.embed_norm);
  load.vector(block + "hnorm.weight", c.hidden_dim, to.hidden_norm);
  const std::string head_norm = block + "shared_head_norm.weight";
  load.vector(load.has(head_norm) ? head_norm : "output_norm.weight", c.hidden_dim, to.head_norm);
  if (load.has(block + "embed_tokens.weight"))
    load.lookup(block + "embed_tokens.weight", c.vocab_size, c.hidden_dim, to.embed);
  if (load.has(block + "shared_head_head.weight"))
    load.head(block + "shared_head_head.weight", c.vocab_size, c.hidden_dim, to.head);
}

// Everything that the headers say about whether the model can be run. Throws InputError.
void declare_model(WeightLoader& load, const GgufFile& file, const ModelConfig& c, const Tokenizer& tokenizer,
                   ModelWeights& w) {
  if (tokenizer.vocab_size() != c.vocab_size) {
    throw InputError(
        fmt::format("{}: tokenizer.ggml.tokens: {} tokens; token_embd.weight has {} rows, they must be as many",
                    file.path(), tokenizer.vocab_size(), c.vocab_size));
  }
  load.lookup("token_embd.weight", c.vocab_size, c.hidden_dim, w.embed);
  load.vector("output_norm.weight", c.hidden_dim, w.output_norm);
  // Without a head of its own the model uses its embeddings (tied).
  load.head(load.has("output.weight") ? "output.weight" : "token_embd.weight", c.vocab_size, c.hidden_dim, w.head);
  w.layers.resize(static_cast<size_t>(c.num_layers));
  for (int i = 0; i < c.num_layers; ++i) {
    declare_layer(load, c, i, c.recurrent[static_cast<size_t>(i)], w.layers[static_cast<size_t>(i)]);
  }
  if (c.num_mtp_layers > 0) declare_mtp(load, c, w.mtp);
  check_unread_tensors(file, c, load.declared());
}

}  // namespace

void Model::check(const GgufFile& file) {
  const ModelConfig config = ModelConfig::read(file);
  const Tokenizer tokenizer = Tokenizer::load(file);
  ModelWeights weights;
  WeightLoader loader(file, LoadOptions(), weights);
  declare_model(loader, file, config, tokenizer, weights);
}

Model::Model() = default;
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Model Model::load(const std::string& path, const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  Model model;
  model.impl_ = std::make_unique<Impl>(GgufFile::open(path));
  Impl& m = *model.impl_;
  m.fingerprint = m.file.fingerprint();
  ModelWeights& w = m.weights;
  WeightLoader loader(m.file, options, w);
  declare_model(loader, m.file, m.config, m.tokenizer, w);
  std::chrono::steady_clock::duration elsewhere{};
  if (options.on_header) {
    const auto called = std::chrono::steady_clock::now();
    options.on_header(model);
    elsewhere = std::chrono::steady_clock::now() - called;
  }
  loader.load();

  const auto finish = [](MoeWeights& moe) {
    if (moe.up.first_row > 0) moe.up.all = moe.gate.all;
  };
  for (LayerWeights& layer : w.layers) finish(layer.moe);
  finish(w.mtp.layer.moe);
  if (w.mtp.embed.data == nullptr) w.mtp.embed = w.embed;
  if (w.mtp.head.data == nullptr) w.mtp.head = w.head;
  m.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin - elsewhere).count();
  return model;
}

const ModelConfig& Model::config() const {
  return impl_->config;
}
const Tokenizer& Model::tokenizer() const {
  return impl_->tokenizer;
}
const ModelWeights& Model::weights() const {
  return impl_->weights;
}
const std::string& Model::path() const {
  return impl_->file.path();
}
std::string Model::mtp_absence() const {
  const std::string& reason = impl_->config.mtp_absence;
  const std::vector<std::string> beside = find_mtp_files(path());
  if (reason.empty() || beside.empty()) return reason;
  return fmt::format("{} ({} beside it may hold one: an MTP layer in a file of its own is not supported)", reason,
                     fmt::join(beside, " or "));
}
std::vector<std::string> Model::notes() const {
  return metadata_notes(impl_->file);
}
const std::string& Model::fingerprint() const {
  return impl_->fingerprint;
}
size_t Model::file_bytes() const {
  return impl_->file.size_bytes();
}
void Model::check_unchanged() const {
  impl_->file.check_unchanged("in use");
}
double Model::load_seconds() const {
  return impl_->load_seconds;
}

}  // namespace foretoken
