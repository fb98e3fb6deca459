#include "tools/requantise/requantise.h"

#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "kernels/base/error.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/formats/weight_quantiser.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tools/commands.h"

namespace foretoken {
namespace {

using requantise::Role;
using requantise::TypeRules;
using requantise::write_requantised;
using test::GgufEdit;
using test::RandomModel;
using test::TempFolder;

std::vector<float> values_of(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_values()));
  decode_row(*tensor.type(), tensor.data, tensor.num_values(), values.data());
  return values;
}

bool same_bytes(const GgufTensor& a, const GgufTensor& b) {
  return a.type_id == b.type_id && a.shape == b.shape && a.size_bytes == b.size_bytes &&
         std::memcmp(a.data, b.data, a.size_bytes) == 0;
}

WeightType type_in(const GgufFile& file, std::string_view name) {
  const GgufTensor* tensor = file.find_tensor(name);
  INFO(name);
  REQUIRE(tensor != nullptr);
  return tensor->type().value();
}

TEST_CASE("a file is written again in every type, and the model runs", "[requantise]") {
  const TempFolder folder;
  RandomModel().write(folder.file("in.gguf"));
  const GgufFile in = GgufFile::open(folder.file("in.gguf"));
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (!can_quantise(info.type)) continue;
    CAPTURE(info.name);
    TypeRules rules;
    rules.all = info.type;
    const auto report = write_requantised(in, folder.file("out.gguf"), rules);
    const GgufFile out = GgufFile::open(folder.file("out.gguf"));
    CHECK(report.bytes_before == in.size_bytes());
    CHECK(report.bytes_after == out.size_bytes());
    REQUIRE(out.tensors().size() == in.tensors().size());
    for (const GgufTensor& tensor : in.tensors()) {
      const GgufTensor* written = out.find_tensor(tensor.name);
      INFO(tensor.name);
      REQUIRE(written != nullptr);
      const auto role = requantise::find_role(in, tensor);
      if (!role || role == Role::kRouter) {
        CHECK(same_bytes(tensor, *written));
        continue;
      }
      CHECK(written->type() == info.type);
      const std::vector<float> before = values_of(tensor), after = values_of(*written);
      double error = 0, norm = 0;
      for (size_t i = 0; i < before.size(); ++i) {
        error += (double{after[i]} - before[i]) * (double{after[i]} - before[i]);
        norm += double{before[i]} * before[i];
      }
      CHECK(std::sqrt(error / norm) < 0.35);  // two bits leave 0.28 of normal values
    }
    CHECK(Model::load(folder.file("out.gguf"), {}).has_mtp());
  }
}

TEST_CASE("metadata comes along byte for byte, without what was true of the old file alone", "[requantise]") {
  const TempFolder folder;
  GgufEdit edit = RandomModel().build();
  edit.set_uint32("general.file_type", 0);
  edit.set_uint32("general.alignment", 32);
  edit.set_uint32("split.count", 0);
  edit.set_string("quantize.imatrix.file", "x");
  edit.write(folder.file("in.gguf"));
  const GgufFile in = GgufFile::open(folder.file("in.gguf"));
  TypeRules rules;
  rules.all = WeightType::kQ4_K;
  (void)write_requantised(in, folder.file("out.gguf"), rules);
  const GgufFile out = GgufFile::open(folder.file("out.gguf"));
  CHECK(out.get_int("general.file_type", 0, 100) == 14);
  for (const char* gone : {"general.alignment", "split.count", "quantize.imatrix.file"})
    CHECK(out.find(gone) == nullptr);
  int compared = 0;
  for (const auto& [key, value] : in.metadata()) {
    if (key == "general.file_type" || out.find(key) == nullptr) continue;
    const auto a = in.raw_value(key), b = out.raw_value(key);
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    ++compared;
  }
  CHECK(compared + 4 == static_cast<int>(in.metadata().size()));
}

TEST_CASE("each role follows its own rule, and what has none stays as it is", "[requantise]") {
  const TempFolder folder;
  RandomModel().write(folder.file("in.gguf"));
  const GgufFile in = GgufFile::open(folder.file("in.gguf"));
  TypeRules rules;
  rules[Role::kHead] = WeightType::kQ6_K;
  rules[Role::kExperts] = WeightType::kQ4_K;
  rules[Role::kExpertsDown] = WeightType::kIQ4_XS;
  rules[Role::kFeedForward] = WeightType::kQ5_1;
  rules[Role::kAttention] = WeightType::kQ8_0;
  rules[Role::kDeltaNet] = WeightType::kQ5_K;
  rules[Role::kMtp] = WeightType::kBF16;
  rules[Role::kRouter] = WeightType::kF16;
  rules.draft_head = WeightType::kQ3_K;
  (void)write_requantised(in, folder.file("out.gguf"), rules);
  const GgufFile out = GgufFile::open(folder.file("out.gguf"));
  CHECK(type_in(out, "output.weight") == WeightType::kQ6_K);
  CHECK(type_in(out, "token_embd.weight") == WeightType::kF32);
  CHECK(type_in(out, "blk.0.ffn_gate_exps.weight") == WeightType::kQ4_K);
  CHECK(type_in(out, "blk.0.ffn_down_exps.weight") == WeightType::kIQ4_XS);
  CHECK(type_in(out, "blk.1.ffn_up_shexp.weight") == WeightType::kQ5_1);
  CHECK(type_in(out, "blk.0.attn_qkv.weight") == WeightType::kQ5_K);
  CHECK(type_in(out, "blk.0.attn_gate.weight") == WeightType::kQ5_K);
  CHECK(type_in(out, "blk.1.attn_q.weight") == WeightType::kQ8_0);
  CHECK(type_in(out, "blk.1.ffn_gate_inp.weight") == WeightType::kF16);
  CHECK(type_in(out, "blk.2.attn_q.weight") == WeightType::kBF16);
  CHECK(type_in(out, "blk.2.ffn_down_exps.weight") == WeightType::kBF16);
  CHECK(type_in(out, "blk.2.nextn.eh_proj.weight") == WeightType::kBF16);
  CHECK(type_in(out, "blk.2.nextn.shared_head_head.weight") == WeightType::kQ3_K);
  CHECK(same_bytes(*in.find_tensor("token_embd.weight"), *out.find_tensor("token_embd.weight")));
  const Model model = Model::load(folder.file("out.gguf"), {});
  CHECK(model.weights().mtp.own_head);
  // A second time the head for drafts is there already, and is written in its new type.
  TypeRules again;
  again.draft_head = WeightType::kQ2_K;
  (void)write_requantised(out, folder.file("again.gguf"), again);
  CHECK(type_in(GgufFile::open(folder.file("again.gguf")), "blk.2.nextn.shared_head_head.weight") == WeightType::kQ2_K);
}

TEST_CASE("a tied head follows the head's rule", "[requantise]") {
  const TempFolder folder;
  RandomModel spec;
  spec.tied_head = true;
  spec.write(folder.file("in.gguf"));
  TypeRules rules;
  rules[Role::kHead] = WeightType::kQ6_K;
  rules[Role::kEmbedding] = WeightType::kQ2_K;
  (void)write_requantised(GgufFile::open(folder.file("in.gguf")), folder.file("out.gguf"), rules);
  CHECK(type_in(GgufFile::open(folder.file("out.gguf")), "token_embd.weight") == WeightType::kQ6_K);
}

TEST_CASE("scales beside matrices stay, and a head for drafts has that of the head", "[requantise]") {
  const TempFolder folder;
  RandomModel spec;
  spec.scales = true;
  spec.write(folder.file("in.gguf"));
  TypeRules rules;
  rules.all = WeightType::kQ8_0;
  rules.draft_head = WeightType::kQ4_0;
  (void)write_requantised(GgufFile::open(folder.file("in.gguf")), folder.file("out.gguf"), rules);
  const GgufFile in = GgufFile::open(folder.file("in.gguf")), out = GgufFile::open(folder.file("out.gguf"));
  const auto value = [](const GgufFile& file, const char* name) {
    float scale;
    std::memcpy(&scale, file.find_tensor(name)->data, sizeof scale);
    return scale;
  };
  CHECK(value(out, "blk.1.attn_q.scale") == value(in, "blk.1.attn_q.scale"));
  CHECK(value(out, "output.scale") == value(in, "output.scale"));
  CHECK(value(out, "blk.2.nextn.shared_head_head.scale") == value(in, "output.scale"));
  (void)Model::load(folder.file("out.gguf"), {});
}

TEST_CASE("rows that are no multiple of a block get a type with blocks of 32, or F16", "[requantise]") {
  using enum WeightType;
  CHECK(requantise::fitting_type(kQ4_K, 512) == kQ4_K);
  CHECK(requantise::fitting_type(kQ2_K, 288) == kQ4_0);
  CHECK(requantise::fitting_type(kQ3_K, 288) == kQ4_0);
  CHECK(requantise::fitting_type(kQ4_K, 288) == kQ5_0);
  CHECK(requantise::fitting_type(kQ5_K, 288) == kQ5_1);
  CHECK(requantise::fitting_type(kQ6_K, 288) == kQ8_0);
  CHECK(requantise::fitting_type(kIQ4_XS, 288) == kIQ4_NL);
  CHECK(requantise::fitting_type(kQ4_K, 40) == kF16);
  CHECK(requantise::fitting_type(kQ8_0, 40) == kF16);
  CHECK(requantise::fitting_type(kF32, 40) == kF32);
  const TempFolder folder;
  test::small_model("qwen35moe").write(folder.file("in.gguf"));
  TypeRules rules;
  rules.all = kQ4_K;
  const auto report = write_requantised(GgufFile::open(folder.file("in.gguf")), folder.file("out.gguf"), rules);
  CHECK_FALSE(report.replaced.empty());
  (void)Model::load(folder.file("out.gguf"), {});
}

TEST_CASE("a type that is not written is refused with the reason", "[requantise]") {
  const auto refusal = [](const char* type) -> std::string {
    const char* const arguments[] = {"requantise", "in.gguf", "out.gguf", "--experts", type};
    try {
      (void)run_requantise(5, arguments);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "";
  };
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (can_quantise(info.type)) continue;
    const std::string message = refusal(std::string(info.name).c_str());
    INFO(message);
    CHECK(message.find(fmt::format("--experts {}: is read but not written: ", info.name)) == 0);
    CHECK(message.find('\n') == std::string::npos);
  }
  CHECK(refusal("iq3_xxs").find("importance matrix") != std::string::npos);
  CHECK(refusal("tq2_0").find("trained") != std::string::npos);
  CHECK(refusal("q9_z").find("--experts q9_z: no weight type; known: F32") == 0);
}

TEST_CASE("what cannot be read is refused by name, and no file is left", "[requantise][bad-file]") {
  const TempFolder folder;
  GgufEdit edit = RandomModel().build();
  TypeRules rules;
  rules.all = WeightType::kQ4_K;
  std::vector<std::string> words;
  SECTION("a type that is not known") {
    edit.reshape("blk.0.ffn_gate_exps.weight", 99, {256, 256, 8}, 4096);
    words = {"blk.0.ffn_gate_exps.weight", "99"};
  }
  SECTION("a value that is not finite") {
    const float bad = std::nanf("");
    std::memcpy(edit.tensor("blk.1.attn_k.weight").bytes.data() + 3 * 256 * 4, &bad, 4);
    words = {"blk.1.attn_k.weight", "row 3", "not finite"};
  }
  SECTION("a value beyond what the new type holds") {
    const float bad = 1e6f;
    std::memcpy(edit.tensor("blk.1.attn_k.weight").bytes.data() + 2 * 256 * 4, &bad, 4);
    rules.all = WeightType::kF16;
    words = {"blk.1.attn_k.weight", "row 2", "F16"};
  }
  SECTION("a head for drafts in a file without an MTP layer") {
    std::erase_if(edit.tensors, [](const GgufEdit::Tensor& tensor) { return tensor.name.starts_with("blk.2."); });
    rules.draft_head = WeightType::kQ4_0;
    words = {"--head-draft", "no MTP layer"};
  }
  edit.write(folder.file("in.gguf"));
  std::string message;
  try {
    (void)write_requantised(GgufFile::open(folder.file("in.gguf")), folder.file("out.gguf"), rules);
  } catch (const InputError& error) {
    message = error.what();
  }
  for (const std::string& word : words) {
    INFO(word << " in " << message);
    CHECK(message.find(word) != std::string::npos);
  }
  CHECK_THROWS_AS(GgufFile::open(folder.file("out.gguf")), InputError);
}

}  // namespace
}  // namespace foretoken
