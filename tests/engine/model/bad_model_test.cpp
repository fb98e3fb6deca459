#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <utility>

#include "engine/model/model.h"
#include "engine/session.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"

// Files that are sound as GGUF and wrong as models: each is refused in one line that names the file and what is wrong.

namespace foretoken {
namespace {

using test::GgufEdit;
using test::RandomModel;
using test::TempFolder;

// Small, in all three blocks' kinds: a delta net, an attention layer, an MTP layer.
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

std::string load_error(const std::string& path, bool repack = true) {
  try {
    LoadOptions options;
    options.repack = repack;
    (void)Model::load(path, options);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

void check_line(const std::string& message, const std::string& path, const std::vector<std::string>& words) {
  INFO("message: " << message);
  CHECK(message.find(path) != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
  for (const std::string& word : words) {
    INFO("word: " << word);
    CHECK(message.find(word) != std::string::npos);
  }
}

// What `inspect` says of the file: the headers alone.
std::string header_error(const std::string& path) {
  try {
    (void)Model::outline(GgufFile::open(path));
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

// Writes the file, loads it with and without repacking, and looks for the words in the errors. Unless the fault is
// among the weights, the headers alone give the same line.
void check_refused(const GgufEdit& file, const std::vector<std::string>& words) {
  const TempFolder folder;
  const std::string path = folder.file("bad.gguf");
  file.write(path);
  check_line(load_error(path, true), path, words);
  check_line(load_error(path, false), path, words);
  const bool among_weights = std::any_of(words.begin(), words.end(), [](const std::string& word) {
    return word == "finite" || word.find("zeros") != std::string::npos;
  });
  CHECK(header_error(path) == (among_weights ? "" : load_error(path)));
}

bool is_matrix(const GgufEdit::Tensor& tensor) {
  return tensor.shape.size() > 1 && tensor.name.find("conv1d") == std::string::npos;
}

// Every seventh tensor would do for most faults, but the point is that no role is forgotten: all of them.
std::vector<std::string> tensor_names(const GgufEdit& file) {
  std::vector<std::string> names;
  for (const GgufEdit::Tensor& tensor : file.tensors) names.push_back(tensor.name);
  return names;
}

TEST_CASE("the model that the bad ones are made from loads") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
  const TempFolder folder;
  small_model(architecture).write(folder.file("good.gguf"));
  const Model model = Model::load(folder.file("good.gguf"), {});
  CHECK(model.config().architecture == architecture);
  CHECK(model.config().num_layers == 2);
  CHECK(model.has_mtp() == (architecture != "qwen3moe" && architecture != "llama"));
}

TEST_CASE("a missing tensor is named, whichever it is") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
  const GgufEdit good = small_model(architecture).build();
  for (const std::string& name : tensor_names(good)) {
    // These two may be absent: the embeddings serve as head, output_norm as the MTP layer's norm.
    if (name == "output.weight" || name.ends_with("shared_head_norm.weight")) continue;
    INFO(architecture << " without " << name);
    GgufEdit file = good;
    file.remove_tensor(name);
    check_refused(file, {name, "missing"});
  }
}

// Zeros from byte `begin` of a tensor on, `count` bytes or to its end.
void zero_bytes(GgufEdit& file, const std::string& name, size_t begin, size_t count = SIZE_MAX) {
  std::vector<std::byte>& bytes = file.tensor(name).bytes;
  const size_t end = std::min(count, bytes.size() - begin) + begin;
  std::fill(bytes.begin() + static_cast<ptrdiff_t>(begin), bytes.begin() + static_cast<ptrdiff_t>(end), std::byte{0});
}

TEST_CASE("a matrix that is all zeros is named, whichever it is") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
  const GgufEdit good = small_model(architecture).build();
  for (const GgufEdit::Tensor& tensor : good.tensors) {
    if (!is_matrix(tensor)) continue;
    GgufEdit file = good;
    zero_bytes(file, tensor.name, 0);
    INFO(architecture << ": " << tensor.name);
    check_refused(file, {tensor.name, "is all zeros", "download it again"});
  }
}

TEST_CASE("zeros from somewhere in a file on are found, and the first matrix of zeros is named") {
  const GgufEdit good = small_model().build();
  const size_t from = GENERATE(0, 5, 11, 20);
  GgufEdit file = good;
  for (size_t i = from; i < file.tensors.size(); ++i) zero_bytes(file, file.tensors[i].name, 0);
  size_t first = from;
  while (!is_matrix(file.tensors[first])) ++first;
  check_refused(file, {"tensor " + file.tensors[first].name + ":", "is all zeros", "tensors more"});
}

TEST_CASE("zeros from within a matrix on are found, in the last one of a file too") {
  const GgufEdit good = small_model().build();
  for (const GgufEdit::Tensor& tensor : good.tensors) {
    if (!is_matrix(tensor)) continue;
    const size_t row_bytes = tensor.bytes.size() / static_cast<size_t>(tensor.shape[1]) /
                             static_cast<size_t>(tensor.shape.size() > 2 ? tensor.shape[2] : 1);
    INFO(tensor.name);
    GgufEdit file = good;  // to its end, beginning within a row
    zero_bytes(file, tensor.name, tensor.bytes.size() - 2 * row_bytes - row_bytes / 2);
    check_refused(file, {tensor.name, "zeros only from its byte"});
    file = good;  // a hole that ends within a row
    zero_bytes(file, tensor.name, row_bytes, row_bytes + row_bytes / 2);
    check_refused(file, {tensor.name, "zeros only from its byte"});
  }
  GgufEdit file = good;  // on the boundary of two rows
  const GgufEdit::Tensor last = file.tensors.back();
  REQUIRE(is_matrix(last));
  zero_bytes(file, last.name, last.bytes.size() / 2);
  check_refused(file, {last.name, "zeros only from its byte"});
}

// One layer of matrices of one type, rows of 256.
RandomModel model_of_type(WeightType type) {
  RandomModel spec = small_model("qwen3moe");
  spec.num_layers = 1;
  spec.hidden_dim = spec.expert_dim = 256;
  spec.types = {type};
  return spec;
}

TEST_CASE("zeros are found in matrices of every type: all of one, from its middle to a file's end, and a hole") {
  for (const WeightTypeInfo& info : all_weight_types()) {
    INFO(info.name);
    const GgufEdit good = model_of_type(info.type).build();
    const GgufEdit::Tensor last = good.tensors.back();
    REQUIRE(last.name == "blk.0.ffn_down_exps.weight");
    const size_t row_bytes = last.bytes.size() / static_cast<size_t>(last.shape[1] * last.shape[2]);
    GgufEdit file = good;
    zero_bytes(file, last.name, 0);
    check_refused(file, {last.name, "is all zeros", "download it again"});
    file = good;
    zero_bytes(file, last.name, last.bytes.size() / 2 + row_bytes / 2);
    check_refused(file, {last.name, "zeros only from its byte"});
    file = good;
    zero_bytes(file, last.name, 3 * row_bytes, 2 * row_bytes + row_bytes / 2);
    check_refused(file, {last.name, "zeros only from its byte"});
  }
}

TEST_CASE("a file that ends early is refused by the first tensor that is not whole, in every type") {
  for (const WeightTypeInfo& info : all_weight_types()) {
    INFO(info.name);
    const TempFolder folder;
    const std::string path = folder.file("short.gguf");
    model_of_type(info.type).write(path);
    const auto whole = std::filesystem::file_size(path);
    for (const uintmax_t missing : {uintmax_t{1}, static_cast<uintmax_t>(info.block_bytes), whole / 8}) {
      std::filesystem::resize_file(path, whole - missing);
      const std::string message = load_error(path);
      check_line(message, path, {"ffn_down_exps.weight", "download"});
      CHECK(header_error(path) == message);
      std::filesystem::resize_file(path, whole);
    }
  }
}

TEST_CASE("a norm that is all zeros is named") {
  GgufEdit file = small_model().build();
  zero_bytes(file, "blk.0.attn_norm.weight", 0);
  check_refused(file, {"blk.0.attn_norm.weight", "is all zeros"});
}

TEST_CASE("zeros that may be rightful are loaded: rows, experts, biases, the end of a padded vocabulary") {
  GgufEdit file = small_model().build();
  zero_bytes(file, "blk.0.ssm_dt.bias", 0);
  zero_bytes(file, "blk.0.ffn_gate_inp_shexp.weight", 0);
  const size_t expert_bytes = file.tensor("blk.0.ffn_up_exps.weight").bytes.size() / 4;
  for (const char* name : {"blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight", "blk.1.ffn_down_exps.weight"}) {
    const size_t bytes = file.tensor(name).bytes.size() / 4;
    CHECK(bytes == expert_bytes);
    zero_bytes(file, name, 3 * bytes);
    zero_bytes(file, name, bytes, bytes);
  }
  const size_t row_bytes = 64 * sizeof(float);
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    zero_bytes(file, name, 7 * row_bytes, row_bytes);
    zero_bytes(file, name, file.tensor(name).bytes.size() - 12 * row_bytes);
  }
  // The last columns of a matrix, and a row of it.
  for (size_t row = 0; row < 32; ++row) zero_bytes(file, "blk.0.ffn_up_shexp.weight", (row + 1) * row_bytes - 16, 16);
  zero_bytes(file, "blk.0.ffn_up_shexp.weight", 9 * row_bytes, row_bytes);
  const TempFolder folder;
  file.write(folder.file("zeros.gguf"));
  CHECK(load_error(folder.file("zeros.gguf"), true).empty());
  CHECK(load_error(folder.file("zeros.gguf"), false).empty());
}

TEST_CASE("a file that is written to while it is loaded or in use is refused") {
  const TempFolder folder;
  const std::string path = folder.file("changing.gguf");
  small_model().write(path);
  const auto append = [&] { std::ofstream(path, std::ios::app) << "more"; };
  LoadOptions options;
  bool written = false;
  options.progress = [&](size_t, size_t) {
    if (!std::exchange(written, true)) append();
  };
  CHECK_THROWS_WITH(Model::load(path, options), Catch::StartsWith(path + ": was written to while it was loaded"));
  const Model model = Model::load(path, {});
  CHECK_NOTHROW(model.check_unchanged());
  // A new file of the same name does not touch the one that is open.
  small_model().write(folder.file("new.gguf"));
  std::filesystem::rename(folder.file("new.gguf"), path);
  CHECK_NOTHROW(model.check_unchanged());
  const Model again = Model::load(path, {});
  append();
  CHECK_THROWS_WITH(again.check_unchanged(), Catch::StartsWith(path + ": was written to while it was in use"));
}

TEST_CASE("a tensor that stands in the file twice is refused") {
  GgufEdit file = small_model().build();
  file.tensors.push_back(file.tensor("blk.1.attn_k.weight"));
  check_refused(file, {"blk.1.attn_k.weight"});
}

TEST_CASE("a tensor of another shape than the metadata says is refused with both shapes, whichever it is") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
  const GgufEdit good = small_model(architecture).build();
  for (const std::string& name : tensor_names(good)) {
    GgufEdit file = good;
    GgufEdit::Tensor& tensor = file.tensor(name);
    INFO(architecture << ": " << name);
    // One row, value or expert more.
    const size_t per_row = tensor.bytes.size() / static_cast<size_t>(tensor.shape.back());
    ++tensor.shape.back();
    tensor.bytes.resize(tensor.bytes.size() + per_row);
    // The vocabulary's size is taken from the embeddings, so it is the tokens that do not fit then.
    const bool embeddings = name == "token_embd.weight";
    check_refused(file, {embeddings ? "tokenizer.ggml.tokens" : name, std::to_string(tensor.shape.back())});
  }
}

TEST_CASE("a transposed matrix is refused") {
  const GgufEdit good = small_model().build();
  for (const GgufEdit::Tensor& tensor : good.tensors) {
    if (!is_matrix(tensor) || tensor.shape[0] == tensor.shape[1]) continue;
    GgufEdit file = good;
    std::swap(file.tensor(tensor.name).shape[0], file.tensor(tensor.name).shape[1]);
    INFO(tensor.name);
    check_refused(file, {tensor.name});
  }
}

TEST_CASE("a tensor of a type without kernels is refused by name and type in every role") {
  constexpr uint32_t kIq2K = 137, kIq2KBlockBytes = 76;
  RandomModel spec = small_model();
  spec.hidden_dim = spec.expert_dim = spec.shared_dim = 256;  // whole blocks of 256
  spec.head_dim = 64;
  spec.state_size = 64;
  const GgufEdit good = spec.build();
  for (const GgufEdit::Tensor& tensor : good.tensors) {
    if (tensor.shape[0] % 256 != 0) continue;
    GgufEdit file = good;
    int64_t count = 1;
    for (int64_t size : tensor.shape) count *= size;
    file.reshape(tensor.name, kIq2K, tensor.shape, static_cast<size_t>(count / 256 * kIq2KBlockBytes));
    INFO(tensor.name);
    const TempFolder folder;
    file.write(folder.file("bad.gguf"));
    check_line(load_error(folder.file("bad.gguf")), folder.file("bad.gguf"),
               {tensor.name, "IQ2_K of ik_llama.cpp", "137"});
  }
}

TEST_CASE("a type id that the format does not have is refused") {
  GgufEdit file = small_model().build();
  file.tensor("blk.0.attn_gate.weight").type_id = 4711;
  check_refused(file, {"blk.0.attn_gate.weight", "4711"});
}

// Bytes of a scale in a block of each type, and what makes it not finite.
struct BadScale {
  WeightType type;
  size_t offset;
  std::vector<uint8_t> bytes;
};

const std::vector<uint8_t> kHalfNan = {0x00, 0x7e}, kHalfInfinity = {0x00, 0x7c}, kHalfMinusInfinity = {0x00, 0xfc};

std::vector<BadScale> bad_scales() {
  using enum WeightType;
  std::vector<BadScale> list = {{kF32, 0, {0x00, 0x00, 0xc0, 0x7f}},
                                {kF32, 0, {0x00, 0x00, 0x80, 0xff}},
                                {kBF16, 0, {0xc0, 0x7f}},
                                {kBF16, 0, {0x80, 0x7f}},
                                {kMXFP4, 0, {0xff}},
                                // The top four bits of the last eight bytes, two by two, are a half.
                                {kIQ1_M, 48, {0, 0x00, 0, 0x00, 0, 0xc0, 0, 0x70}},
                                {kIQ1_M, 48, {0, 0x00, 0, 0x00, 0, 0xe0, 0, 0xf0}}};
  const std::pair<WeightType, std::vector<size_t>> halves[] = {
      {kF16, {0}},       {kQ4_0, {0}},   {kQ4_1, {0, 2}}, {kQ5_0, {0}},    {kQ5_1, {0, 2}}, {kQ8_0, {0}},
      {kQ2_K, {80, 82}}, {kQ3_K, {108}}, {kQ4_K, {0, 2}}, {kQ5_K, {0, 2}}, {kQ6_K, {208}},  {kIQ4_NL, {0}},
      {kIQ4_XS, {0}},    {kTQ1_0, {52}}, {kTQ2_0, {64}},  {kQ1_0, {0}},    {kQ2_0, {0}},    {kIQ3_S, {0}},
      {kIQ3_XXS, {0}},   {kIQ2_S, {0}},  {kIQ2_XS, {0}},  {kIQ2_XXS, {0}}, {kIQ1_S, {0}}};
  for (const auto& [type, offsets] : halves) {
    for (size_t offset : offsets) {
      for (const auto& bytes : {kHalfNan, kHalfInfinity, kHalfMinusInfinity}) list.push_back({type, offset, bytes});
    }
  }
  return list;
}

TEST_CASE("a scale or value that is not finite is refused with tensor and row, in every type") {
  std::vector<WeightType> seen;
  for (const BadScale& bad : bad_scales()) {
    const WeightTypeInfo& info = weight_type_info(bad.type);
    seen.push_back(bad.type);
    const RandomModel spec = model_of_type(bad.type);
    // The last block of the last expert, and the last row of the embeddings: nothing before or after it is at fault.
    for (const char* name : {"blk.0.ffn_down_exps.weight", "token_embd.weight"}) {
      GgufEdit file = spec.build();
      GgufEdit::Tensor& tensor = file.tensor(name);
      const auto at = tensor.bytes.end() - info.block_bytes + static_cast<std::ptrdiff_t>(bad.offset);
      std::memcpy(&*at, bad.bytes.data(), bad.bytes.size());
      INFO(info.name << ", byte " << bad.offset << " of the last block of " << name);
      check_refused(file, {name, "finite", name == std::string("token_embd.weight") ? "319" : "1023"});
    }
  }
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (info.type == WeightType::kNVFP4) continue;  // the one NaN of its scales counts as 0, as in ggml
    INFO(info.name);
    CHECK(std::find(seen.begin(), seen.end(), info.type) != seen.end());
  }
}

TEST_CASE("a value that is not finite in a norm or another small vector is refused") {
  const GgufEdit good = small_model().build();
  for (const GgufEdit::Tensor& tensor : good.tensors) {
    if (is_matrix(tensor)) continue;
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      GgufEdit file = good;
      std::memcpy(&*(file.tensor(tensor.name).bytes.end() - 4), &bad, 4);
      INFO(tensor.name << " with " << bad);
      check_refused(file, {tensor.name, "finite"});
    }
  }
}

struct BadKey {
  std::string architecture, key;
  uint32_t value;
  std::vector<std::string> words;  // beside the key
};

TEST_CASE("metadata that no model can have is refused by key, value and limit") {
  const std::vector<BadKey> cases = {
      {"qwen35moe", "expert_used_count", 5, {"5", "4"}},
      {"qwen35moe", "expert_used_count", 0, {"0"}},
      {"qwen3moe", "expert_used_count", 4000000000u, {"4000000000"}},
      {"qwen35moe", "expert_count", 0, {"0"}},
      {"qwen35moe", "attention.head_count", 0, {"0"}},
      {"qwen3moe", "attention.head_count_kv", 0, {"0"}},
      {"qwen35moe", "attention.head_count_kv", 3, {"3", "4"}},
      {"qwen3moe", "attention.head_count_kv", 8, {"8", "4"}},
      {"qwen35moe", "attention.key_length", 0, {"0"}},
      {"qwen35moe", "attention.value_length", 32, {"32", "16"}},
      {"qwen35moe", "rope.dimension_count", 7, {"7"}},
      {"qwen35moe", "rope.dimension_count", 18, {"18", "16"}},
      {"qwen35moe", "rope.dimension_count", 0, {"0"}},
      {"qwen35moe", "block_count", 0, {"0"}},
      {"qwen35moe", "block_count", 1, {"1"}},
      {"qwen35moe", "block_count", 4000000000u, {"4000000000"}},
      {"qwen35moe", "nextn_predict_layers", 2, {"2", "1"}},
      {"qwen35moe", "nextn_predict_layers", 3, {"3"}},
      {"qwen35", "nextn_predict_layers", 2, {"2", "1"}},
      {"qwen3moe", "nextn_predict_layers", 1, {"1", "0"}},
      {"qwen35moe", "embedding_length", 0, {"0"}},
      {"qwen35moe", "context_length", 0, {"0"}},
      {"qwen35moe", "expert_feed_forward_length", 0, {"0"}},
      {"qwen35", "feed_forward_length", 0, {"0"}},
      {"qwen35moe", "ssm.state_size", 0, {"0"}},
      {"qwen35moe", "ssm.state_size", 4000000000u, {"4000000000"}},
      {"qwen35moe", "ssm.group_count", 0, {"0"}},
      {"qwen35moe", "ssm.group_count", 3, {"3", "4"}},
      {"qwen35moe", "ssm.time_step_rank", 0, {"0"}},
      {"qwen35moe", "ssm.conv_kernel", 0, {"0"}},
      {"qwen35moe", "ssm.inner_size", 65, {"65", "64"}},
      {"qwen35moe", "full_attention_interval", 0, {"0"}},
  };
  for (const BadKey& bad : cases) {
    GgufEdit file = small_model(bad.architecture).build();
    file.set_uint32(bad.architecture + "." + bad.key, bad.value);
    INFO(bad.architecture << "." << bad.key << " = " << bad.value);
    std::vector<std::string> words = bad.words;
    // A file whose block count leaves only the MTP layer is told of block_count; the others of the key itself, or of
    // the key it disagrees with.
    if (bad.key == "ssm.group_count" && bad.value == 3) {
      words.push_back("ssm.time_step_rank");
    } else if (bad.key == "nextn_predict_layers" && bad.value == 3) {
      words.push_back("nextn_predict_layers");
    } else {
      words.push_back(bad.key);
    }
    check_refused(file, words);
  }
}

TEST_CASE("metadata of shapes that disagree with the tensors is refused by the tensor") {
  const std::pair<const char*, uint32_t> cases[] = {
      {"embedding_length", 128},
      {"attention.head_count", 8},
      {"expert_count", 3},
      {"expert_feed_forward_length", 64},
      {"expert_shared_feed_forward_length", 16},
      {"ssm.conv_kernel", 3},
      {"ssm.group_count", 1},
      {"block_count", 7},
      {"full_attention_interval", 1},
  };
  for (const auto& [key, value] : cases) {
    GgufEdit file = small_model().build();
    file.set_uint32(std::string("qwen35moe.") + key, value);
    INFO(key << " = " << value);
    check_refused(file, {"tensor", ".weight"});
  }
}

TEST_CASE("numbers that are not numbers, and rotations that are not supported, are refused") {
  GgufEdit file = small_model().build();
  SECTION("epsilon below zero") {
    file.set_float32("qwen35moe.attention.layer_norm_rms_epsilon", -1e-6f);
    check_refused(file, {"layer_norm_rms_epsilon"});
  }
  SECTION("epsilon not a number") {
    file.set_float32("qwen35moe.attention.layer_norm_rms_epsilon", std::numeric_limits<float>::quiet_NaN());
    check_refused(file, {"layer_norm_rms_epsilon"});
  }
  SECTION("epsilon missing") {
    file.remove_key("qwen35moe.attention.layer_norm_rms_epsilon");
    check_refused(file, {"layer_norm_rms_epsilon"});
  }
  SECTION("rotation base zero") {
    file.set_float32("qwen35moe.rope.freq_base", 0.0f);
    check_refused(file, {"rope.freq_base"});
  }
  SECTION("scaled rotations") {
    file.set_string("qwen35moe.rope.scaling.type", "longrope");
    check_refused(file, {"rope.scaling.type", "longrope"});
  }
  SECTION("a count that is a string") {
    file.set_string("qwen35moe.expert_count", "four");
    check_refused(file, {"expert_count"});
  }
}

TEST_CASE("an architecture that is not supported is named, with those that are") {
  GgufEdit file = small_model().build();
  SECTION("another") {
    file.set_string("general.architecture", "glm4moe");
    check_refused(file, {"glm4moe", "qwen35moe", "qwen35", "qwen3moe"});
  }
  SECTION("none") {
    file.remove_key("general.architecture");
    check_refused(file, {"general.architecture"});
  }
}

TEST_CASE("a vocabulary of another size than the embeddings is refused") {
  RandomModel spec = small_model();
  const GgufEdit larger = spec.build();
  spec.vocab_size = 304;
  GgufEdit file = spec.build();
  file.tensor("token_embd.weight") = GgufEdit(larger).tensor("token_embd.weight");
  check_refused(file, {"304", "320"});
}

TEST_CASE("a context that no memory holds is refused before anything is allocated") {
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  GgufEdit file = small_model().build();
  file.set_uint32("qwen35moe.context_length", 2000000000u);
  file.write(path);
  const Model model = Model::load(path, {});
  SessionOptions options;
  options.with_mtp = true;
  const auto session_error = [&] {
    try {
      const Session session(model, options);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  SECTION("within the model's own length") {
    options.ctx_size = 2000000000;
    const std::string message = session_error();
    INFO(message);
    CHECK(message.find("MiB") != std::string::npos);
    CHECK(message.find("--ctx-size") != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
  }
  SECTION("beyond it") {
    options.ctx_size = 2000000001;
    const std::string message = session_error();
    INFO(message);
    CHECK(message.find("2000000001") != std::string::npos);
    CHECK(message.find("2000000000") != std::string::npos);
    CHECK(message.find("--ctx-size") != std::string::npos);
  }
  SECTION("left to the program: a context of ordinary size") {
    const Session session(model, options);
    CHECK(session.options().ctx_size == 4096);
  }
}

TEST_CASE("a split model loads from any part, and a missing part is named") {
  const TempFolder folder;
  GgufEdit whole = small_model().build();
  const auto part_path = [&](int part) { return folder.file(fmt::format("model-{:05}-of-00003.gguf", part)); };
  const size_t num_tensors = whole.tensors.size();
  for (uint32_t part = 0; part < 3; ++part) {
    GgufEdit file = whole;
    file.set_uint32("split.no", part);
    file.set_uint32("split.count", 3);
    file.set_uint32("split.tensors.count", static_cast<uint32_t>(num_tensors));
    const auto begin = static_cast<std::ptrdiff_t>(part * num_tensors / 3),
               end = static_cast<std::ptrdiff_t>((part + 1) * num_tensors / 3);
    file.tensors.assign(whole.tensors.begin() + begin, whole.tensors.begin() + end);
    file.write(part_path(static_cast<int>(part) + 1));
  }
  for (int part = 1; part <= 3; ++part) CHECK(load_error(part_path(part)).empty());
  CHECK(std::remove(part_path(2).c_str()) == 0);
  for (int part : {1, 3}) check_line(load_error(part_path(part)), part_path(2), {"part 2 of 3"});
}

}  // namespace
}  // namespace foretoken
