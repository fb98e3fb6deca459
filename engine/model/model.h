#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/model/model_config.h"
#include "engine/model/rank_plan.h"
#include "engine/model/weights.h"
#include "engine/options.h"
#include "engine/text/tokenizer.h"

namespace foretoken {

/// A model as its file's headers describe it: shapes and types of all weights, none of them in memory. Views of the
/// embeddings point into the file.
struct ModelOutline {
  ModelConfig config;
  ModelWeights weights;
  std::set<std::string, std::less<>> interleaved;  // tensors that load() interleaves and needs in no other form
};

/// A model in memory: configuration, tokenizer, weights. Immutable after loading; any number of sessions may read it.
class Model {
 public:
  /// Loads and checks a GGUF file as open_model() opens it. Throws InputError: unsupported architecture or tensor type,
  /// missing tensor, wrong shape, NaN scale, too little memory (checked before anything is allocated). Throws UsageError
  /// if a repacked file is asked for without repacking.
  [[nodiscard]] static Model load(const std::string& path, const LoadOptions& options);
  /// What load() does before it reads any weights: throws the same InputError, from the headers alone.
  [[nodiscard]] static ModelOutline outline(const GgufFile& file);
  /// All that speaks against running the file, the first as outline() throws it; empty if nothing does. Behind what
  /// the metadata says wrongly nothing else can be found.
  [[nodiscard]] static std::vector<std::string> obstacles(const GgufFile& file);
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  [[nodiscard]] const ModelConfig& config() const;
  [[nodiscard]] const Tokenizer& tokenizer() const;
  [[nodiscard]] const ModelWeights& weights() const;
  /// What was loaded of the model; nullptr: all of it.
  [[nodiscard]] const ModelShare* share() const;
  [[nodiscard]] const std::string& path() const;
  [[nodiscard]] const std::string& fingerprint() const;  // GgufFile::fingerprint, reported as model_sha256
  [[nodiscard]] size_t file_bytes() const;
  [[nodiscard]] int64_t num_parameters() const;  // numbers in all of the file's tensors
  /// Throws InputError if the file was written to since it was opened: what was computed from it cannot be trusted.
  void check_unchanged() const;
  [[nodiscard]] double load_seconds() const;  // reading, checking and repacking
  /// The file was written by `foretoken repack`: its matrices are used where they are mapped.
  [[nodiscard]] bool is_repacked() const;
  /// What the file says to its user and no part of the program applies: recommended sampling and the like, a line each.
  [[nodiscard]] std::vector<std::string> notes() const;
  /// Why the file has no MTP layer; empty if it has one.
  [[nodiscard]] std::string mtp_absence() const;
  /// The file of its own that the MTP layer comes from; empty if there is none.
  [[nodiscard]] const std::string& mtp_path() const;
  [[nodiscard]] bool has_mtp() const { return config().num_mtp_layers > 0; }

 private:
  Model();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
