#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "kernels/formats/grid_levels.h"
#include "kernels/threads/numa.h"
#include "tests/engine/model/random_model.h"
#include "tests/tools/subprocess.h"

// A repacked file gives the bits of the file that it was made from, is known for what it is, and is refused where it is
// not what it says.

using foretoken::GgufFile;
using foretoken::Layout;
using foretoken::WeightType;
using foretoken::test::GgufEdit;
using foretoken::test::kDemoModel;
using foretoken::test::matrix_model;
using foretoken::test::Outcome;
using foretoken::test::RandomModel;
using foretoken::test::read_all;
using foretoken::test::run;
using foretoken::test::TempFolder;
using foretoken::test::write_file;
using Json = nlohmann::json;

namespace {

std::string repacked(const TempFolder& folder, const std::string& model, const std::string& name = "repacked.gguf") {
  const Outcome outcome = run({"repack", model, folder.file(name)});
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  CHECK(outcome.out.find("tensors interleaved") != std::string::npos);
  return folder.file(name);
}

Json json_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--json", "-"});
  const Outcome outcome = run(arguments);
  INFO(outcome.err);
  REQUIRE(outcome.exit_code == 0);
  return Json::parse(outcome.out);
}

/// One line, and these words in it. What a session will take may have been said before.
void check_refused(const Outcome& outcome, int exit_code, const std::vector<std::string>& words) {
  INFO(outcome.err);
  CHECK(outcome.exit_code == exit_code);
  CHECK(outcome.out.empty());
  REQUIRE_FALSE(outcome.err.empty());
  const size_t begin = outcome.err.find("foretoken: ");
  REQUIRE(begin != std::string::npos);
  CHECK((begin == 0 || outcome.err.starts_with("context of ")));
  CHECK(outcome.err.find('\n', begin) == outcome.err.size() - 1);
  for (const std::string& word : words) {
    INFO(word);
    CHECK(outcome.err.find(word) != std::string::npos);
  }
}

Outcome decode(const std::string& model, std::vector<std::string> further = {}) {
  std::vector<std::string> arguments = {"decode", "-m", model, "-p", "a", "-n", "2"};
  arguments.insert(arguments.end(), further.begin(), further.end());
  return run(arguments);
}

}  // namespace

TEST_CASE("repack: selfcheck's cases give the same logits from either file", "[repack]") {
  const TempFolder folder;
  const std::string file = repacked(folder, kDemoModel);
  const auto check = [](const std::string& model) {
    return json_of({"selfcheck", "-m", model, "-n", "6", "-p", "def main():", "--mtp", "2"});
  };
  const Json original = check(kDemoModel), now = check(file);
  CHECK(now["identical"] == true);
  CHECK(now["repacked_file"] == true);
  CHECK(original["repacked_file"] == false);
  CHECK(now["cases"][0]["logits_sha256"] == original["cases"][0]["logits_sha256"]);
  CHECK(now["model_sha256"] == original["model_sha256"]);
  bool says_what_is_not_run = false;
  for (const Json& item : now["not_run"]) says_what_is_not_run |= item["what"] == "file layout";
  CHECK(says_what_is_not_run);
}

TEST_CASE("repack: every type and family gives the same logits", "[repack]") {
  const TempFolder folder;
  const bool tied = GENERATE(false, true);
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) {
    const auto all = foretoken::all_weight_types();
    for (size_t first = 0; first < all.size(); first += 6) {
      RandomModel shape = matrix_model(architecture);
      shape.tied_head = tied;
      shape.types.clear();
      for (size_t i = 0; i < 6; ++i) shape.types.push_back(all[(first + i) % all.size()].type);
      INFO(architecture << ", types from " << first << " on");
      shape.write(folder.file("m.gguf"));
      const std::string file = repacked(folder, folder.file("m.gguf"));
      const auto eval = [](const std::string& model) {
        return json_of({"eval", "-m", model, "-p", "abcdefgh", "--logits", model + ".npy"});
      };
      (void)eval(folder.file("m.gguf"));
      (void)eval(file);
      const std::string logits = read_all(folder.file("m.gguf") + ".npy");
      CHECK_FALSE(logits.empty());
      CHECK(logits == read_all(file + ".npy"));
    }
  }
}

// Some tokens of a group of sixteen were never seen: their rows are zeros between those of others.
TEST_CASE("repack: a head with rows of zeros is no broken download", "[repack]") {
  const TempFolder folder;
  const std::string model = folder.file("model.gguf");
  const Outcome made = run({"synth", model, "--shape", "tiny", "--type", "q8_0"});
  INFO(made.err);
  REQUIRE(made.exit_code == 0);
  const std::string copy = repacked(folder, model);
  const auto ids_of = [&](const std::string& file) {
    return json_of({"decode", "-m", file, "-p", "x", "-n", "8", "--ignore-eos"})["ids"];
  };
  CHECK(ids_of(copy) == ids_of(model));
}

TEST_CASE("repack: matrices lie where the file is mapped", "[repack]") {
  const TempFolder folder;
  const std::string path = repacked(folder, kDemoModel);
  const GgufFile file = GgufFile::open(path);
  CHECK(file.is_repacked());
  int interleaved = 0;
  for (const foretoken::GgufTensor& tensor : file.tensors()) {
    CHECK(tensor.file_offset % 4096 == 0);
    interleaved += tensor.layout() == Layout::kInterleaved ? 1 : 0;
  }
  CHECK(interleaved > 20);
  const Outcome outcome = decode(path);
  INFO(outcome.err);
  CHECK(outcome.err.find("used in place") != std::string::npos);
}

TEST_CASE("repack: several nodes of memory get copies, whose bytes are the same", "[repack]") {
  const TempFolder folder;
  const std::string path = repacked(folder, kDemoModel);
  const std::vector<int> cpus = foretoken::allowed_cpus();
  REQUIRE_FALSE(cpus.empty());
  foretoken::LoadOptions over_two;
  over_two.nodes = foretoken::NumaNodes({{0, {cpus[0]}}, {1, {cpus.size() > 1 ? cpus[1] : 100001}}});
  const foretoken::Model original = foretoken::Model::load(kDemoModel, {}),
                         copied = foretoken::Model::load(path, over_two), in_place = foretoken::Model::load(path, {});
  const auto bytes_in_memory = [](const foretoken::Model& model) {
    size_t bytes = 0;
    for (const foretoken::AlignedBuffer& buffer : model.weights().buffers) bytes += buffer.size_bytes();
    return bytes;
  };
  CHECK(bytes_in_memory(copied) >= original.weights().matrix_bytes);
  CHECK(bytes_in_memory(in_place) < original.weights().matrix_bytes / 4);
  CHECK(in_place.weights().matrix_bytes == original.weights().matrix_bytes);
  const foretoken::MatrixView& head = original.weights().head;
  for (const foretoken::Model* model : {&copied, &in_place}) {
    const foretoken::MatrixView& other = model->weights().head;
    REQUIRE(other.layout == head.layout);
    CHECK(std::memcmp(other.data, head.data, head.size_bytes()) == 0);
    const foretoken::MatrixView gate = original.weights().layers[1].moe().gate.expert(3),
                                other_gate = model->weights().layers[1].moe().gate.expert(3);
    REQUIRE(other_gate.layout == gate.layout);
    CHECK(std::memcmp(other_gate.data, gate.data, gate.size_bytes()) == 0);
  }
}

TEST_CASE("repack: weights with a grid take the bytes of their levels, in memory and in the file", "[repack]") {
  const TempFolder folder;
  RandomModel shape = matrix_model("qwen35moe");
  shape.types = {WeightType::kIQ3_S, WeightType::kIQ2_XXS, WeightType::kIQ1_M, WeightType::kQ4_K};
  shape.write(folder.file("m.gguf"));
  const foretoken::Model model = foretoken::Model::load(folder.file("m.gguf"), {});
  size_t allocated = 0;
  for (const foretoken::AlignedBuffer& buffer : model.weights().buffers) allocated += buffer.size_bytes();
  CHECK(model.weights().bytes_to_load == allocated);

  const std::string path = repacked(folder, folder.file("m.gguf"));
  const GgufFile original = GgufFile::open(folder.file("m.gguf")), file = GgufFile::open(path);
  std::set<WeightType> larger;
  for (const foretoken::GgufTensor& tensor : file.tensors()) {
    const foretoken::WeightTypeInfo& info = foretoken::weight_type_info(*tensor.type());
    const bool levels = tensor.layout() == Layout::kInterleaved && foretoken::has_levels(info.type);
    if (levels) larger.insert(info.type);
    const size_t block_bytes = !levels                             ? static_cast<size_t>(info.block_bytes)
                               : info.type == WeightType::kIQ3_S   ? 134
                               : info.type == WeightType::kIQ2_XXS ? 102
                                                                   : 78;
    CHECK(tensor.size_bytes == static_cast<size_t>(tensor.num_values() / info.block_size) * block_bytes);
    CHECK((tensor.size_bytes > original.find_tensor(tensor.name)->size_bytes) == levels);
  }
  CHECK(larger.size() == 3);
  CHECK(foretoken::Model::load(path, {}).weights().matrix_bytes == model.weights().matrix_bytes);
}

TEST_CASE("repack: inspect says whose the layout is", "[repack]") {
  const TempFolder folder;
  const std::string file = repacked(folder, kDemoModel);
  const Json original = json_of({"inspect", kDemoModel}), now = json_of({"inspect", file});
  CHECK(original["repack_version"].is_null());
  CHECK(now["repack_version"] == 1);
  CHECK(now["can_run"] == true);
  CHECK(now["model_sha256"] == original["model_sha256"]);
  const Outcome text = run({"inspect", file});
  CHECK(text.out.find("repacked for this program, layout version 1") != std::string::npos);
  CHECK(text.out.find(" x16 ") != std::string::npos);
}

TEST_CASE("repack: flags and arguments that do not go together are answered", "[repack]") {
  const TempFolder folder;
  const std::string file = repacked(folder, kDemoModel);
  check_refused(decode(file, {"--no-repack"}), 2, {"--no-repack", "is repacked", "original"});
  check_refused(run({"repack", kDemoModel}), 2, {"name the file"});
  check_refused(run({"repack", kDemoModel, "a", "b"}), 2, {"'b'"});
  check_refused(run({"repack", file, folder.file("twice.gguf")}), 1, {"is repacked already"});
  check_refused(run({"repack", folder.file("none.gguf"), folder.file("x.gguf")}), 1, {"none.gguf"});
  std::filesystem::copy_file(kDemoModel, folder.file("own.gguf"));
  std::filesystem::create_symlink(folder.file("own.gguf"), folder.file("link.gguf"));
  check_refused(run({"repack", folder.file("own.gguf"), folder.file("link.gguf")}), 1, {"would replace"});
  CHECK(read_all(folder.file("own.gguf")) == read_all(kDemoModel));
  CHECK_FALSE(std::filesystem::exists(folder.file("twice.gguf")));
  CHECK_FALSE(std::filesystem::exists(folder.file("x.gguf")));
}

TEST_CASE("repack: a model that cannot run is not written", "[repack]") {
  const TempFolder folder;
  GgufEdit edit(kDemoModel);
  edit.remove_tensor("output_norm.weight");
  edit.write(folder.file("bad.gguf"));
  check_refused(run({"repack", folder.file("bad.gguf"), folder.file("x.gguf")}), 1, {"output_norm.weight", "missing"});
  GgufEdit damaged(kDemoModel);
  // A block of Q8_0 begins with its scale: 0x7c00 is infinity.
  bool spoiled = false;
  for (GgufEdit::Tensor& tensor : damaged.tensors) {
    if (tensor.type_id != 8 || spoiled) continue;
    tensor.bytes[0] = std::byte{0};
    tensor.bytes[1] = std::byte{0x7c};
    spoiled = true;
  }
  REQUIRE(spoiled);
  damaged.write(folder.file("bad.gguf"));
  check_refused(run({"repack", folder.file("bad.gguf"), folder.file("x.gguf")}), 1, {"not finite", "damaged"});
  CHECK_FALSE(std::filesystem::exists(folder.file("x.gguf")));
}

TEST_CASE("repack: a file that is not what it says is refused in a line", "[repack]") {
  const TempFolder folder;
  const std::string file = repacked(folder, kDemoModel), bad = folder.file("bad.gguf");
  GgufEdit edit(file);
  edit.remove_key("general.alignment");  // written again with the default one
  GgufEdit::Tensor* interleaved = nullptr;
  GgufEdit::Tensor* vector = nullptr;
  for (GgufEdit::Tensor& tensor : edit.tensors) {
    if (tensor.type_id == foretoken::kInterleavedTypeIds + 12 && interleaved == nullptr) interleaved = &tensor;  // Q4_K
    if (tensor.shape.size() == 1 && vector == nullptr) vector = &tensor;
  }
  REQUIRE(interleaved != nullptr);
  REQUIRE(vector != nullptr);

  SECTION("a later version of the layout") {
    edit.set_uint32("foretoken.repack.version", 2);
    edit.write(bad);
    check_refused(decode(bad), 1, {"foretoken.repack.version", "2", "version 1", "original"});
  }
  SECTION("no version") {
    edit.remove_key("foretoken.repack.version");
    edit.write(bad);
    check_refused(decode(bad), 1, {"x16", "foretoken.repack.version", "original"});
  }
  SECTION("a version that is a word") {
    edit.set_string("foretoken.repack.version", "one");
    edit.write(bad);
    check_refused(decode(bad), 1, {"foretoken.repack.version", "no integer"});
  }
  SECTION("no source, or one that is no hash") {
    edit.set_string("foretoken.repack.source_sha256", "0123");
    edit.write(bad);
    check_refused(decode(bad), 1, {"foretoken.repack.source_sha256", "SHA-256"});
  }
  SECTION("rows that make no groups") {
    interleaved->shape[1] -= 1;
    edit.write(bad);
    check_refused(decode(bad), 1, {interleaved->name, "groups of 16 rows"});
  }
  SECTION("another shape") {
    std::swap(interleaved->shape[0], interleaved->shape[1]);
    interleaved->shape[1] *= 2;
    interleaved->bytes.resize(interleaved->bytes.size() * 2);
    edit.write(bad);
    check_refused(decode(bad), 1, {interleaved->name, "shape"});
  }
  SECTION("a vector in groups") {
    vector->type_id = foretoken::kInterleavedTypeIds + 8;
    edit.write(bad);
    check_refused(decode(bad), 1, {vector->name, "groups of 16 rows"});
  }
  SECTION("floats in groups") {
    interleaved->type_id = foretoken::kInterleavedTypeIds + 1;
    interleaved->bytes.resize(2 * interleaved->shape[0] * interleaved->shape[1]);
    edit.write(bad);
    check_refused(decode(bad), 1, {interleaved->name, "groups of 16 rows"});
  }
  SECTION("a type that nobody knows") {
    interleaved->type_id = foretoken::kInterleavedTypeIds + 999;
    edit.write(bad);
    check_refused(decode(bad), 1, {interleaved->name, "not supported"});
  }
  SECTION("a scale that is infinite") {
    // The two scales of each of sixteen rows stand first.
    interleaved->bytes[6] = std::byte{0};
    interleaved->bytes[7] = std::byte{0x7c};
    edit.write(bad);
    check_refused(decode(bad), 1, {interleaved->name, "not finite", "damaged"});
  }
  SECTION("an end that is missing") {
    const std::string bytes = read_all(file);
    write_file(folder, "bad.gguf", bytes.substr(0, bytes.size() - 5000));
    check_refused(decode(bad), 1, {"bad.gguf"});
  }
  SECTION("a header that is cut off or spoiled") {
    const std::string bytes = read_all(file);
    for (size_t length : {size_t{3}, size_t{24}, size_t{1000}}) {
      write_file(folder, "bad.gguf", bytes.substr(0, length));
      check_refused(decode(bad), 1, {"bad.gguf"});
    }
    for (size_t at : {size_t{0}, size_t{4}, size_t{15}, size_t{23}}) {
      std::string spoiled = bytes;
      spoiled[at] = '\x7f';
      write_file(folder, "bad.gguf", spoiled);
      check_refused(decode(bad), 1, {"bad.gguf"});
    }
  }
  SECTION("zeros to the end") {
    std::string bytes = read_all(file);
    std::fill(bytes.end() - static_cast<std::ptrdiff_t>(bytes.size() / 2), bytes.end(), '\0');
    write_file(folder, "bad.gguf", bytes);
    check_refused(decode(bad), 1, {"zero"});
  }
}
