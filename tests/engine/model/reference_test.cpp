#include "tests/engine/model/reference.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

// The reference itself against logits that a second implementation (numpy, with the gguf package to decode weights)
// gave for the same files.

namespace foretoken {
namespace {

using test::Activations;
using test::ReferenceModel;
using test::ReferenceResult;

std::vector<float> read_floats(const std::string& path) {
  std::vector<float> values(std::filesystem::file_size(path) / sizeof(float));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  REQUIRE(file.good());
  return values;
}

struct Case {
  std::string model, data;
  std::vector<TokenId> ids;
  int64_t step;  // every so-manieth column is stored
};

TEST_CASE("the reference agrees with an independent implementation") {
  const std::vector<TokenId> small = {5, 77, 200, 33, 5, 77, 120, 9, 268, 0, 271, 64};
  const std::string data = FORETOKEN_TEST_DATA;
  const std::vector<Case> cases = {
      {data + "/reference-qwen3moe.gguf", "reference-qwen3moe", small, 1},
      {data + "/reference-qwen35.gguf", "reference-qwen35", small, 1},
      {FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf",
       "reference-demo",
       {728, 594, 198, 728, 718, 293, 491, 539, 1594, 269, 258, 337, 463, 592, 517, 272, 11, 220},
       8},
  };
  for (const Case& c : cases) {
    for (const auto& [activations, suffix] :
         {std::pair(Activations::kExact, "-exact.f32"), std::pair(Activations::kInt8, "-int8.f32")}) {
      INFO(c.data << suffix);
      ReferenceModel model(c.model, {.activations = activations});
      const ReferenceResult got = model.forward(c.ids);
      const std::vector<float> want = read_floats(data + "/" + c.data + suffix);
      std::vector<double> all = got.logits;
      all.insert(all.end(), got.mtp_logits.begin(), got.mtp_logits.end());
      REQUIRE(want.size() * static_cast<size_t>(c.step) == all.size());
      double difference = 0, norm = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const double value = all[i * static_cast<size_t>(c.step)];
        difference += (value - double{want[i]}) * (value - double{want[i]});
        norm += value * value;
      }
      // Stored as float32: each value is off by 2^-24 of its size at most, and so is the whole. Both sides compute in
      // double.
      CHECK(std::sqrt(difference / norm) < 0x1p-24);
    }
  }
}

}  // namespace
}  // namespace foretoken
