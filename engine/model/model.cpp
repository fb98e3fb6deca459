#include "engine/model/model.h"

#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "engine/model/families/family.h"
#include "engine/model/metadata.h"
#include "engine/model/model_file.h"
#include "engine/model/unread_tensors.h"
#include "engine/model/weight_loader.h"
#include "engine/model/weights.h"
#include "kernels/base/error.h"

namespace foretoken {

struct Model::Impl {
  explicit Impl(ModelFile opened)
      : file(std::move(opened.file)),
        mtp_path(std::move(opened.mtp_path)),
        passed(std::move(opened.passed)),
        config(ModelConfig::read(file)),
        tokenizer(Tokenizer::load(file)) {}

  GgufFile file;
  std::string mtp_path, passed;  // as in ModelFile
  ModelConfig config;
  Tokenizer tokenizer;
  std::string fingerprint;
  double load_seconds = 0;
  ModelWeights weights;
  std::optional<ModelShare> share;
};

namespace {

// Everything that the headers say about whether the model can be run. Throws InputError.
void declare_model(WeightLoader& load, const GgufFile& file, const ModelConfig& c, const Tokenizer& tokenizer,
                   ModelWeights& w) {
  if (tokenizer.vocab_size() != c.vocab_size) {
    throw InputError(
        fmt::format("{}: tokenizer.ggml.tokens: {} tokens; token_embd.weight has {} rows, they must be as many",
                    file.path(), tokenizer.vocab_size(), c.vocab_size));
  }
  const Family& family = *find_family(c.architecture);
  load.lookup("token_embd.weight", c.vocab_size, c.hidden_dim, w.embed);
  load.vector("output_norm.weight", c.hidden_dim, w.output_norm);
  if (c.num_mtp_layers > 0) declare_mtp(load, family, c, w);
  // Without a head of its own the model uses its embeddings (tied).
  w.tied_head = !load.has("output.weight");
  std::vector<MatrixView*> heads = {&w.head};
  if (c.num_mtp_layers > 0 && !w.mtp.own_head) heads.push_back(&w.mtp.head);
  load.head(w.tied_head ? "token_embd.weight" : "output.weight", c.vocab_size, c.hidden_dim, heads);
  w.layers.resize(c.num_layers);
  int num_recurrent = 0;
  for (int i = 0; i < c.num_layers; ++i) {
    LayerWeights& layer = w.layers[i];
    family.declare_layer(load, c, i, layer);
    layer.layer_idx = i;
    layer.mixer_idx = layer.is_recurrent() ? num_recurrent++ : i - num_recurrent;
  }
  w.mtp.layer.layer_idx = c.num_layers;
  w.mtp.layer.mixer_idx = c.num_layers - num_recurrent;
}

}  // namespace

ModelOutline Model::outline(const GgufFile& file) {
  ModelOutline outline;
  outline.config = ModelConfig::read(file);
  const Tokenizer tokenizer = Tokenizer::load(file);
  WeightLoader loader(file, LoadOptions(), outline.weights);
  declare_model(loader, file, outline.config, tokenizer, outline.weights);
  check_unread_tensors(file, outline.config, loader.declared());
  outline.interleaved = loader.interleaved();
  return outline;
}

std::vector<std::string> Model::obstacles(const GgufFile& file) {
  std::vector<std::string> found;
  try {
    const ModelConfig config = ModelConfig::read(file);
    const Tokenizer tokenizer = Tokenizer::load(file);
    ModelWeights weights;
    WeightLoader loader(file, LoadOptions(), weights);
    loader.collect(found);
    declare_model(loader, file, config, tokenizer, weights);
    for (std::string& unread : find_unread_tensors(file, config, loader.declared())) found.push_back(std::move(unread));
  } catch (const InputError& error) {
    found.push_back(error.what());
  }
  return found;
}

Model::Model() = default;
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Model Model::load(const std::string& path, const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  Model model;
  model.impl_ = std::make_unique<Impl>(open_model(path, options.mtp_path));
  Impl& m = *model.impl_;
  if (m.file.is_repacked() && !options.repack) {
    throw UsageError(fmt::format(
        "--no-repack: {} is repacked and holds no other layout; leave the flag out, or name the original file", path));
  }
  m.fingerprint = m.file.fingerprint();
  ModelWeights& w = m.weights;
  WeightLoader loader(m.file, options, w);
  declare_model(loader, m.file, m.config, m.tokenizer, w);
  check_unread_tensors(m.file, m.config, loader.declared());
  if (options.share) {
    m.share = ModelShare{RankPlan::of(m.config, w, options.share->mode, options.share->shares), options.share->rank};
    hold_share(*m.share, loader, w);
  }
  w.bytes_to_load = loader.bytes_needed();
  std::chrono::steady_clock::duration elsewhere{};
  if (options.on_header) {
    const auto called = std::chrono::steady_clock::now();
    options.on_header(model);
    elsewhere = std::chrono::steady_clock::now() - called;
  }
  loader.load();

  m.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin - elsewhere).count();
  return model;
}

const ModelConfig& Model::config() const {
  return impl_->config;
}
const Tokenizer& Model::tokenizer() const {
  return impl_->tokenizer;
}
const ModelWeights& Model::weights() const {
  return impl_->weights;
}
const ModelShare* Model::share() const {
  return impl_->share ? &*impl_->share : nullptr;
}
const std::string& Model::path() const {
  return impl_->file.path();
}
std::string Model::mtp_absence() const {
  const std::string& reason = impl_->config.mtp_absence;
  if (reason.empty()) return reason;
  return fmt::format("{} ({})", reason,
                     impl_->passed.empty() ? "--model-draft names a file that has it; one called mtp-*.gguf beside the "
                                             "model is found by itself"
                                           : impl_->passed);
}
const std::string& Model::mtp_path() const {
  return impl_->mtp_path;
}
std::vector<std::string> Model::notes() const {
  return metadata_notes(impl_->file);
}
const std::string& Model::fingerprint() const {
  return impl_->fingerprint;
}
size_t Model::file_bytes() const {
  return impl_->file.size_bytes();
}
int64_t Model::num_parameters() const {
  int64_t sum = 0;
  for (const GgufTensor& tensor : impl_->file.tensors()) {
    int64_t count = 1;
    for (const int64_t side : tensor.shape) count *= side;
    sum += count;
  }
  return sum;
}
void Model::check_unchanged() const {
  impl_->file.check_unchanged("in use");
}
bool Model::is_repacked() const {
  return impl_->file.is_repacked();
}
double Model::load_seconds() const {
  return impl_->load_seconds;
}

}  // namespace foretoken
