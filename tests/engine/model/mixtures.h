#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/formats/weight_type.h"
#include "tests/engine/model/random_model.h"

namespace foretoken::test {

/// Which types a kind of file deals out to its tensors, as llama.cpp's quantiser does by the name of an `ftype` (for a
/// model of eight experts), or as people publish it. Types are names, so that one which is not supported can be told.
struct Mixture {
  std::string name;
  std::string type;  // of the matrices that no rule names
  /// Part of a tensor's name ("^" in front: its beginning), and the type; the first that fits.
  std::vector<std::pair<std::string, std::string>> rules;
  bool scales = false;       // RandomModel::scales
  int64_t expert_dim = 256;  // of rows of the experts' down matrices
};

[[nodiscard]] const std::vector<Mixture>& mixtures();

/// Names of types in it that are not supported.
[[nodiscard]] std::vector<std::string> unsupported_types(const Mixture& mixture);

/// A small model with an MTP layer (blk.2) whose rows, but for Mixture::expert_dim, have 256 values.
/// REQUIRES: unsupported_types(mixture) is empty.
[[nodiscard]] RandomModel model_of(const Mixture& mixture);

}  // namespace foretoken::test
