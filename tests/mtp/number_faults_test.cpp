#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "mtp/decoder.h"
#include "tests/engine/model/random_model.h"

// Numbers that stop being finite end a command with the position and the layer, the same ones whatever the setting; in
// the MTP layer they end the drafting alone.

namespace foretoken {
namespace {

using test::GgufEdit;
using test::random_ids;
using test::RandomModel;
using test::TempFolder;

constexpr int kPromptTokens = 20, kNewTokens = 12;
constexpr int64_t kWholeTensor = -1;

struct Setting {
  int k = 0;
  int threads = 1;
  Isa isa = Isa::kScalar;
  int prompt_chunk = 64;
  MoeVerify core = MoeVerify::kGrouped;
  KvType kv_type = KvType::kF16;
};

struct Outcome {
  std::vector<TokenId> ids;  // handed out before the error, if there was one
  std::string error;         // without the file's name
  std::string draft_fault;
};

/// Multiplies the values of an F32 tensor from `first` on.
void multiply(GgufEdit& file, std::string_view name, float factor, int64_t first = 0, int64_t count = kWholeTensor) {
  GgufEdit::Tensor& tensor = file.tensor(name);
  REQUIRE(tensor.type_id == 0);
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  const size_t end = count == kWholeTensor ? values.size() : static_cast<size_t>(first + count);
  bool finite = true;
  for (size_t i = static_cast<size_t>(first); i < end; ++i) {
    values[i] *= factor;
    finite = finite && std::isfinite(values[i]);
  }
  REQUIRE(finite);  // the file itself passes all checks
  std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
}

/// One model file, decoded by one setting after the other.
class Spoiled {
 public:
  explicit Spoiled(const GgufEdit& file) : prompt_(random_ids(kPromptTokens, 256, 5)) {
    file.write(folder_.file("model.gguf"));
    model_.emplace(Model::load(folder_.file("model.gguf"), {}));
  }

  [[nodiscard]] Outcome decode(const Setting& setting, std::span<const TokenId> known = {}) const {
    SessionOptions session_options;
    session_options.ctx_size = 128;
    session_options.threads = setting.threads;
    session_options.isa = setting.isa;
    session_options.prompt_chunk = setting.prompt_chunk;
    session_options.moe_verify = setting.core;
    session_options.kv_type = setting.kv_type;
    session_options.with_mtp = setting.k > 0;
    session_options.max_window = setting.k + 1;
    Session session(*model_, session_options);
    Outcome outcome;
    DecodeOptions options;
    options.max_new_tokens = kNewTokens;
    options.mtp = setting.k;
    options.controller = false;
    options.draft_vocab = 0;
    options.ignore_eos = true;
    options.forced_continuation = known;
    options.forced_acceptance = 0.7;
    options.on_token = [&](TokenId id) {
      outcome.ids.push_back(id);
      return true;
    };
    try {
      outcome.draft_fault = foretoken::decode(session, prompt_, options).statistics.draft_fault;
    } catch (const InputError& error) {
      const std::string file = folder_.file("model.gguf") + ": ";
      outcome.error = error.what();
      REQUIRE(outcome.error.starts_with(file));
      outcome.error = outcome.error.substr(file.size());
    }
    return outcome;
  }

  [[nodiscard]] const std::vector<TokenId>& prompt() const { return prompt_; }

 private:
  TempFolder folder_;
  const std::vector<TokenId> prompt_;
  std::optional<Model> model_;
};

std::vector<Setting> all_settings(KvType kv_type) {
  std::vector<Setting> settings;
  int index = 0;
  for (int k : {0, 1, 4}) {
    for (Isa isa : supported_isas()) {
      for (int chunk : {1, 7, 64}) {
        const MoeVerify core = index % 2 == 0 ? MoeVerify::kGrouped : MoeVerify::kPerToken;
        settings.push_back({k, 1 + index % 3, isa, chunk, core, kv_type});
        ++index;
      }
    }
  }
  return settings;
}

struct Spoil {
  std::string tensor;
  float factor;
  std::string place;  // as the message names it
  std::string what;   // part of the message
  KvType kv_type = KvType::kF16;
  int64_t first = 0;  // value of the tensor
};

// Layer 0 is a delta net, layer 1 has attention, block 2 is the MTP layer.
const std::vector<Spoil> kSpoils = {
    {"token_embd.weight", 1e30f, "embedding", "embedding is not finite"},
    {"blk.0.ssm_beta.weight", 3e38f, "layer 0", "delta net's gates"},
    {"blk.0.ssm_alpha.weight", 3e38f, "layer 0", "delta net's gates"},
    {"blk.0.attn_qkv.weight", 1e30f, "layer 0", "delta net's queries or keys"},
    // The rows of the values alone, behind 2 x 2 heads of queries and keys.
    {"blk.0.attn_qkv.weight", 1e24f, "layer 0", "delta net's output", KvType::kF16, 4 * 64 * 256},
    {"blk.0.attn_gate.weight", 3e38f, "layer 0", "delta net adds"},
    {"blk.0.ssm_out.weight", 1e30f, "layer 0", "delta net adds"},
    {"blk.0.ffn_gate_inp.weight", 3e38f, "layer 0", "router"},
    {"blk.0.ffn_gate_inp_shexp.weight", 3e38f, "layer 0", "router"},
    {"blk.0.ffn_down_shexp.weight", 1e37f, "layer 0", "feed-forward"},
    {"blk.0.ffn_up_exps.weight", 1e37f, "layer 0", "feed-forward"},
    {"blk.1.attn_q.weight", 1e30f, "layer 1", "queries or gates"},
    {"blk.1.attn_q_norm.weight", 1e25f, "layer 1", "queries or gates"},
    {"blk.1.attn_k.weight", 1e30f, "layer 1", "keys are not finite"},
    {"blk.1.attn_k_norm.weight", 1e20f, "layer 1", "keys are not finite", KvType::kF32},
    {"blk.1.attn_k_norm.weight", 1e6f, "layer 1", "--kv-type f32"},
    {"blk.1.attn_v.weight", 3e5f, "layer 1", "--kv-type f32"},
    {"blk.1.attn_v.weight", 3e38f, "layer 1", "values are not finite", KvType::kF32},
    {"blk.1.attn_output.weight", 1e30f, "layer 1", "attention adds"},
    {"blk.1.ffn_down_exps.weight", 1e37f, "layer 1", "feed-forward"},
    {"output.weight", 3e38f, "output head", "logits are not finite"},
};

TEST_CASE("numbers that are not finite end a generation with the position and the layer, in every setting") {
  const Spoil spoil = GENERATE(from_range(kSpoils));
  INFO(spoil.tensor << " from " << spoil.first << " times " << spoil.factor);
  GgufEdit file = RandomModel{}.build();
  multiply(file, spoil.tensor, spoil.factor, spoil.first);
  const Spoiled model(file);
  std::optional<Outcome> reference;
  for (const Setting& setting : all_settings(spoil.kv_type)) {
    const Outcome got = model.decode(setting);
    if (!reference) reference = got;
    INFO("k " << setting.k << ", " << isa_name(setting.isa) << ", " << setting.threads << " threads, chunk "
              << setting.prompt_chunk);
    CHECK(got.error.find("position ") == 0);
    CHECK(got.error.find(", " + spoil.place + ": ") != std::string::npos);
    CHECK(got.error.find(spoil.what) != std::string::npos);
    CHECK(got.error == reference->error);
    CHECK(got.ids == reference->ids);
  }
}

TEST_CASE("values that only f32 caches hold are decoded with them") {
  GgufEdit file = RandomModel{}.build();
  multiply(file, "blk.1.attn_v.weight", 3e5f);
  const Outcome got = Spoiled(file).decode({0, 1, best_isa(), 64, MoeVerify::kGrouped, KvType::kF32});
  CHECK(got.error.empty());
  CHECK(got.ids.size() == kNewTokens);
}

// Token `id` cannot be normalised; nothing else in the file changes.
GgufEdit with_spoiled_token(TokenId id) {
  const RandomModel spec;
  GgufEdit file = spec.build();
  multiply(file, "token_embd.weight", 1e30f, id * spec.hidden_dim, spec.hidden_dim);
  return file;
}

TEST_CASE("tokens before the position of a fault come out, and no others, whatever the number of drafts") {
  const Spoiled whole(RandomModel{}.build());
  const std::vector<TokenId> text = whole.decode({}).ids;
  REQUIRE(text.size() == kNewTokens);
  for (const size_t at : {size_t{0}, size_t{4}, size_t{7}}) {
    if (std::find(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), text[at]) !=
        text.begin() + static_cast<std::ptrdiff_t>(at))
      continue;  // stands earlier too
    const Spoiled model(with_spoiled_token(text[at]));
    REQUIRE(std::find(model.prompt().begin(), model.prompt().end(), text[at]) == model.prompt().end());
    for (const Setting& setting : all_settings(KvType::kF16)) {
      INFO("token " << at << ", k " << setting.k);
      const Outcome got = model.decode(setting, text);
      CHECK(got.ids == std::vector<TokenId>(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at) + 1));
      CHECK(got.error.find("position " + std::to_string(kPromptTokens + at) + ", embedding: ") == 0);
    }
  }
}

TEST_CASE("a fault in a row that is taken back is nobody's concern") {
  const Spoiled whole(RandomModel{}.build());
  const std::vector<TokenId> text = whole.decode({}).ids;
  int stopped = 0;
  for (TokenId right : text) {
    const TokenId wrong = right + 1;  // what a forced draft is where it is to be wrong
    if (std::find(text.begin(), text.end(), wrong) != text.end()) continue;
    const Spoiled model(with_spoiled_token(wrong));
    if (std::find(model.prompt().begin(), model.prompt().end(), wrong) != model.prompt().end()) continue;
    for (const int k : {1, 4}) {
      const Outcome got = model.decode({k, 2, best_isa(), 64}, text);
      CHECK(got.error.empty());
      CHECK(got.ids == text);
      stopped += got.draft_fault.empty() ? 0 : 1;
    }
  }
  CHECK(stopped > 0);  // the MTP layer chains from the spoiled token
}

TEST_CASE("numbers of the MTP layer that are not finite stop the drafting and change no token") {
  const std::string tensor =
      GENERATE("blk.2.nextn.eh_proj.weight", "blk.2.nextn.enorm.weight", "blk.2.attn_v.weight",
               "blk.2.attn_output.weight", "blk.2.ffn_down_shexp.weight", "blk.2.nextn.hnorm.weight");
  INFO(tensor);
  const std::vector<TokenId> text = Spoiled(RandomModel{}.build()).decode({}).ids;
  GgufEdit file = RandomModel{}.build();
  multiply(file, tensor, 1e37f);
  const Spoiled model(file);
  for (const Setting& setting : all_settings(KvType::kF16)) {
    INFO("k " << setting.k << ", " << isa_name(setting.isa));
    const Outcome got = model.decode(setting, text);
    CHECK(got.error.empty());
    CHECK(got.ids == text);
    CHECK(got.draft_fault.empty() == (setting.k == 0));
    if (setting.k > 0) CHECK(got.draft_fault.find("position ") == 0);
    if (setting.k > 0) CHECK(got.draft_fault.find(", MTP layer: ") != std::string::npos);
  }
}

}  // namespace
}  // namespace foretoken
