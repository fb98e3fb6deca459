#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "engine/model/model.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/engine_logits.h"
#include "tests/engine/model/mixtures.h"
#include "tests/engine/model/random_model.h"
#include "tests/engine/model/reference.h"

// The engine against the reference: the same weights, the reference in double precision, logits of the trunk and of the
// MTP layer.

namespace foretoken {
namespace {

using test::Activations;
using test::EngineLogits;
using test::GgufEdit;
using test::random_ids;
using test::RandomModel;
using test::ReferenceModel;
using test::ReferenceResult;
using test::run_engine;
using test::TempFolder;
using test::worst_error;

// Bound on the relative error (norm of the difference over norm of the logits) of a position. With u = 2^-24, the
// rounding unit of float32:
//   * A dot product of n random terms in 32 lanes takes n/32 fused steps in a lane and 5 in the fold. Each rounds a
//   partial sum that is at most
//     as large as the result (both grow like the root of the number of terms), and rounding errors add like a random
//     walk: sqrt(n/32 + 5) u. n = 512 at most here: 4.6 u. A quantised dot has fewer steps: one or two a block.
//   * Norms, gates, softmax, rotations, the convolution and the delta net's update add a few u each; a layer has about
//   4 dots and 6 of these in a
//     row, taken together less than 10 x 5 u in the root of squares: sqrt(10) x 5 u = 16 u.
//   * Three layers, joined in the root of squares: 28 u. Random weights hand an error on as they hand on the signal,
//   except for exp in gates and
//     softmax, whose inputs are of size 3 and turn a relative error into one 3 times as large, at most once a layer:
//     3^3 = 27.
// 28 x 27 u = 4.5e-5. Measured: 3e-7 in the median, 8e-6 at most, and 2e-5 with halves in the cache.
constexpr double kFloatBound = 4.5e-5;

// With 8-bit rows a value on the edge of its grid can fall on either side, as its float32 form rounds, and the two
// sides differ by a whole step: 1e-3 of the logits. So a prompt is looked for in which no value comes near an edge and
// no router decision is close; that such a prompt was found says nothing about the engine, which has not run yet.
struct ClearPrompt {
  std::vector<TokenId> ids;
  ReferenceResult want;
};

// A value x / d (|x / d| <= 127) that the engine has to a relative error of e lies 127 e from the reference's at most;
// errors of the inner rows are some 10 u (see above) of the row's size, a third of its largest value: 127 / 3 * 10 u
// = 2.5e-5.
constexpr double kRoundingMargin = 2.5e-5;
// Router logits are of size 1 and 10 u off: twice that, and ten times more to be safe.
constexpr double kRouterMargin = 1e-5;

ClearPrompt find_clear_prompt(ReferenceModel& reference, int length) {
  ClearPrompt best;
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    std::vector<TokenId> ids = random_ids(length, reference.vocab_size(), seed);
    ReferenceResult want = reference.forward(ids);
    if (want.margins.rounding < kRoundingMargin || want.margins.router < kRouterMargin) continue;
    return {std::move(ids), std::move(want)};
  }
  FAIL("no clear prompt among 400");
  return best;
}

// Loads `path` with and without repacking and compares both layers' logits with the reference's, whole and in chunks of
// 3 rows.
void check_against(const std::string& path, const std::vector<TokenId>& ids, const ReferenceResult& want,
                   KvType kv_type, double bound) {
  for (const bool repack : {true, false}) {
    LoadOptions load;
    load.repack = repack;
    const Model model = Model::load(path, load);
    for (const int chunk : {static_cast<int>(ids.size()), 3}) {
      const EngineLogits got = run_engine(model, ids, kv_type, model.has_mtp(), chunk);
      INFO("repack " << repack << ", chunks of " << chunk);
      const double trunk = worst_error(got.trunk, want.logits, got.vocab_size);
      INFO("relative error of the trunk's logits " << trunk);
      CHECK(trunk < bound);
      if (!model.has_mtp()) continue;
      const double mtp = worst_error(got.mtp, want.mtp_logits, got.vocab_size);
      INFO("relative error of the MTP layer's logits " << mtp);
      CHECK(mtp < bound);
    }
  }
}

// One file, exact activations: for files whose matrices are all float.
void check_float_file(const std::string& path, KvType kv_type = KvType::kF32, uint64_t seed = 101) {
  ReferenceModel reference(path, {.activations = Activations::kExact, .kv_type = kv_type});
  const std::vector<TokenId> ids = random_ids(20, reference.vocab_size(), seed);
  const ReferenceResult want = reference.forward(ids);
  REQUIRE(want.margins.router > kRouterMargin);  // without routers beyond every bound
  check_against(path, ids, want, kv_type, kFloatBound);
}

void check_float_model(const RandomModel& spec, KvType kv_type = KvType::kF32) {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  spec.write(path);
  check_float_file(path, kv_type, spec.seed + 100);
}

// One model with quantised matrices, on a clear prompt.
void check_quantised_file(const std::string& path) {
  ReferenceModel reference(path, {.activations = Activations::kInt8});
  const ClearPrompt prompt = find_clear_prompt(reference, 4);
  check_against(path, prompt.ids, prompt.want, KvType::kF32, kFloatBound);
}

void check_quantised_model(const RandomModel& spec) {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  spec.write(path);
  check_quantised_file(path);
}

const std::vector<std::string> kArchitectures = {"qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama"};

TEST_CASE("float models of every family agree with the reference") {
  const std::string architecture = GENERATE(from_range(kArchitectures));
  const WeightType type = GENERATE(WeightType::kF32, WeightType::kF16, WeightType::kBF16);
  INFO(architecture << " " << weight_type_info(type).name);
  RandomModel spec;
  spec.architecture = architecture;
  spec.types = {type};
  check_float_model(spec);
}

TEST_CASE("half-precision keys and values agree with the reference") {
  const std::string architecture = GENERATE(from_range(kArchitectures));
  INFO(architecture);
  RandomModel spec;
  spec.architecture = architecture;
  // A value on the edge between two halves may fall on either side: 2^-11 of one of head_dim values of one of 20
  // positions. Ten such in a pass move a logit by less than 2^-11 sqrt(10 / (64 * 20)) = 4e-5, which the float bound
  // covers.
  check_float_model(spec, KvType::kF16);
}

TEST_CASE("every quantised weight type agrees with the reference that rounds rows to 8 bits") {
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (info.is_float()) continue;
    DYNAMIC_SECTION(info.name) {
      RandomModel spec;
      spec.types = {info.type};
      spec.seed = static_cast<uint64_t>(info.type);
      check_quantised_model(spec);
    }
  }
}

TEST_CASE("files of every mixture of types that people publish agree with the reference") {
  for (const test::Mixture& mixture : test::mixtures()) {
    DYNAMIC_SECTION(mixture.name) {
      const std::vector<std::string> unsupported = test::unsupported_types(mixture);
      if (!unsupported.empty()) {
        WARN(fmt::format("not run: {} needs {}", mixture.name, fmt::join(unsupported, ", ")));
        return;
      }
      check_quantised_model(test::model_of(mixture));
    }
  }
}

TEST_CASE("a file that mixes all weight types agrees with the reference") {
  const std::string architecture = GENERATE(from_range(kArchitectures));
  INFO(architecture);
  RandomModel spec;
  spec.architecture = architecture;
  spec.types.clear();
  for (const WeightTypeInfo& info : all_weight_types()) spec.types.push_back(info.type);
  check_quantised_model(spec);
}

TEST_CASE("the types that llama-quantize deals out as Q4_K_M agree with the reference") {
  RandomModel spec;
  spec.types = {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kQ8_0, WeightType::kQ5_K};
  check_quantised_model(spec);
}

TEST_CASE(
    "shapes of the delta net: as many value heads as key heads, two, four times as many, wide heads, other taps") {
  RandomModel spec;
  SECTION("equal") {
    spec.num_key_heads = spec.num_value_heads = 4;
  }
  SECTION("four times as many") {
    spec.num_key_heads = 1;
  }
  SECTION("heads of 128") {
    spec.state_size = 128;
    spec.num_key_heads = 1;
    spec.num_value_heads = 2;
  }
  SECTION("heads of 16") {
    spec.state_size = 16;
    spec.num_key_heads = 3;
    spec.num_value_heads = 6;
  }
  SECTION("heads of 80, no multiple of 64 columns") {
    spec.state_size = 80;
    spec.num_key_heads = 1;
    spec.num_value_heads = 2;
  }
  SECTION("two taps") {
    spec.conv_taps = 2;
  }
  SECTION("one tap: no history") {
    spec.conv_taps = 1;
  }
  SECTION("three delta nets to one attention") {
    spec.num_layers = 4;
    spec.attention_interval = 4;
    spec.experts_per_token = 1;
  }
  check_float_model(spec);
}

TEST_CASE("shapes of the attention: one head a group, many, whole and partial rotation, odd head sizes") {
  RandomModel spec;
  SECTION("as many key heads as queries") {
    spec.num_kv_heads = 4;
  }
  SECTION("one key head") {
    spec.num_kv_heads = 1;
  }
  SECTION("whole rotation") {
    spec.rope_dim = 64;
  }
  SECTION("heads of 40") {
    spec.head_dim = 40;
    spec.rope_dim = 10;
  }
  SECTION("qwen3moe") {
    spec.architecture = "qwen3moe";
    spec.num_heads = 6;
    spec.num_kv_heads = 3;
  }
  check_float_model(spec);
}

TEST_CASE("biases of queries, keys and values, and one tensor for all three, agree with the reference") {
  RandomModel spec;
  spec.architecture = GENERATE("qwen35moe", "qwen3moe", "llama");
  spec.attention_bias = GENERATE(false, true);
  spec.fused_qkv = GENERATE(false, true);
  spec.num_heads = GENERATE(4, 6);
  if (spec.num_heads == 6) spec.head_dim = 40, spec.rope_dim = 10;  // parts that do not begin at whole groups of rows
  INFO(spec.architecture << (spec.attention_bias ? ", biases" : "") << (spec.fused_qkv ? ", fused" : ""));
  check_float_model(spec);
}

TEST_CASE("delta nets by key head, fused, agree with the reference") {
  RandomModel spec;
  spec.architecture = "qwen3next";
  spec.fused_inputs = GENERATE(false, true);
  spec.num_key_heads = GENERATE(1, 2, 4);
  INFO(spec.num_key_heads << " key heads" << (spec.fused_inputs ? ", fused" : ""));
  check_float_model(spec);
}

TEST_CASE("scaled rotations agree with the reference") {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  RandomModel spec;
  spec.architecture = GENERATE("qwen35moe", "qwen3moe", "llama");
  const std::string prefix = spec.architecture + ".rope.scaling.";
  test::GgufEdit file = spec.build();
  SECTION("a factor without a type is linear") {
    file.set_float32(prefix + "factor", 4);
  }
  SECTION("linear, by the old name of its factor") {
    file.set_string(prefix + "type", "linear");
    file.set_float32(prefix + "factor", 2.5f);
    file.write(path);
    const std::vector<TokenId> ids = random_ids(12, 320, 3);
    const auto run = [&] { return run_engine(Model::load(path, {}), ids, KvType::kF32, /*with_mtp=*/false, 12); };
    const EngineLogits named = run();
    file.remove_key(prefix + "factor");
    file.set_float32(spec.architecture + ".rope.scale_linear", 2.5f);
    file.write(path);
    CHECK(named.trunk == run().trunk);
    file.set_float32(prefix + "factor", 2.5f);
  }
  SECTION("YaRN") {
    file.set_string(prefix + "type", "yarn");
    file.set_float32(prefix + "factor", 4);
    file.set_uint32(prefix + "original_context_length", 1024);
  }
  file.write(path);
  check_float_file(path);
}

TEST_CASE("shapes of the experts: 13 of them, one a token, all of them, dimensions that do not interleave") {
  RandomModel spec;
  spec.architecture = GENERATE("qwen35moe", "qwen3moe");
  INFO(spec.architecture);
  SECTION("13 experts, 3 a token") {
    spec.num_experts = 13;
    spec.experts_per_token = 3;
  }
  SECTION("one a token") {
    spec.experts_per_token = 1;
  }
  SECTION("all of them") {
    spec.experts_per_token = spec.num_experts = 5;
  }
  SECTION("a single expert") {
    spec.experts_per_token = spec.num_experts = 1;
  }
  SECTION("rows of experts no multiple of 16") {
    spec.expert_dim = 72;
  }
  SECTION("everything odd") {
    spec.hidden_dim = 132;
    spec.expert_dim = 50;
    spec.shared_dim = 90;
    spec.vocab_size = 333;
    spec.head_dim = 20;
    spec.rope_dim = 10;
  }
  check_float_model(spec);
}

TEST_CASE("quantised experts whose rows do not interleave agree with the reference") {
  RandomModel spec;
  spec.architecture = GENERATE("qwen35moe", "qwen3moe");
  INFO(spec.architecture);
  spec.num_experts = 13;
  spec.experts_per_token = 1;
  SECTION("expert dimension 96 + 8: float rows down, quantised rows gate and up") {
    spec.expert_dim = 104;
    spec.types = {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kQ3_K};
  }
  SECTION("vocabulary of 333: the head does not interleave") {
    spec.vocab_size = 333;
    spec.types = {WeightType::kQ5_K};
  }
  SECTION("rows of 32: blocks of 32 alone") {
    spec.hidden_dim = 96;
    spec.expert_dim = 32;
    spec.types = {WeightType::kQ4_0, WeightType::kQ8_0, WeightType::kMXFP4, WeightType::kIQ4_NL, WeightType::kQ5_1};
  }
  check_quantised_model(spec);
}

TEST_CASE("a head tied to the embeddings agrees with the reference") {
  RandomModel spec;
  spec.tied_head = true;
  SECTION("F32") {
    check_float_model(spec);
  }
  SECTION("F16, qwen3moe") {
    spec.architecture = "qwen3moe";
    spec.types = {WeightType::kF16};
    check_float_model(spec);
  }
  SECTION("Q6_K") {
    spec.types = {WeightType::kQ6_K};
    check_quantised_model(spec);
  }
}

TEST_CASE("gate and up fused in one tensor agree with the reference and with the same weights in two tensors") {
  RandomModel spec;
  spec.fused_gate_up = true;
  SECTION("F32") {
    check_float_model(spec);
  }
  SECTION("qwen3moe, F16") {
    spec.architecture = "qwen3moe";
    spec.types = {WeightType::kF16};
    check_float_model(spec);
  }
  SECTION("Q4_K") {
    spec.types = {WeightType::kQ4_K};
    check_quantised_model(spec);
  }
  SECTION("Q4_K, halves that do not interleave") {
    spec.types = {WeightType::kQ4_K};
    spec.expert_dim = 40;
    check_quantised_model(spec);
  }
  SECTION("the bits of two tensors") {
    spec.types = {WeightType::kQ4_K};
    const TempFolder folder;
    GgufEdit file = spec.build();
    file.write(folder.file("fused.gguf"));
    for (size_t i = 0; i < file.tensors.size(); ++i) {
      const size_t at = file.tensors[i].name.find("ffn_gate_up_exps");
      if (at == std::string::npos) continue;
      GgufEdit::Tensor gate = file.tensors[i], up = file.tensors[i];
      gate.name.replace(at, 16, "ffn_gate_exps");
      up.name.replace(at, 16, "ffn_up_exps");
      gate.shape[1] = up.shape[1] = spec.expert_dim;
      const size_t half = file.tensors[i].bytes.size() / static_cast<size_t>(2 * spec.num_experts);
      gate.bytes.clear(), up.bytes.clear();
      for (size_t part = 0; part < static_cast<size_t>(2 * spec.num_experts); ++part) {
        const auto begin = file.tensors[i].bytes.begin() + static_cast<std::ptrdiff_t>(part * half);
        std::vector<std::byte>& to = part % 2 == 0 ? gate.bytes : up.bytes;
        to.insert(to.end(), begin, begin + static_cast<std::ptrdiff_t>(half));
      }
      file.tensors[i] = std::move(gate);
      file.tensors.push_back(std::move(up));
    }
    file.write(folder.file("two.gguf"));
    const std::vector<TokenId> ids = random_ids(12, spec.vocab_size, 7);
    const EngineLogits fused = run_engine(Model::load(folder.file("fused.gguf"), {}), ids, KvType::kF16, true, 12);
    const EngineLogits two = run_engine(Model::load(folder.file("two.gguf"), {}), ids, KvType::kF16, true, 12);
    CHECK(fused.trunk == two.trunk);
    CHECK(fused.mtp == two.mtp);
  }
}

TEST_CASE("scales beside matrices agree with the reference") {
  RandomModel spec;
  spec.scales = true;
  SECTION("F32, every architecture") {
    spec.architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
    INFO(spec.architecture);
    check_float_model(spec);
  }
  SECTION("tied head, fused gate and up, F16") {
    spec.tied_head = spec.fused_gate_up = true;
    spec.types = {WeightType::kF16};
    check_float_model(spec);
  }
  SECTION("fused inputs") {
    spec.architecture = "qwen3next";
    spec.fused_inputs = true;
    check_float_model(spec);
  }
  SECTION("biases, one tensor for queries, keys and values") {
    spec.attention_bias = spec.fused_qkv = true;
    check_float_model(spec);
  }
  SECTION("NVFP4, which never comes without") {
    spec.types = {WeightType::kNVFP4};
    check_quantised_model(spec);
  }
  SECTION("Q4_K and Q8_0, fused gate and up") {
    spec.fused_gate_up = true;
    spec.types = {WeightType::kQ4_K, WeightType::kQ8_0};
    check_quantised_model(spec);
  }
}

TEST_CASE("what an MTP layer may leave out or bring along agrees with the reference") {
  RandomModel spec;
  GgufEdit file = spec.build();
  const std::string block = "blk.2.nextn.";
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  SECTION("no shared_head_norm: output_norm serves") {
    file.remove_tensor(block + "shared_head_norm.weight");
  }
  SECTION("embeddings and a head of its own") {
    RandomModel other = spec;
    other.seed = 2;
    GgufEdit from = other.build();
    GgufEdit::Tensor embed = from.tensor("token_embd.weight"), head = from.tensor("output.weight");
    embed.name = block + "embed_tokens.weight";
    head.name = block + "shared_head_head.weight";
    file.tensors.push_back(embed);
    file.tensors.push_back(head);
  }
  SECTION("no MTP layer at all") {
    std::erase_if(file.tensors, [](const GgufEdit::Tensor& t) { return t.name.starts_with("blk.2."); });
    file.set_uint32("qwen35moe.block_count", 2);
    file.remove_key("qwen35moe.nextn_predict_layers");
  }
  file.write(path);
  ReferenceModel reference(path);
  const std::vector<TokenId> ids = random_ids(20, spec.vocab_size, 5);
  check_against(path, ids, reference.forward(ids), KvType::kF32, kFloatBound);
}

TEST_CASE("a context longer than one attention split agrees with the reference") {
  RandomModel spec;
  spec.architecture = GENERATE("qwen35moe", "qwen3moe");
  spec.hidden_dim = 64;
  spec.head_dim = 32;
  spec.expert_dim = spec.shared_dim = 32;
  spec.state_size = 16;
  spec.experts_per_token = spec.num_experts = 2;  // no router decision can flip over so many rows
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  spec.write(path);
  ReferenceModel reference(path);
  const std::vector<TokenId> ids = random_ids(2 * kAttentionSplit + 9, spec.vocab_size, 3);
  const ReferenceResult want = reference.forward(ids);
  const Model model = Model::load(path, {});
  for (const int chunk : {1, 100, static_cast<int>(ids.size())}) {
    const EngineLogits got = run_engine(model, ids, KvType::kF32, model.has_mtp(), chunk);
    INFO(spec.architecture << ", chunks of " << chunk);
    CHECK(worst_error(got.trunk, want.logits, got.vocab_size) < kFloatBound);
    if (model.has_mtp()) CHECK(worst_error(got.mtp, want.mtp_logits, got.vocab_size) < kFloatBound);
  }
}

}  // namespace
}  // namespace foretoken
