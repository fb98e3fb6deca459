#pragma once

#include <string>

#include "engine/gguf/gguf.h"

namespace foretoken {

/// A model's file, with its MTP layer also where that lies in a file of its own.
struct ModelFile {
  GgufFile file;
  std::string mtp_path;  // the file that the MTP layer comes from; empty: the model's own, or there is none
  std::string passed;    // why files beside the model that may hold its MTP layer are not used; empty if there are none
};

/// The file that `path` names: of a folder, its only model. Throws InputError for a folder with none or several.
[[nodiscard]] std::string find_model(const std::string& path);

/// Opens a model by find_model(). Where it has no MTP layer and `mtp_path` is empty, an mtp-*.gguf in its folder that
/// agrees with it gives the MTP layer; where several do, none.
///
/// A file with an MTP layer may hold that alone, with or without copies of embedding and head, or a whole model: its
/// MTP layer is what is taken. Architecture, vocabulary, number of trunk layers and every number that both files have
/// of their architecture must be the same. Throws InputError for an `mtp_path` that has no MTP layer or disagrees, and
/// where the model has one of its own.
[[nodiscard]] ModelFile open_model(const std::string& path, const std::string& mtp_path = "");

}  // namespace foretoken
