#pragma once

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/base/isa.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/covering.h"
#include "tests/mtp/neighbours.h"
#include "tests/mtp/transcript.h"

// What the invariance matrix is made of: axes, settings that cover them, and the check of one of them.

namespace foretoken::test {

inline constexpr int kWhole = 1 << 20;  // prompt chunk: the whole prompt

struct Setting {
  int k = 0;
  MoeVerify moe_verify = MoeVerify::kPerToken;
  int threads = 1;
  Isa isa = Isa::kScalar;
  int prompt_chunk = kWhole;
  bool sampled = false;
  bool controller = false;
  int64_t draft_vocab = 0;
  bool own_drafts = false;  // of the MTP layer, almost all wrong; else most are taken from the known text
  Device device = Device::kCpu;
  int gpu_experts = 0, gpu_cache = 0;  // with Device::kSplit, of each layer
  bool repack = true;
  Neighbours neighbours = Neighbours::kAlone;

  [[nodiscard]] std::string place() const {
    if (device == Device::kSplit) return fmt::format("split {}+{}, ", gpu_experts, gpu_cache);
    return device == Device::kCuda ? "on the GPU, " : "";
  }
  [[nodiscard]] std::string describe() const {
    return fmt::format("{}k={} {} {} threads {} chunk {} {}{}{}{} draft vocabulary {} {}", place(), k,
                       moe_verify == MoeVerify::kGrouped ? "grouped" : "per-token", threads, isa_name(isa),
                       prompt_chunk, sampled ? "sampled" : "greedy", controller ? " controller" : "",
                       own_drafts ? " own drafts" : "", repack ? "" : " not repacked", draft_vocab, name(neighbours));
  }
};

inline const std::vector<MoeVerify> kCores = {MoeVerify::kGrouped, MoeVerify::kPerToken};

/// The values that each axis of a matrix has; an axis of one value is none.
struct Axes {
  std::vector<int> k = {0};
  std::vector<MoeVerify> moe_verify = kCores;
  std::vector<int> threads = {1, 2, 3};
  std::vector<Isa> isas = supported_isas();
  std::vector<int> prompt_chunks = {kWhole};
  std::vector<bool> sampled = {false, true};
  std::vector<bool> repack = {true};
  std::vector<bool> controller = {false};
  std::vector<int64_t> draft_vocab = {0};
  std::vector<bool> own_drafts = {false};
  std::vector<Neighbours> neighbours = {std::begin(kAllNeighbours), std::end(kAllNeighbours)};

  [[nodiscard]] std::vector<int> sizes() const {
    std::vector<int> sizes;
    for_each([&](const auto& values, auto) { sizes.push_back(static_cast<int>(values.size())); });
    return sizes;
  }
  [[nodiscard]] Setting setting(const std::vector<int>& indices) const {
    Setting setting;
    size_t axis = 0;
    for_each([&](const auto& values, auto field) { setting.*field = values[indices[axis++]]; });
    return setting;
  }
  /// visit(values, field of Setting) for each axis.
  template <class Visit>
  void for_each(Visit&& visit) const {
    visit(k, &Setting::k);
    visit(moe_verify, &Setting::moe_verify);
    visit(threads, &Setting::threads);
    visit(isas, &Setting::isa);
    visit(prompt_chunks, &Setting::prompt_chunk);
    visit(sampled, &Setting::sampled);
    visit(repack, &Setting::repack);
    visit(controller, &Setting::controller);
    visit(draft_vocab, &Setting::draft_vocab);
    visit(own_drafts, &Setting::own_drafts);
    visit(neighbours, &Setting::neighbours);
  }
};

/// Settings in which every two values of two axes meet.
inline std::vector<Setting> covering_settings(const Axes& axes) {
  std::vector<Setting> settings;
  for (const std::vector<int>& row : pairwise_covering(axes.sizes(), /*seed=*/1)) settings.push_back(axes.setting(row));
  return settings;
}

/// One model and prompt, with the plain decoding of it that all settings are held to.
class Matrix {
 public:
  Matrix(const RandomModel& spec, int prompt_tokens, int new_tokens, KvType kv_type = KvType::kF16)
      : new_tokens_(new_tokens),
        kv_type_(kv_type),
        prompt_(random_ids(prompt_tokens, spec.vocab_size, spec.seed + 50)) {
    spec.write(folder_.file("model.gguf"));
    for (const bool repack : {true, false}) {
      LoadOptions options;
      options.repack = repack;
      models_.push_back(Model::load(folder_.file("model.gguf"), options));
    }
    for (const bool sampled : {false, true}) {
      Setting plain;
      plain.sampled = sampled;
      references_.push_back(run(plain, models_[1])[0]);
    }
    for (const Transcript& reference : references_) {
      REQUIRE(reference.in_order);
      REQUIRE(static_cast<int>(reference.result.ids.size()) == new_tokens);
      REQUIRE(static_cast<int64_t>(reference.logits.size()) == (prompt_tokens + new_tokens - 1) * spec.vocab_size);
      for (float logit : reference.logits) REQUIRE(std::isfinite(logit));
    }
    // A tied head of random embeddings repeats the token it has just seen: there a sample cannot differ.
    if (!spec.tied_head) REQUIRE(references_[0].result.ids != references_[1].result.ids);
  }

  [[nodiscard]] bool has_mtp() const { return models_[0].has_mtp(); }

  /// Runs the setting and compares; at most five failures are printed.
  void check(const Setting& setting) {
    ++num_runs_;
    const Transcript& want = references_[setting.sampled ? 1 : 0];
    const std::vector<Transcript> texts =
        run(setting, other_model_ != nullptr ? *other_model_ : models_[setting.repack ? 0 : 1]);
    REQUIRE(texts.size() == (setting.neighbours == Neighbours::kCopied ? 4 : 1));
    for (const Transcript& got : texts) {
      accepted_ += got.result.statistics.accepted;
      drafted_ += got.result.statistics.drafted;
      const int64_t difference = got.first_difference(want);
      if (got.in_order && difference == -1 && got.result.ids == want.result.ids) continue;
      if (++num_failures_ > 5) return;
      UNSCOPED_INFO(setting.describe() << ": first difference at position " << difference << " of " << prompt_.size()
                                       << " + " << new_tokens_);
      CHECK(false);
    }
  }

  /// The file, and what a setting asks of it, for models that are loaded in another way.
  [[nodiscard]] std::string path() const { return folder_.file("model.gguf"); }
  /// From now on settings run over this model, which is of the same file, and on these options.
  void run_on(const Model* model, SessionOptions session) {
    other_model_ = model;
    session_ = session;
  }

  /// One setting of `stride`.
  void check_all(const std::vector<Setting>& settings, int stride) {
    for (size_t i = 0; i < settings.size(); i += static_cast<size_t>(stride)) check(settings[i]);
  }

  /// by_the_clock: a controller was among the settings, and how many drafts it makes hangs on the machine's speed.
  void finish(const std::string& what, bool by_the_clock = false) {
    CHECK(num_failures_ == 0);
    CHECK(num_runs_ > 0);
    WARN(what << ": " << num_runs_ << " runs, " << accepted_ << " of " << drafted_ << " drafts accepted");
    // Windows that were accepted in whole, in part and not at all are what the matrix is about.
    const int64_t least = by_the_clock ? 0 : drafted_ / 5, most = by_the_clock ? drafted_ : drafted_ * 4 / 5;
    if (drafted_ > 0) CHECK((accepted_ > least && accepted_ < most));
  }

 private:
  std::vector<Transcript> run(const Setting& setting, const Model& model) {
    SessionOptions session = session_;
    session.ctx_size = static_cast<int64_t>(prompt_.size()) + new_tokens_;
    session.kv_type = kv_type_;
    session.prompt_chunk = setting.prompt_chunk;
    session.moe_verify = setting.moe_verify;
    session.isa = setting.isa;
    session.threads = setting.threads;
    session.device = setting.device;
    session.split = {std::vector<int>(static_cast<size_t>(model.config().num_layers), setting.gpu_experts),
                     setting.gpu_cache};
    DecodeOptions options;
    options.max_new_tokens = new_tokens_;
    options.mtp = setting.k;
    options.controller = setting.controller;
    options.draft_vocab = setting.draft_vocab;
    options.ignore_eos = true;
    if (setting.sampled) {
      options.sampling.temperature = 0.8f;
      options.sampling.top_k = 40;
      options.sampling.top_p = 0.95f;
      options.sampling.min_p = 0.01f;
      options.sampling.seed = 7;
    }
    if (setting.k > 0 && !setting.own_drafts) {
      // A random model's MTP layer is right once in 320 times: three drafts of four are taken from the known text, so
      // that windows end everywhere.
      options.forced_continuation = references_[setting.sampled ? 1 : 0].result.ids;
      options.forced_acceptance = 0.75;
      options.forced_seed = static_cast<uint64_t>(setting.k);
    }
    return transcribe_among(model, session, prompt_, options, setting.neighbours);
  }

  TempFolder folder_;
  const int new_tokens_;
  const KvType kv_type_;
  const std::vector<TokenId> prompt_;
  std::vector<Model> models_;           // repacked, not
  std::vector<Transcript> references_;  // greedy, sampled
  const Model* other_model_ = nullptr;
  SessionOptions session_;
  int num_runs_ = 0, num_failures_ = 0;
  int64_t accepted_ = 0, drafted_ = 0;
};

}  // namespace foretoken::test
