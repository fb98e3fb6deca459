#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/engine_logits.h"
#include "tests/engine/model/reference.h"

// Checkpoints of transformers' model classes, brought into GGUF by llama.cpp's converter, against the logits that
// transformers computed for them (tests/data/checkpoints/make_checkpoints.py). Neither the file nor the expected numbers
// come from this project.

namespace foretoken {
namespace {

using test::EngineLogits;
using test::GgufEdit;
using test::ReferenceModel;
using test::ReferenceResult;
using test::run_engine;
using test::worst_error;

const std::string kFolder = FORETOKEN_TEST_DATA "/checkpoints/";
const std::vector<TokenId> kIds = {5,  77, 200, 33,  5,  77, 120, 9,   255, 0, 261, 64,
                                   64, 31, 7,   180, 92, 92, 13,  240, 111, 3, 58,  259};
constexpr int64_t kVocabSize = 264;

struct Checkpoint {
  const char* name;
  bool has_mtp;
};

constexpr Checkpoint kCheckpoints[] = {
    {"qwen35moe", true},
    {"qwen35moe-yarn", true},
    {"qwen35", true},
    {"qwen35-tied-linear", true},
    {"qwen3next", true},
    {"qwen3next-yarn", true},
    {"qwen3moe", false},
    {"qwen3moe-bias-yarn", false},
    {"qwen3moe-bias-linear", false},
    {"llama", false},
};

// Bound on the relative error of a position's logits, counted as agreement_test.cpp does it, with u = 2^-24: dots of 64
// terms at most take 3 u, a layer's ten operations sqrt(10) x 4 u = 13 u, two layers joined in the root of squares 18 u;
// exp of gates and softmax turns an error into one 3 times as large at most once a layer: 9 x 18 u = 1e-5. Transformers
// holds the weights in double precision but computes norms, softmax and rotations in float32, a few u each, which lies
// within. The MTP layer is a third layer, which could take three times as much; it is held to the same. Measured: 1e-6
// in the trunk and 2e-6 in the MTP layer at most.
constexpr double kBound = 1e-5;

struct Logits {
  std::vector<double> trunk, mtp;  // [positions, vocabulary]
};

Logits read_logits(const std::string& name) {
  const std::string path = kFolder + name + ".f32";
  std::vector<float> values(std::filesystem::file_size(path) / sizeof(float));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  REQUIRE(file.good());
  const auto one = static_cast<std::ptrdiff_t>(kIds.size()) * kVocabSize;
  REQUIRE((std::ssize(values) == one || std::ssize(values) == 2 * one));
  return {{values.begin(), values.begin() + one}, {values.begin() + one, values.end()}};
}

void check(const Model& model, const Logits& want) {
  REQUIRE(model.config().vocab_size == kVocabSize);
  for (const int chunk : {static_cast<int>(kIds.size()), 5}) {
    INFO("chunks of " << chunk);
    const EngineLogits got = run_engine(model, kIds, KvType::kF32, model.has_mtp(), chunk);
    const double trunk = worst_error(got.trunk, want.trunk, kVocabSize);
    const double mtp = worst_error(got.mtp, want.mtp, kVocabSize);
    INFO("relative error of the trunk's logits " << trunk << ", of the MTP layer's " << mtp);
    CHECK(trunk < kBound);
    CHECK(mtp < kBound);
  }
}

TEST_CASE("checkpoints of transformers, converted by llama.cpp, have the logits of transformers") {
  for (const Checkpoint& checkpoint : kCheckpoints) {
    DYNAMIC_SECTION(checkpoint.name) {
      const Logits want = read_logits(checkpoint.name);
      REQUIRE(want.mtp.empty() == !checkpoint.has_mtp);
      for (const bool repack : {true, false}) {
        INFO("repack " << repack);
        LoadOptions options;
        options.repack = repack;
        const Model model = Model::load(kFolder + checkpoint.name + ".gguf", options);
        REQUIRE(model.has_mtp() == checkpoint.has_mtp);
        check(model, want);
      }
    }
  }
}

TEST_CASE("an MTP layer that the converter wrote into a file of its own has the logits of transformers") {
  const test::TempFolder folder;
  GgufEdit trunk(kFolder + "qwen35moe.gguf");
  std::erase_if(trunk.tensors, [](const GgufEdit::Tensor& tensor) { return tensor.name.starts_with("blk.2."); });
  trunk.set_uint32("qwen35moe.block_count", 2);
  trunk.remove_key("qwen35moe.nextn_predict_layers");
  const std::string path = folder.file("trunk.gguf");
  trunk.write(path);
  LoadOptions options;
  options.mtp_path = kFolder + "mtp-qwen35moe.gguf";
  const Model model = Model::load(path, options);
  REQUIRE(model.has_mtp());
  check(model, read_logits("qwen35moe"));
}

TEST_CASE("the reference agrees with transformers") {
  for (const Checkpoint& checkpoint : kCheckpoints) {
    INFO(checkpoint.name);
    ReferenceModel reference(kFolder + checkpoint.name + ".gguf");
    const ReferenceResult got = reference.forward(kIds);
    const Logits want = read_logits(checkpoint.name);
    const auto error = [](const std::vector<double>& found, const std::vector<double>& expected) {
      return worst_error(std::vector<float>(found.begin(), found.end()), expected, kVocabSize);
    };
    const double trunk = error(got.logits, want.trunk), mtp = error(got.mtp_logits, want.mtp);
    INFO("relative error of the trunk's logits " << trunk << ", of the MTP layer's " << mtp);
    CHECK(trunk < kBound);
    CHECK(mtp < kBound);
  }
}

}  // namespace
}  // namespace foretoken
