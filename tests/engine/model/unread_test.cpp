#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"

// What a file says and nobody reads: tensors and keys that would change the text are refused by name, those that ask
// for what is done anyway are accepted.

namespace foretoken {
namespace {

using test::GgufEdit;
using test::RandomModel;
using test::TempFolder;

RandomModel small_model(const std::string& architecture = "qwen35moe") {
  RandomModel spec;
  spec.architecture = architecture;
  spec.hidden_dim = 64;
  spec.head_dim = 16;
  spec.rope_dim = 8;
  spec.state_size = 16;
  spec.num_experts = 4;
  spec.expert_dim = spec.shared_dim = 32;
  return spec;
}

/// What loading says, which is what checking the headers says; nothing if the file can be run.
std::string refusal(const GgufEdit& file) {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  file.write(path);
  const auto message_of = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  const std::string loading = message_of([&] { (void)Model::load(path, {}); });
  CHECK(message_of([&] { (void)Model::outline(GgufFile::open(path)); }) == loading);
  CHECK(loading.find('\n') == std::string::npos);
  return loading;
}

void check_refused(const GgufEdit& file, const std::vector<std::string>& words) {
  const std::string message = refusal(file);
  INFO("message: " << message);
  for (const std::string& word : words) {
    INFO("word: " << word);
    CHECK(message.find(word) != std::string::npos);
  }
}

void check_accepted(const GgufEdit& file) {
  CHECK(refusal(file) == "");
}

GgufEdit::Tensor floats(const std::string& name, std::vector<int64_t> shape, float value) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  GgufEdit::Tensor tensor{name, 0, std::move(shape),
                          std::vector<std::byte>(static_cast<size_t>(count) * sizeof(float))};
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(tensor.bytes.data() + static_cast<size_t>(i) * sizeof(float), &value, sizeof value);
  return tensor;
}

TEST_CASE("a tensor that nobody reads and that would change the text is refused by name") {
  struct Unread {
    const char* name;
    std::vector<int64_t> shape;
    std::vector<std::string> words;
    std::optional<float> nothing;  // the value that changes nothing
  };
  const std::vector<Unread> cases = {
      {"blk.1.attn_qkv.scale", {1}, {"multiplies"}, 1.0f},
      {"blk.0.ffn_gate_inp_shexp.scale", {1}, {"multiplies"}, 1.0f},
      {"token_embd.scale", {1}, {"multiplies"}, 1.0f},
      {"blk.1.layer_output_scale.weight", {1}, {"multiplies"}, 1.0f},
      {"blk.0.attn_q.bias", {128}, {"added"}, 0.0f},
      {"blk.1.attn_output.bias", {64}, {"added"}, 0.0f},
      {"blk.0.ffn_gate_inp.bias", {4}, {"added"}, 0.0f},
      {"blk.0.ffn_down_exps.bias", {64, 4}, {"added"}, 0.0f},
      {"blk.0.ssm_conv1d.bias", {128}, {"added"}, 0.0f},
      {"output.bias", {320}, {"added"}, 0.0f},
      {"output_norm.bias", {64}, {"added"}, 0.0f},
      {"blk.0.exp_probs_b.bias", {4}, {"which experts"}, 0.0f},
      {"blk.2.exp_probs_b", {4}, {"which experts"}, 0.0f},
      {"rope_freqs.weight", {4}, {"rotations"}, 1.0f},
      {"rope_factors_long.weight", {4}, {"rotations"}, 1.0f},
      {"blk.1.rope_freqs.weight", {4}, {"rotations"}, 1.0f},
      {"blk.1.attn_sinks.weight", {4}, {"softmax"}, std::nullopt},
      {"blk.1.post_ffw_norm.weight", {64}, {"normalises"}, std::nullopt},
      {"blk.0.attn_q.weight.lora_a", {4}, {"adapter"}, std::nullopt},
      {"blk.0.indexer.attn_k.weight", {64, 8}, {"no such tensor"}, std::nullopt},
      {"something.weight", {64}, {"no such tensor"}, std::nullopt},
      {"blk.01.attn_k.weight", {64}, {"no such tensor"}, std::nullopt},
  };
  const GgufEdit good = small_model().build();
  for (const Unread& unread : cases) {
    INFO(unread.name);
    GgufEdit file = good;
    file.tensors.push_back(floats(unread.name, unread.shape, 0.25f));
    std::vector<std::string> words = unread.words;
    words.insert(words.end(), {unread.name, "qwen35moe"});
    check_refused(file, words);
    if (!unread.nothing) continue;
    file.tensors.back() = floats(unread.name, unread.shape, *unread.nothing);
    check_accepted(file);
    // One value of many is enough.
    const float other = 0.25f;
    std::memcpy(&*(file.tensors.back().bytes.end() - 4), &other, 4);
    check_refused(file, words);
  }
}

TEST_CASE("a scale that does not fit its matrix is refused by name") {
  const GgufEdit good = small_model().build();
  const auto with = [&](const std::string& name, std::vector<int64_t> shape, float value) {
    GgufEdit file = good;
    file.tensors.push_back(floats(name, std::move(shape), value));
    return file;
  };
  check_accepted(with("blk.0.attn_qkv.scale", {1}, 0.25f));
  check_accepted(with("blk.0.ffn_down_exps.scale", {4}, -3));
  check_accepted(with("blk.2.nextn.eh_proj.scale", {1}, 0));
  check_accepted(with("output.scale", {1}, 2));
  check_refused(with("blk.0.attn_qkv.scale", {4}, 0.25f), {"blk.0.attn_qkv.scale", "shape [4]", "asks for 1"});
  check_refused(with("blk.0.ffn_down_exps.scale", {1}, 0.25f), {"blk.0.ffn_down_exps.scale", "asks for 4"});
  check_refused(with("output.scale", {1}, std::numeric_limits<float>::infinity()), {"output.scale", "not finite"});
}

TEST_CASE("everything that speaks against a file is listed, the first as loading says it") {
  GgufEdit file = small_model().build();
  file.remove_tensor("blk.0.attn_gate.weight");
  file.remove_tensor("blk.1.attn_q_norm.weight");
  file.tensor("blk.1.ffn_up_exps.weight").type_id = 99;
  file.tensors.push_back(floats("blk.1.attn_qkv.scale", {1}, 2));
  file.tensors.push_back(floats("something.weight", {4}, 2));
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  file.write(path);
  const std::vector<std::string> found = Model::obstacles(GgufFile::open(path));
  REQUIRE(found.size() == 5);
  for (const char* name : {"blk.0.attn_gate.weight", "blk.1.attn_q_norm.weight", "blk.1.ffn_up_exps.weight",
                           "blk.1.attn_qkv.scale", "something.weight"}) {
    CHECK(std::count_if(found.begin(), found.end(), [&](const std::string& line) {
            return line.find(std::string(" ") + name) != std::string::npos;
          }) == 1);
  }
  std::string loading;
  try {
    (void)Model::load(path, {});
  } catch (const InputError& error) {
    loading = error.what();
  }
  CHECK(found[0] == loading);
  small_model().write(path);
  CHECK(Model::obstacles(GgufFile::open(path)).empty());
}

TEST_CASE("tensors that no text depends on are accepted") {
  GgufEdit file = small_model().build();
  for (const char* name : {"v.patch_embd.weight", "mm.0.weight", "a.conv1d.1.weight", "mtp.fc.weight",
                           "output_extra.weight", "blk.0.attn_qkv.input_scale"}) {
    file.tensors.push_back(floats(name, {4}, 0.25f));
  }
  check_accepted(file);
}

TEST_CASE("names and forms of other converters are read") {
  GgufEdit file = small_model().build();
  SECTION("the delta net's time steps without a suffix") {
    file.tensor("blk.0.ssm_dt.bias").name = "blk.0.ssm_dt";
    check_accepted(file);
  }
  SECTION("the experts' width for each layer") {
    file.set_int32s("qwen35moe.expert_feed_forward_length", {32, 32, 32});
    check_accepted(file);
    file.set_int32s("qwen35moe.expert_feed_forward_length", {32, 64, 32});
    check_refused(file, {"expert_feed_forward_length", "64"});
  }
}

TEST_CASE("one matrix in two forms is refused: only one of them would be read") {
  RandomModel spec = small_model();
  spec.fused_gate_up = true;
  GgufEdit file = spec.build();
  const GgufEdit apart = small_model().build();
  file.tensors.push_back(GgufEdit(apart).tensor("blk.0.ffn_up_exps.weight"));
  check_refused(file, {"blk.0.ffn_up_exps.weight"});
  file = apart;
  file.tensors.push_back(floats("blk.1.attn_qkv.weight", {64, 192}, 1));
  check_refused(file, {"blk.1.attn_q.weight", "would not be read"});
}

struct Key {
  std::string name;
  float value;
  float off;  // asks for what is done anyway
};

TEST_CASE("a key that changes the arithmetic is refused by name and value, and accepted where it changes nothing") {
  const std::vector<Key> cases = {
      {"rope.scaling.alpha", 1000, 1},
      {"rope.freq_base_swa", 500, 10000},
      {"rope.dimension_count_swa", 4, 8},
      {"logit_scale", 0.0625f, 1},
      {"final_logit_softcapping", 30, 0},
      {"attn_logit_softcapping", 50, 0},
      {"router_logit_softcapping", 30, 0},
      {"embedding_scale", 12, 1},
      {"residual_scale", 0.22f, 1},
      {"attention.scale", 0.0883883f, 0.25f},
      {"attention.output_scale", 2, 1},
      {"attention.value_scale", 2, 1},
      {"attention.clamp_kqv", 8, 0},
      {"attention.max_alibi_bias", 8, 0},
      {"attention.temperature_scale", 0.1f, 0},
      {"attention.sliding_window", 128, 4096},
      {"attention.sliding_window", 4095, 0},
      {"attention.sliding_window_pattern", 4, 0},
      {"attention.key_length_swa", 32, 16},
      {"attention.shared_kv_layers", 1, 0},
      {"leading_dense_block_count", 1, 0},
      {"moe_every_n_layers", 2, 1},
      {"interleave_moe_layer_step", 2, 1},
      {"expert_weights_scale", 2.5f, 1},
      {"expert_weights_norm", 0, 1},
      {"expert_gating_func", 2, 1},
      {"expert_group_count", 4, 1},
      {"expert_group_used_count", 4, 0},
      {"expert_shared_count", 2, 1},
      {"embedding_length_out", 32, 64},
      {"attention.causal", 0, 1},
      {"use_parallel_residual", 1, 0},
  };
  const GgufEdit good = small_model().build();
  for (const Key& key : cases) {
    const std::string name = "qwen35moe." + key.name;
    INFO(name);
    GgufEdit file = good;
    file.set_float32(name, key.value);
    check_refused(file, {name});
    file.set_float32(name, key.off);
    check_accepted(file);
  }
}

TEST_CASE("rotations: every spelling of scaling, and none of them where nothing is scaled") {
  GgufEdit file = small_model().build();
  const std::string scaling = "qwen35moe.rope.scaling.";
  SECTION("a type that is not known") {
    const std::string type = GENERATE("longrope", "su", "dynamic", "llama3", "mrope", "");
    file.set_string(scaling + "type", type);
    check_refused(file, {scaling + "type", type});
    file.set_float32(scaling + "factor", 1);
    check_refused(file, {scaling + "type", type});
  }
  SECTION("a type that is no string") {
    file.set_uint32(scaling + "type", 2);
    check_refused(file, {scaling + "type", "2"});
  }
  SECTION("linear and YaRN by a factor") {
    const std::string type = GENERATE("linear", "yarn");
    file.set_string(scaling + "type", type);
    file.set_float32(scaling + "factor", 4);
    file.set_uint32(scaling + "original_context_length", 2048);
    check_accepted(file);
  }
  SECTION("factors and lengths that no rotation can have") {
    const std::string key =
        GENERATE("attn_factor", "yarn_attn_factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow");
    file.set_float32(scaling + key, 0);
    check_refused(file, {scaling + key, "not positive"});
    file.remove_key(scaling + key);
    file.set_float32(scaling + "factor", -4);
    check_refused(file, {scaling + "factor", "negative"});
  }
  SECTION("linear without a factor scales by 1") {
    file.set_string(scaling + "type", "linear");
    check_accepted(file);
  }
  SECTION("type none scales never") {
    file.set_string(scaling + "type", "none");
    file.set_float32(scaling + "factor", 4);
    check_accepted(file);
  }
  SECTION("what goes with YaRN and changes nothing alone") {
    file.set_uint32(scaling + "original_context_length", 2048);
    file.set_bool(scaling + "finetuned", true);
    file.set_float32(scaling + "yarn_beta_fast", 32);
    file.set_float32(scaling + "yarn_beta_slow", 1);
    check_accepted(file);
  }
  SECTION("a factor that is no number") {
    file.set_string(scaling + "factor", "4");
    check_refused(file, {scaling + "factor", "4"});
  }
  SECTION("a factor for each layer") {
    file.set_int32s(scaling + "factor", {1, 1, 2});
    check_refused(file, {scaling + "factor", "array"});
  }
  SECTION("sections of a fourth axis") {
    file.set_int32s("qwen35moe.rope.dimension_sections", {1, 1, 1, 1});
    check_refused(file, {"rope.dimension_sections", "[1, 1, 1, 1]"});
    file.set_int32s("qwen35moe.rope.dimension_sections", {2, 1, 1});
    check_accepted(file);
  }
}

TEST_CASE("a key of the architecture that is not known is refused, those that change nothing are not") {
  GgufEdit file = small_model().build();
  SECTION("not known") {
    const std::string key = GENERATE("rope.scaling.new_factor", "hyper_connection.count", "attention.indexer.top_k",
                                     "swiglu_clamp_exp", "block_counts");
    file.set_uint32("qwen35moe." + key, 4);
    check_refused(file, {"qwen35moe." + key, "does not know"});
  }
  SECTION("known to change nothing") {
    file.set_uint32("qwen35moe.vocab_size", 320);
    file.set_uint32("qwen35moe.pooling_type", 0);
    file.set_uint32("qwen35moe.feed_forward_length", 5472);
    file.set_string("qwen35moe.tensor_data_layout", "reference");
    file.set_string("general.type", "model");
    file.set_string("mradermacher.quantized_by", "somebody");
    file.set_string("quantize.imatrix.file", "imatrix.dat");
    check_accepted(file);
  }
  SECTION("tensors in another order") {
    file.set_string("qwen35moe.tensor_data_layout", "Meta AI original pth");
    check_refused(file, {"tensor_data_layout", "Meta AI"});
  }
  SECTION("all groups of experts are used") {
    file.set_uint32("qwen35moe.expert_group_count", 2);
    file.set_uint32("qwen35moe.expert_group_used_count", 2);
    check_accepted(file);
    file.set_uint32("qwen35moe.expert_group_used_count", 1);
    check_refused(file, {"expert_group_count"});
  }
  SECTION("an adapter") {
    file.set_string("general.type", "adapter");
    check_refused(file, {"general.type", "adapter"});
  }
}

TEST_CASE("experts and shared experts in an architecture that has none are refused") {
  GgufEdit dense = small_model("qwen35").build();
  dense.set_uint32("qwen35.expert_count", 8);
  check_refused(dense, {"qwen35.expert_count", "8"});
  dense.set_uint32("qwen35.expert_count", 0);
  check_accepted(dense);
  GgufEdit unshared = small_model("qwen3moe").build();
  unshared.set_uint32("qwen3moe.expert_shared_feed_forward_length", 32);
  check_refused(unshared, {"qwen3moe.expert_shared_feed_forward_length", "32"});
  unshared.set_uint32("qwen3moe.expert_shared_feed_forward_length", 0);
  unshared.set_uint32("qwen3moe.expert_shared_count", 0);
  check_accepted(unshared);
}

TEST_CASE("what a file recommends and nobody applies is told") {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  GgufEdit file = small_model().build();
  const auto notes = [&] {
    file.write(path);
    const std::vector<std::string> lines = Model::load(path, {}).notes();
    return fmt::format("{}", fmt::join(lines, "\n"));
  };
  CHECK(notes() == "");
  file.set_bool("tokenizer.ggml.add_eos_token", false);
  file.set_uint32("tokenizer.ggml.padding_token_id", 261);
  CHECK(notes() == "");
  file.set_float32("general.sampling.temp", 0.5f);
  file.set_uint32("general.sampling.top_k", 20);
  file.set_bool("tokenizer.ggml.add_eos_token", true);
  file.set_int32s("tokenizer.ggml.suppress_tokens", {1, 2});
  const std::string text = notes();
  INFO(text);
  for (const char* word : {"temp 0.5", "top_k 20", "--temp", "add_eos_token", "suppress_tokens", "not used"})
    CHECK(text.find(word) != std::string::npos);
}

// ---- the MTP layer and its key
// ---------------------------------------------------------------------------------------

GgufEdit without_block(GgufEdit file, const std::string& prefix) {
  std::erase_if(file.tensors, [&](const GgufEdit::Tensor& tensor) { return tensor.name.starts_with(prefix); });
  return file;
}

const std::string kMtpKey = "qwen35moe.nextn_predict_layers";
const std::string kCountKey = "qwen35moe.block_count";

TEST_CASE("an MTP layer that is declared and absent: the trunk runs, and what is missing is told") {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  without_block(small_model().build(), "blk.2.").write(path);
  const Model model = Model::load(path, {});
  CHECK_FALSE(model.has_mtp());
  CHECK(model.config().num_layers == 2);
  for (const std::string& word : {kMtpKey, std::string("blk.2.nextn.*"), std::string("MTP layer")}) {
    INFO(model.mtp_absence() << " without " << word);
    CHECK(model.mtp_absence().find(word) != std::string::npos);
  }
  CHECK(model.mtp_absence().find("--model-draft") != std::string::npos);
}

TEST_CASE("a part of an MTP layer is refused by what is missing") {
  const GgufEdit good = small_model().build();
  check_refused(without_block(good, "blk.2.nextn."), {"blk.2.nextn.*", kMtpKey, "MTP"});
  check_refused(without_block(good, "blk.2.nextn.eh_proj"), {"blk.2.nextn.eh_proj.weight", "missing"});
  check_refused(without_block(good, "blk.2.ffn_"), {"blk.2.ffn_", "missing"});
}

TEST_CASE("an MTP layer that is present and not declared is refused by the key") {
  // With an interval of 1 the MTP layer has all that a layer of the trunk has: it would run as one.
  RandomModel spec = small_model();
  spec.attention_interval = GENERATE(1, 2);
  GgufEdit file = spec.build();
  SECTION("key 0") {
    file.set_uint32(kMtpKey, 0);
    check_refused(file, {"blk.2.nextn.", kMtpKey, "is 0", "nextn_predict_layers of 1"});
  }
  SECTION("key missing") {
    file.remove_key(kMtpKey);
    check_refused(file, {"blk.2.nextn.", kMtpKey, "is missing", "nextn_predict_layers of 1"});
  }
}

TEST_CASE("blocks beyond the block count are refused") {
  GgufEdit file = small_model().build();
  file.set_uint32(kCountKey, 2);
  SECTION("the MTP layer, not declared") {
    file.remove_key(kMtpKey);
    check_refused(file, {"blk.2.nextn.", kCountKey + " is 2", "is missing", "3 blocks"});
  }
  SECTION("the MTP layer, declared") {
    check_refused(file, {"blk.2.nextn.", kCountKey + " is 2", "is 1", "3 blocks"});
  }
  SECTION("a layer of the trunk") {
    file = without_block(small_model().build(), "blk.2.");
    file.set_uint32(kCountKey, 1);
    file.remove_key(kMtpKey);
    check_refused(file, {"blk.1.", kCountKey + " is 1"});
  }
}

TEST_CASE("a file that holds an MTP layer alone is told from a model") {
  GgufEdit file = without_block(without_block(small_model().build(), "blk.0."), "blk.1.");
  check_refused(file, {"MTP layer alone", "block 2", "model's own file"});
}

TEST_CASE("an MTP layer in an architecture without one is refused") {
  GgufEdit file = small_model("qwen3moe").build();
  file.tensors.push_back(floats("blk.1.nextn.eh_proj.weight", {128, 64}, 0.5f));
  check_refused(file, {"blk.1.nextn.eh_proj.weight", "not supported"});
}

}  // namespace
}  // namespace foretoken
