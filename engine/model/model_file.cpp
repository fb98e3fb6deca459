#include "engine/model/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "engine/gguf/tensor_name.h"
#include "engine/model/families/family.h"
#include "engine/model/mtp_layout.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

namespace fs = std::filesystem;

/// Files of a folder that hold no model of their own: MTP layers, encoders of images, parts of a split but the first.
bool is_companion(std::string_view name) {
  const size_t of = name.rfind("-of-");
  const bool is_part = of != std::string_view::npos && of >= 6 && name.size() == of + 14;
  return name.starts_with("mtp-") || name.starts_with("mmproj") || (is_part && name.substr(of - 6, 6) != "-00001");
}

/// The block that is a file's MTP layer, by its tensors' names.
std::optional<int> find_mtp_block(const GgufFile& file) {
  for (const GgufTensor& tensor : file.tensors()) {
    const auto [index, part] = split_tensor_name(tensor.name);
    if (index >= 0 && part.starts_with("nextn.")) return index;
  }
  return std::nullopt;
}

std::optional<double> number_of(const GgufValue& value) {
  if (const auto* n = std::get_if<uint64_t>(&value)) return static_cast<double>(*n);
  if (const auto* n = std::get_if<int64_t>(&value)) return static_cast<double>(*n);
  if (const auto* n = std::get_if<double>(&value)) return *n;
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? 1.0 : 0.0;
  return std::nullopt;
}

/// Why the MTP layer of `mtp`, block `block`, is not one of `model`; empty if it is.
std::string find_disagreement(const GgufFile& model, const GgufFile& mtp, int block) {
  const std::string_view architecture = model.get_string("general.architecture");
  const std::string_view other = mtp.get_string("general.architecture", "");
  if (other != architecture)
    return fmt::format("its architecture is '{}', the model's '{}'", printable(other), architecture);
  const std::string prefix = std::string(architecture) + ".";
  const int64_t declared = model.get_int(prefix + "nextn_predict_layers", 0, kMaxLayers, 0);
  const int64_t num_layers = model.get_int(prefix + "block_count", 1, kMaxLayers) - declared;
  if (num_layers != block) {
    return fmt::format("its MTP layer is block {}, behind {} layers, and the model has {}", block, block, num_layers);
  }
  for (const auto& [key, value] : mtp.metadata()) {
    if (!key.starts_with(prefix)) continue;
    const std::string_view name = key.substr(prefix.size());
    if (name == "block_count" || name == "nextn_predict_layers" || name == "context_length") continue;
    const GgufValue* ours = model.find(key);
    if (ours == nullptr) continue;
    const auto theirs = number_of(value), own = number_of(*ours);
    if (theirs && own && *theirs != *own)
      return fmt::format("key {} is {} there, {} in the model", printable(key), *theirs, *own);
  }
  constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
  if (mtp.find(kTokens) != nullptr && model.find(kTokens) != nullptr &&
      mtp.get_string_array(kTokens) != model.get_string_array(kTokens)) {
    return fmt::format("its vocabulary is another ({} tokens, the model's has {})",
                       mtp.get_string_array(kTokens).size(), model.get_string_array(kTokens).size());
  }
  const GgufTensor* embed = mtp.find_tensor("token_embd.weight");
  const GgufTensor* own_embed = model.find_tensor("token_embd.weight");
  if (embed != nullptr && own_embed != nullptr && embed->shape != own_embed->shape) {
    return fmt::format("its token_embd.weight has the shape [{}], the model's [{}]", fmt::join(embed->shape, ", "),
                       fmt::join(own_embed->shape, ", "));
  }
  return "";
}

/// Takes the MTP layer out of `mtp`; the model's keys then say what those of a file with both would.
void take_mtp_layer(GgufFile& model, GgufFile mtp, int block) {
  const std::string prefix = std::string(model.get_string("general.architecture")) + ".";
  const std::string tensors = fmt::format("blk.{}.", block);
  model.set_key(prefix + "block_count", static_cast<uint64_t>(block) + 1);
  model.set_key(prefix + "nextn_predict_layers", 1);
  model.adopt(std::move(mtp), [&](std::string_view name) { return name.starts_with(tensors); });
}

/// Whether models of the file's architecture can have an MTP layer, and this file has none.
bool lacks_mtp_layer(const GgufFile& file) {
  const Family* family = find_family(file.get_string("general.architecture", ""));
  return family != nullptr && family->most_mtp_layers > 0 && !find_mtp_block(file);
}

}  // namespace

std::string find_model(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return path;
  std::vector<std::string> names;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.ends_with(".gguf") && !is_companion(name)) names.push_back(name);
  }
  if (error) throw InputError(fmt::format("{}: cannot read the folder: {}", printable(path, 4096), error.message()));
  std::sort(names.begin(), names.end());
  if (names.empty())
    throw InputError(fmt::format("{}: is a folder without a model; name a .gguf file", printable(path, 4096)));
  if (names.size() > 1) {
    for (std::string& name : names) name = printable(name);
    throw InputError(fmt::format("{}: is a folder with {} models; name one of them: {}", printable(path, 4096),
                                 names.size(), fmt::join(names, ", ")));
  }
  return (fs::path(path) / names[0]).string();
}

ModelFile open_model(const std::string& path, const std::string& mtp_path) {
  ModelFile model{GgufFile::open(find_model(path)), "", ""};
  GgufFile& file = model.file;
  if (!mtp_path.empty()) {
    const auto fail = [&](std::string_view what) {
      throw InputError(
          fmt::format("{}: is no MTP layer for {}: {}", printable(mtp_path, 4096), printable(file.path(), 4096), what));
    };
    if (find_mtp_block(file)) fail("the model's file has one of its own; leave --model-draft out");
    if (const std::string_view name = file.get_string("general.architecture"); !lacks_mtp_layer(file))
      fail(fmt::format("MTP layers of the architecture '{}' are not supported", printable(name)));
    GgufFile mtp = GgufFile::open(mtp_path);
    const auto block = find_mtp_block(mtp);
    if (!block) fail("there are no tensors blk.N.nextn.* in it");
    const std::string disagreement = find_disagreement(file, mtp, *block);
    if (!disagreement.empty()) fail(disagreement);
    take_mtp_layer(file, std::move(mtp), *block);
    model.mtp_path = mtp_path;
    return model;
  }
  if (!lacks_mtp_layer(file)) return model;
  struct Found {
    std::string path;
    GgufFile file;
    int block;
  };
  std::vector<Found> found;
  std::vector<std::string> passed;
  for (const std::string& name : find_mtp_files(file.path())) {
    const std::string beside = (fs::path(file.path()).parent_path() / name).string();
    try {
      GgufFile mtp = GgufFile::open(beside);
      const auto block = find_mtp_block(mtp);
      const std::string why =
          block ? find_disagreement(file, mtp, *block) : std::string("there are no tensors blk.N.nextn.* in it");
      if (why.empty()) {
        found.push_back({beside, std::move(mtp), *block});
      } else {
        passed.push_back(fmt::format("{} beside it is not used: {}", printable(name), why));
      }
    } catch (const InputError& error) {
      passed.push_back(fmt::format("{} beside it is not used: {}", printable(name), error.what()));
    }
  }
  if (found.size() == 1) {
    take_mtp_layer(file, std::move(found[0].file), found[0].block);
    model.mtp_path = found[0].path;
    return model;
  }
  if (found.size() > 1) {
    std::vector<std::string> names;
    for (const Found& one : found) names.push_back(printable(fs::path(one.path).filename().string()));
    passed.push_back(fmt::format("{} beside it hold one each: choose by --model-draft", fmt::join(names, " and ")));
  }
  model.passed = fmt::format("{}", fmt::join(passed, "; "));
  return model;
}

}  // namespace foretoken
