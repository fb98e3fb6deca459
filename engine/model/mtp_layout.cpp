#include "engine/model/mtp_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string_view>

#include "engine/gguf/gguf.h"
#include "engine/gguf/tensor_name.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr std::string_view kCountKey = "block_count";
constexpr std::string_view kMtpKey = "nextn_predict_layers";

/// The first tensor of a block, and its first one that only an MTP layer has.
struct Block {
  std::string_view any, nextn;
};

std::map<int, Block> find_blocks(const GgufFile& file) {
  std::map<int, Block> blocks;
  for (const GgufTensor& tensor : file.tensors()) {
    const auto [index, part] = split_tensor_name(tensor.name);
    if (index < 0) continue;
    Block& block = blocks[index];
    if (block.any.empty()) block.any = tensor.name;
    if (block.nextn.empty() && part.starts_with("nextn.")) block.nextn = tensor.name;
  }
  return blocks;
}

class Reader {
 public:
  Reader(const Metadata& keys, int most) : keys_(keys), most_(most), blocks_(find_blocks(keys.file())) {}

  MtpLayout read() {
    num_blocks_ = static_cast<int>(keys_.integer(kCountKey, 1, kMaxLayers));
    declared_ = static_cast<int>(keys_.integer(kMtpKey, 0, kMaxLayers, 0));
    if (declared_ > most_)
      keys_.fail(kMtpKey, fmt::format("{} MTP layers; at most {} are supported here", declared_, most_));
    if (declared_ >= num_blocks_)
      keys_.fail(kCountKey, fmt::format("{} leaves no trunk layer beside the MTP layer", num_blocks_));
    num_layers_ = num_blocks_ - declared_;
    refuse_mtp_alone();
    refuse_blocks_beyond();
    refuse_mtp_in_trunk();
    if (declared_ == 0) return {num_layers_, 0, undeclared_absence()};
    const auto found = blocks_.find(num_layers_);
    if (found == blocks_.end()) {
      return {num_layers_, 0,
              fmt::format("the file has no MTP layer: key {} is {}, but there are no tensors blk.{}.nextn.*",
                          keys_.full(kMtpKey), declared_, num_layers_)};
    }
    if (found->second.nextn.empty()) {
      fail(
          fmt::format("tensor {}: key {} of {} makes block {} the MTP layer, but there are no tensors blk.{}.nextn.*; "
                      "convert the file again with its MTP layer, or, if the block is one of the trunk, with {} 0",
                      found->second.any, keys_.full(kMtpKey), declared_, num_layers_, num_layers_, kMtpKey));
    }
    return {num_layers_, 1, ""};
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw InputError(fmt::format("{}: {}", keys_.file().path(), what));
  }

  [[nodiscard]] std::string declared_text() const {
    return keys_.has(kMtpKey) ? fmt::format("is {}", declared_) : std::string("is missing");
  }

  [[nodiscard]] std::string undeclared_absence() const {
    for (const GgufTensor& tensor : keys_.file().tensors()) {
      if (!tensor.name.starts_with("mtp.")) continue;
      return fmt::format("the file has its MTP layer under the names of the original alone ({}); convert it again",
                         printable(tensor.name));
    }
    return "the file has no MTP layer";
  }

  void refuse_mtp_alone() const {
    if (blocks_.empty() || blocks_.begin()->first < num_layers_ || blocks_.begin()->second.nextn.empty()) return;
    fail(
        fmt::format("the file holds an MTP layer alone (block {}; the trunk's blocks 0 to {} are not in it); name the "
                    "model's own file by -m and this one by --model-draft",
                    blocks_.begin()->first, num_layers_ - 1));
  }

  void refuse_blocks_beyond() const {
    if (blocks_.empty() || blocks_.rbegin()->first < num_blocks_) return;
    const auto beyond = blocks_.lower_bound(num_blocks_);
    const auto mtp = std::find_if(beyond, blocks_.end(), [](const auto& block) { return !block.second.nextn.empty(); });
    if (mtp != blocks_.end()) {
      fail(
          fmt::format("tensor {} belongs to an MTP layer beyond the model's blocks: key {} is {} and {} {}; with {} "
                      "blocks and 1 MTP layer it would be used",
                      mtp->second.nextn, keys_.full(kCountKey), num_blocks_, kMtpKey, declared_text(), mtp->first + 1));
    }
    fail(fmt::format("tensor {} belongs to no block of the model: key {} is {}, blocks 0 to {}", beyond->second.any,
                     keys_.full(kCountKey), num_blocks_, num_blocks_ - 1));
  }

  void refuse_mtp_in_trunk() const {
    for (const auto& [index, block] : blocks_) {
      if (index >= num_layers_ || block.nextn.empty()) continue;
      fail(fmt::format("tensor {} belongs to an MTP layer, but key {} {} and makes block {} a layer of the trunk; {}",
                       block.nextn, keys_.full(kMtpKey), declared_text(), index,
                       most_ == 0 ? "MTP layers of this architecture are not supported"
                                  : fmt::format("{} of {} is needed", kMtpKey, num_blocks_ - index)));
    }
  }

  const Metadata& keys_;
  const int most_;
  const std::map<int, Block> blocks_;
  int num_blocks_ = 0, declared_ = 0, num_layers_ = 0;
};

}  // namespace

MtpLayout read_mtp_layout(const Metadata& keys, int most) {
  return Reader(keys, most).read();
}

std::vector<std::string> find_mtp_files(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(path).parent_path();
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder.empty() ? "." : folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with("mtp-") && name.ends_with(".gguf") && name != fs::path(path).filename()) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace foretoken
