#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/families/families.h"

namespace {

namespace fs = std::filesystem;

/// From the bottom to the top: a folder may include itself and what stands before it.
constexpr std::array<std::string_view, 5> kFolders = {"kernels", "moe", "engine", "mtp", "tools"};

int rank_of(std::string_view folder) {
  const auto found = std::find(kFolders.begin(), kFolders.end(), folder);
  return found == kFolders.end() ? -1 : static_cast<int>(found - kFolders.begin());
}

/// Lines of `text`, a file of `folder`, that break the order of the folders.
std::vector<std::string> wrong_includes(std::string_view folder, const std::string& text) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)re");
  static const std::regex kHardware(R"re((.*intrin\.h|cuda.*|cublas.*|mma\.h|simde/.*|arm_neon\.h))re");
  std::vector<std::string> wrong;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, kInclude)) continue;
    const std::string path = match[2];
    const bool ours = match[1] == "\"";
    const int rank = rank_of(path.substr(0, path.find('/')));
    const bool upwards = ours && rank > rank_of(folder);
    const bool homeless = ours && rank < 0;  // every file of ours is named from the root
    const bool hardware = folder != "kernels" && std::regex_match(path, kHardware);
    if (upwards || homeless || hardware) wrong.push_back(line);
  }
  return wrong;
}

/// Which rooms of its folder a room may include files of, beside its own; docs/design.md has the same in words. Files that
/// lie in the folder itself are for all of its rooms.
const std::map<std::string, std::set<std::string>> kRooms = {
    {"kernels/base", {}},
    {"kernels/threads", {"base", "formats"}},
    {"kernels/formats", {"base", "cuda"}},
    {"kernels/cuda", {"base", "formats", "rows"}},
    {"kernels/matmul", {"base", "formats", "cuda", "rows"}},
    {"kernels/rows", {"base", "formats", "cuda", "matmul"}},
    {"kernels/attention", {"base", "cuda", "matmul"}},
    {"kernels/delta_net", {"base", "cuda", "matmul"}},
    {"kernels/select", {"base", "formats", "cuda", "matmul"}},
    {"kernels/probe", {"base", "threads"}},
    {"engine/gguf", {"text"}},
    {"engine/text", {"gguf"}},
    {"engine/model", {"gguf", "text"}},
    {"engine/sequence", {"model"}},
    {"engine/cpu", {"model", "sequence", "text"}},
    {"engine/cluster", {"cpu", "model", "sequence"}},
    {"engine/cuda", {"cpu", "model", "sequence"}},
};

/// Lines of `text`, a file of `room` ("kernels/rows"), that go to a room of the same folder that it does not know.
std::vector<std::string> wrong_rooms(const std::string& room, const std::string& text) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*"(\w+)/(\w+)/[^"]*".*)re");
  const auto known = kRooms.find(room);
  std::vector<std::string> wrong;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, kInclude)) continue;
    const std::string folder = match[1], other = match[2];
    if (!room.starts_with(folder + "/") || folder + "/" + other == room) continue;
    if (known == kRooms.end() || known->second.count(other) == 0) wrong.push_back(line);
  }
  return wrong;
}

bool is_source(const fs::path& path) {
  static constexpr std::array<std::string_view, 5> kEndings = {".h", ".cpp", ".cu", ".cuh", ".inc"};
  return std::find(kEndings.begin(), kEndings.end(), path.extension().string()) != kEndings.end();
}

}  // namespace

TEST_CASE("Calls go only downwards: tools, mtp, engine, moe, kernels", "[layering]") {
  int num_files = 0;
  for (std::string_view folder : kFolders) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(fs::path(FORETOKEN_SOURCE_DIR) / folder)) {
      if (!entry.is_regular_file() || !is_source(entry.path())) continue;
      std::ifstream file(entry.path());
      std::ostringstream text;
      text << file.rdbuf();
      INFO(entry.path().string());
      CHECK(wrong_includes(folder, text.str()) == std::vector<std::string>{});
      ++num_files;
    }
  }
  CHECK(num_files > 60);
}

TEST_CASE("Rooms of a folder include the rooms that they are said to know, and no others", "[layering]") {
  for (std::string_view folder : {"kernels", "engine"}) {
    const fs::path root = fs::path(FORETOKEN_SOURCE_DIR) / folder;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root)) {
      const fs::path path = entry.path().lexically_relative(root);
      if (!entry.is_regular_file() || !is_source(path) || path.begin() == std::prev(path.end())) continue;
      std::ifstream file(entry.path());
      std::ostringstream text;
      text << file.rdbuf();
      const std::string room = std::string(folder) + "/" + path.begin()->string();
      INFO(entry.path().string());
      CHECK(kRooms.count(room) == 1);
      CHECK(wrong_rooms(room, text.str()) == std::vector<std::string>{});
    }
  }
}

// What differs between families of models is in one place: nobody else asks for an architecture by name.
TEST_CASE("Architectures are named where families are described, and nowhere else", "[layering]") {
  const auto may_name = [](const std::string& path) {
    return path.find("/engine/model/families/") != std::string::npos ||
           path.find("/tools/synth/") != std::string::npos ||
           path.ends_with("/engine/text/pretokenizer.cpp");  // pre-tokenizers have such names too
  };
  int num_naming = 0;
  for (std::string_view folder : kFolders) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(fs::path(FORETOKEN_SOURCE_DIR) / folder)) {
      if (!entry.is_regular_file() || !is_source(entry.path())) continue;
      std::ifstream file(entry.path());
      std::ostringstream text;
      text << file.rdbuf();
      for (const foretoken::Family* family : foretoken::kFamilies) {
        if (text.str().find(fmt::format("\"{}\"", family->architecture)) == std::string::npos) continue;
        INFO(entry.path().string() << " names " << family->architecture);
        CHECK(may_name(entry.path().string()));
        ++num_naming;
      }
    }
  }
  CHECK(num_naming >= static_cast<int>(foretoken::kFamilies.size()));
}

// Arithmetic does not know what rows are for.
TEST_CASE("kernels/ names neither drafts nor the MTP layer", "[layering]") {
  static const std::regex kWords(R"re(mtp|draft)re", std::regex::icase);
  const auto named = [](const std::string& text) {
    return std::vector<std::string>(std::sregex_token_iterator(text.begin(), text.end(), kWords), {});
  };
  for (const fs::directory_entry& entry :
       fs::recursive_directory_iterator(fs::path(FORETOKEN_SOURCE_DIR) / "kernels")) {
    if (!entry.is_regular_file() || !is_source(entry.path())) continue;
    std::ifstream file(entry.path());
    std::ostringstream text;
    text << file.rdbuf();
    INFO(entry.path().string());
    CHECK(named(text.str()) == std::vector<std::string>{});
  }
  CHECK(named("int max_drafts = 0; // kMtpLayer, Drafts").size() == 3);
  CHECK(named("// a Draft of the MTP layer").size() == 2);
}

TEST_CASE("The layering check sees what it is there for", "[layering]") {
  CHECK(wrong_includes("moe", "#include \"engine/session.h\"\n").size() == 1);
  CHECK(wrong_includes("kernels", "  #  include \"moe/router.h\"  // why\n").size() == 1);
  CHECK(wrong_includes("engine", "#include \"mtp/decoder.h\"\n#include \"tools/cli/version.h\"\n").size() == 2);
  CHECK(wrong_includes("engine", "#include \"session.h\"\n").size() == 1);
  CHECK(wrong_includes("engine", "#include <immintrin.h>\n").size() == 1);
  CHECK(wrong_includes("mtp", "#include <cuda_runtime.h>\n").size() == 1);
  CHECK(wrong_includes("engine", "#include <cublas_v2.h>\n").size() == 1);
  CHECK(wrong_includes("kernels", "#include <immintrin.h>\n#include \"kernels/base/isa.h\"\n").empty());
  CHECK(wrong_includes("tools", "#include \"mtp/decoder.h\"\n#include <vector>\n#include \"engine/gguf/gguf.h\"\n")
            .empty());
  CHECK(wrong_rooms("kernels/base", "#include \"kernels/formats/matrix.h\"\n").size() == 1);
  CHECK(wrong_rooms("engine/model", "  #include \"engine/cpu/forward_pass.h\"  // why\n").size() == 1);
  CHECK(wrong_rooms("engine/attic", "#include \"engine/gguf/gguf.h\"\n").size() == 1);
  CHECK(wrong_rooms("engine/model",
                    "#include \"engine/options.h\"\n#include \"kernels/rows/rms_norm.h\"\n"
                    "#include \"engine/gguf/gguf.h\"\n#include \"engine/model/model.h\"\n")
            .empty());
}
