#include "engine/model/model_file.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"

// MTP layers in files of their own, and folders in place of files.

namespace foretoken {
namespace {

using test::GgufEdit;
using test::RandomModel;
using test::TempFolder;

const std::string kMtpKey = "qwen35moe.nextn_predict_layers";
const std::string kCountKey = "qwen35moe.block_count";

/// Two layers and the MTP layer, block 2.
RandomModel whole_model() {
  RandomModel spec;
  spec.hidden_dim = 64;
  spec.head_dim = 16;
  spec.rope_dim = 8;
  spec.state_size = 16;
  spec.num_experts = 4;
  spec.expert_dim = spec.shared_dim = 32;
  return spec;
}

GgufEdit trunk_of(GgufEdit file) {
  std::erase_if(file.tensors, [](const GgufEdit::Tensor& tensor) { return tensor.name.starts_with("blk.2."); });
  return file;
}

/// `shared`: without copies of what the trunk has too.
GgufEdit mtp_of(GgufEdit file, bool shared) {
  std::erase_if(file.tensors, [&](const GgufEdit::Tensor& tensor) {
    return tensor.name.starts_with("blk.") ? !tensor.name.starts_with("blk.2.") : shared;
  });
  return file;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

void check_same_mtp(const Model& model, const Model& expected) {
  REQUIRE(model.has_mtp());
  CHECK(model.config().num_layers == expected.config().num_layers);
  const auto same = WeightVisit{[](WeightRole, const MatrixView& a, const MatrixView& b) {
                                  REQUIRE(a.size_bytes() == b.size_bytes());
                                  CHECK(std::memcmp(a.data, b.data, a.size_bytes()) == 0);
                                },
                                [](WeightRole, const ExpertMatrices& a, const ExpertMatrices& b) {
                                  REQUIRE(a.all.size_bytes() == b.all.size_bytes());
                                  CHECK(std::memcmp(a.all.data, b.all.data, a.all.size_bytes()) == 0);
                                },
                                [](WeightRole, const VectorView& a, const VectorView& b) {
                                  REQUIRE(a.count == b.count);
                                  CHECK((a.count == 0 || std::equal(a.data, a.data + a.count, b.data)));
                                }};
  MtpWeights::for_each(same, model.weights().mtp, expected.weights().mtp);
  CHECK(std::memcmp(model.weights().mtp.head.data, expected.weights().mtp.head.data,
                    expected.weights().mtp.head.size_bytes()) == 0);
}

TEST_CASE("an MTP layer in a file of its own is the one of a file with both") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  whole.write(folder.file("whole.gguf"));
  const Model expected = Model::load(folder.file("whole.gguf"), {});
  const bool shared = GENERATE(false, true);
  const bool beside = GENERATE(false, true);
  const bool declared = GENERATE(false, true);
  CAPTURE(shared, beside, declared);
  GgufEdit trunk = trunk_of(whole);
  if (!declared) {
    trunk.remove_key(kMtpKey);
    trunk.set_uint32(kCountKey, 2);
  }
  std::filesystem::create_directory(folder.file("m"));
  trunk.write(folder.file("m/trunk.gguf"));
  const std::string mtp_path = folder.file(beside ? "m/mtp-x.gguf" : "m/other.gguf");
  mtp_of(whole, shared).write(mtp_path);
  LoadOptions options;
  if (!beside) options.mtp_path = mtp_path;
  const Model model = Model::load(folder.file("m/trunk.gguf"), options);
  CHECK(model.mtp_path() == mtp_path);
  CHECK(model.mtp_absence() == "");
  check_same_mtp(model, expected);
  CHECK(model.fingerprint() != Model::load(folder.file("whole.gguf"), {}).fingerprint());
  const ModelOutline outline = Model::outline(open_model(folder.file("m/trunk.gguf"), beside ? "" : mtp_path).file);
  CHECK(outline.config.num_mtp_layers == 1);
  if (!beside) {
    // Without the flag there is none, and the message says how it is named.
    const Model alone = Model::load(folder.file("m/trunk.gguf"), {});
    CHECK_FALSE(alone.has_mtp());
    CHECK(alone.mtp_absence().find("--model-draft") != std::string::npos);
  }
}

TEST_CASE("a whole model may give its MTP layer to another file") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  whole.write(folder.file("whole.gguf"));
  trunk_of(whole).write(folder.file("trunk.gguf"));
  LoadOptions options;
  options.mtp_path = folder.file("whole.gguf");
  check_same_mtp(Model::load(folder.file("trunk.gguf"), options), Model::load(folder.file("whole.gguf"), {}));
}

TEST_CASE("an MTP layer of another model is refused by what disagrees, and passed over where nobody named it") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  trunk_of(whole).write(folder.file("trunk.gguf"));
  GgufEdit mtp = mtp_of(whole, false);
  std::vector<std::string> words;
  SECTION("another architecture") {
    mtp.set_string("general.architecture", "qwen35");
    words = {"'qwen35'", "'qwen35moe'"};
  }
  SECTION("another width") {
    mtp.set_uint32("qwen35moe.embedding_length", 128);
    words = {"qwen35moe.embedding_length", "128", "64"};
  }
  SECTION("another number of experts a token") {
    mtp.set_uint32("qwen35moe.expert_used_count", 1);
    words = {"qwen35moe.expert_used_count"};
  }
  SECTION("another rotation") {
    mtp.set_float32("qwen35moe.rope.freq_base", 123);
    words = {"qwen35moe.rope.freq_base", "123"};
  }
  SECTION("behind another number of layers") {
    for (GgufEdit::Tensor& tensor : mtp.tensors) {
      if (tensor.name.starts_with("blk.2.")) tensor.name.replace(4, 1, "3");
    }
    words = {"block 3", "model has 2"};
  }
  SECTION("another vocabulary") {
    std::vector<std::string> tokens;
    const GgufFile trunk = GgufFile::open(folder.file("trunk.gguf"));
    for (std::string_view token : trunk.get_string_array("tokenizer.ggml.tokens")) tokens.emplace_back(token);
    std::swap(tokens[0], tokens[1]);
    mtp.set_strings("tokenizer.ggml.tokens", tokens);
    words = {"vocabulary"};
  }
  SECTION("another number of tokens, in its copy of the embeddings alone") {
    mtp.remove_key("tokenizer.ggml.tokens");
    GgufEdit::Tensor& embed = mtp.tensor("token_embd.weight");
    const std::vector<int64_t> shape = {embed.shape[0], embed.shape[1] / 2};
    mtp.reshape("token_embd.weight", embed.type_id, shape, embed.bytes.size() / 2);
    words = {"token_embd.weight"};
  }
  SECTION("no MTP layer in it") {
    mtp = trunk_of(whole);
    words = {"blk.N.nextn.*"};
  }
  SECTION("no model file") {
    mtp.tensors.clear();
    words = {"blk.N.nextn.*"};
  }
  mtp.write(folder.file("mtp-other.gguf"));
  const std::string refusal =
      message_of([&] { (void)open_model(folder.file("trunk.gguf"), folder.file("mtp-other.gguf")); });
  const Model model = Model::load(folder.file("trunk.gguf"), {});
  CHECK_FALSE(model.has_mtp());
  words.emplace_back("mtp-other.gguf");
  for (const std::string& word : words) {
    INFO(word << " in " << refusal << " and " << model.mtp_absence());
    CHECK(refusal.find(word) != std::string::npos);
    CHECK(model.mtp_absence().find(word) != std::string::npos);
  }
  CHECK(refusal.find('\n') == std::string::npos);
}

TEST_CASE("a part of an MTP layer in a file of its own is refused by the tensor that is missing") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  trunk_of(whole).write(folder.file("trunk.gguf"));
  GgufEdit mtp = mtp_of(whole, true);
  mtp.remove_tensor("blk.2.attn_k.weight");
  mtp.write(folder.file("mtp.gguf"));
  LoadOptions options;
  options.mtp_path = folder.file("mtp.gguf");
  const std::string message = message_of([&] { (void)Model::load(folder.file("trunk.gguf"), options); });
  CHECK(message.find(options.mtp_path) != std::string::npos);
  CHECK(message.find("blk.2.attn_k.weight") != std::string::npos);
  CHECK(message.find("missing") != std::string::npos);
}

TEST_CASE("a damaged MTP layer in a file of its own is refused by that file's name") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  trunk_of(whole).write(folder.file("trunk.gguf"));
  const bool shared = GENERATE(false, true);
  GgufEdit mtp = mtp_of(whole, shared);
  const std::string path = folder.file("broken.gguf");
  const std::string matrix = "blk.2.ffn_down_exps.weight", norm = "blk.2.nextn.enorm.weight";
  std::vector<std::string> words;
  std::optional<uintmax_t> size;
  const auto float_at_end = [&](const std::string& name, float value) {
    std::memcpy(&*(mtp.tensor(name).bytes.end() - 4), &value, 4);
  };
  SECTION("ends early") {
    size = 9;  // tenths
    words = {"blk.2.", "download"};
  }
  SECTION("ends within its metadata") {
    size = 1;
    words = {"download"};
  }
  SECTION("is empty") {
    size = 0;
    words = {"empty"};
  }
  SECTION("a matrix of zeros") {
    std::fill(mtp.tensor(matrix).bytes.begin(), mtp.tensor(matrix).bytes.end(), std::byte{0});
    words = {matrix, "all zeros"};
  }
  SECTION("zeros from within a matrix on") {
    std::vector<std::byte>& bytes = mtp.tensor(matrix).bytes;
    std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() / 2 + 8), bytes.end(), std::byte{0});
    words = {matrix, "zeros"};
  }
  SECTION("a weight that is not finite") {
    float_at_end(matrix, std::numeric_limits<float>::quiet_NaN());
    words = {matrix, "finite"};
  }
  SECTION("a norm that is not finite") {
    float_at_end(norm, std::numeric_limits<float>::infinity());
    words = {norm, "finite"};
  }
  SECTION("a matrix of another shape") {
    GgufEdit::Tensor& tensor = mtp.tensor(matrix);
    mtp.reshape(matrix, tensor.type_id, {tensor.shape[0], tensor.shape[1], tensor.shape[2] / 2},
                tensor.bytes.size() / 2);
    words = {matrix, "shape"};
  }
  SECTION("a type that no format has") {
    mtp.tensor(matrix).type_id = 4711;
    words = {matrix, "4711"};
  }
  SECTION("a tensor that nobody reads") {
    GgufEdit::Tensor more = mtp.tensor(norm);
    more.name = "blk.2.nextn.other.weight";
    mtp.tensors.push_back(more);
    words = {"blk.2.nextn.other.weight"};
  }
  SECTION("a tensor twice") {
    mtp.tensors.push_back(mtp.tensor(norm));
    words = {norm, "twice"};
  }
  mtp.write(path);
  if (size) std::filesystem::resize_file(path, std::filesystem::file_size(path) * *size / 10);
  for (const bool repack : {true, false}) {
    LoadOptions options;
    options.mtp_path = path;
    options.repack = repack;
    const std::string message = message_of([&] { (void)Model::load(folder.file("trunk.gguf"), options); });
    INFO("message: " << message);
    CHECK(message.find('\n') == std::string::npos);
    words.push_back(path);
    for (const std::string& word : words) {
      INFO("word: " << word);
      CHECK(message.find(word) != std::string::npos);
    }
  }
}

TEST_CASE("an MTP layer for a model that has one, or whose architecture has none, is refused") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  whole.write(folder.file("whole.gguf"));
  CHECK(message_of([&] {
          (void)open_model(folder.file("whole.gguf"), folder.file("whole.gguf"));
        }).find("one of its own") != std::string::npos);
  RandomModel other = whole_model();
  other.architecture = "qwen3moe";
  other.write(folder.file("other.gguf"));
  CHECK(message_of([&] {
          (void)open_model(folder.file("other.gguf"), folder.file("whole.gguf"));
        }).find("'qwen3moe' are not supported") != std::string::npos);
}

TEST_CASE("of several MTP layers that fit beside a model none is chosen") {
  const TempFolder folder;
  const GgufEdit whole = whole_model().build();
  trunk_of(whole).write(folder.file("trunk.gguf"));
  mtp_of(whole, true).write(folder.file("mtp-a.gguf"));
  mtp_of(whole, false).write(folder.file("mtp-b.gguf"));
  const Model model = Model::load(folder.file("trunk.gguf"), {});
  CHECK_FALSE(model.has_mtp());
  CHECK(model.mtp_absence().find("mtp-a.gguf and mtp-b.gguf") != std::string::npos);
  CHECK(model.mtp_absence().find("--model-draft") != std::string::npos);
}

TEST_CASE("a folder stands for the one model in it") {
  const TempFolder folder;
  const std::string path = folder.file("m");
  std::filesystem::create_directory(path);
  CHECK(message_of([&] { (void)find_model(path); }).find("folder without a model") != std::string::npos);
  for (const char* name : {"mtp-x.gguf", "mmproj-x.gguf", "x-00002-of-00002.gguf", "notes.txt", "x.gguf.part12"})
    whole_model().write(path + "/" + name);
  CHECK(message_of([&] { (void)find_model(path); }).find("folder without a model") != std::string::npos);
  whole_model().write(path + "/x-00001-of-00002.gguf");
  CHECK(find_model(path) == path + "/x-00001-of-00002.gguf");
  whole_model().write(path + "/y.gguf");
  const std::string message = message_of([&] { (void)find_model(path); });
  CHECK(message.find("2 models") != std::string::npos);
  CHECK(message.find("y.gguf") != std::string::npos);
  CHECK(find_model(path + "/y.gguf") == path + "/y.gguf");
  CHECK(find_model(folder.file("nothing")) == folder.file("nothing"));
}

}  // namespace
}  // namespace foretoken
