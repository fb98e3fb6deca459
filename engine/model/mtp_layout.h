#pragma once

#include <string>
#include <vector>

#include "engine/model/metadata.h"

namespace foretoken {

/// Upper limit that no real model reaches.
inline constexpr int64_t kMaxLayers = 4096;

/// Which blocks of a file are the trunk's and which is the MTP layer: blocks [0, num_layers) are the trunk, block
/// num_layers is the MTP layer if num_mtp_layers is 1.
struct MtpLayout {
  int num_layers = 0;
  int num_mtp_layers = 0;
  std::string absence;  // why there is no MTP layer; empty if there is one
};

/// From block_count, nextn_predict_layers and the tensors' names. A declared MTP layer of which the file has nothing
/// is absent, as in files whose MTP layer lies in a file of its own. Throws InputError where keys and tensors part in
/// another way: an MTP layer among the trunk's layers, blocks beyond the block count, a part of an MTP layer, a file
/// that holds an MTP layer alone. `most` is the number of MTP layers that the architecture can have.
[[nodiscard]] MtpLayout read_mtp_layout(const Metadata& keys, int most);

/// Names of the files in the folder of `path` that are called as files with an MTP layer alone are: mtp-*.gguf.
[[nodiscard]] std::vector<std::string> find_mtp_files(const std::string& path);

}  // namespace foretoken
