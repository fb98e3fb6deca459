#include "engine/model/metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/gguf/gguf.h"
#include "engine/model/model_config.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

std::optional<double> number_of(const GgufValue& value) {
  if (const auto* n = std::get_if<uint64_t>(&value)) return static_cast<double>(*n);
  if (const auto* n = std::get_if<int64_t>(&value)) return static_cast<double>(*n);
  if (const auto* n = std::get_if<double>(&value)) return *n;
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? 1.0 : 0.0;
  return std::nullopt;
}

/// All numbers of a scalar or an array; nothing if something else is among them.
std::optional<std::vector<double>> numbers_of(const GgufValue& value) {
  if (const auto number = number_of(value)) return std::vector{*number};
  const auto* array = std::get_if<std::shared_ptr<const GgufArray>>(&value);
  if (array == nullptr) return std::nullopt;
  return std::visit(
      [](const auto& list) -> std::optional<std::vector<double>> {
        std::vector<double> numbers;
        if constexpr (std::is_convertible_v<typename std::decay_t<decltype(list)>::value_type, double>) {
          for (const auto entry : list) numbers.push_back(static_cast<double>(entry));
          return numbers;
        }
        return std::nullopt;
      },
      (*array)->elements);
}

std::string text_of(const GgufValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* text = std::get_if<std::string_view>(&value)) return fmt::format("'{}'", printable(*text));
  if (const auto number = number_of(value)) return fmt::format("{}", *number);
  const auto& array = std::get<std::shared_ptr<const GgufArray>>(value);
  if (const auto numbers = numbers_of(value); numbers && numbers->size() <= 8)
    return fmt::format("[{}]", fmt::join(*numbers, ", "));
  return fmt::format("an array of {}", array->size());
}

/// Keys that say nothing about what is computed here, or nothing beside those that are read.
constexpr std::array kHarmless = {
    std::string_view("vocab_size"),
    std::string_view("pooling_type"),
    std::string_view("feed_forward_length"),      // beside expert_feed_forward_length
    std::string_view("full_attention_interval"),  // beside attention.recurrent_layers
    std::string_view("attention.layer_norm_epsilon"),
    std::string_view("rope.scaling.finetuned"),
    std::string_view("rope.scaling.yarn_log_multiplier"),
};

/// Keys whose effect is known, and the values that have none.
struct Switch {
  std::string_view key;
  std::vector<double> off;
  std::string_view effect;
};

const std::vector<Switch>& switches() {
  static const std::vector<Switch> list = {
      {"logit_scale", {0, 1}, "multiplies the logits"},
      {"final_logit_softcapping", {0}, "caps the logits"},
      {"attn_logit_softcapping", {0}, "caps the scores of attention"},
      {"router_logit_softcapping", {0}, "caps the scores of experts"},
      {"embedding_scale", {0, 1}, "multiplies the embeddings"},
      {"residual_scale", {0, 1}, "multiplies what a layer adds"},
      {"attention.clamp_kqv", {0}, "clamps queries, keys and values"},
      {"attention.max_alibi_bias", {0}, "weighs attention by distance"},
      {"attention.causal", {1}, "lets a token attend to later ones"},
      {"attention.output_scale", {0, 1}, "multiplies the output of attention"},
      {"attention.value_scale", {0, 1}, "multiplies the values of attention"},
      {"attention.temperature_length", {0}, "scales queries by their position"},
      {"attention.temperature_scale", {0}, "scales queries by their position"},
      {"attention.shared_kv_layers", {0}, "lets layers share keys and values"},
      {"attention.q_lora_rank", {0}, "makes queries of two matrices"},
      {"attention.kv_lora_rank", {0}, "makes keys and values of two matrices"},
      {"use_parallel_residual", {0}, "runs attention and feed-forward side by side"},
      {"leading_dense_block_count", {0}, "makes the first layers dense"},
      {"interleave_moe_layer_step", {0, 1}, "makes layers between the expert layers dense"},
      {"moe_every_n_layers", {0, 1}, "makes layers between the expert layers dense"},
      {"decoder_sparse_step", {0, 1}, "makes layers between the expert layers dense"},
      {"expert_weights_scale", {0, 1}, "multiplies the weights of experts"},
      {"expert_weights_norm", {1}, "leaves the weights of the chosen experts as the router gives them"},
      {"expert_gating_func", {0, 1}, "weighs experts by another function than softmax"},
      {"expert_group_scale", {0, 1}, "multiplies the weights of experts"},
      {"expert_chunk_feed_forward_length", {0}, "adds experts of another shape"},
      {"ssm.dt_b_c_rms", {0}, "normalises inputs of the recurrence"},
      {"rope.scaling.alpha", {0, 1}, "stretches rotations by the context"},
  };
  return list;
}

bool is_near(double value, double wanted) {
  return std::abs(value - wanted) <= 1e-6 * std::abs(wanted);
}

}  // namespace

int64_t Metadata::integer(std::string_view key, int64_t min, int64_t max) const {
  seen_.emplace(key);
  return file_.get_int(full(key), min, max);
}

int64_t Metadata::integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  seen_.emplace(key);
  return file_.get_int(full(key), min, max, fallback);
}

double Metadata::number(std::string_view key) const {
  seen_.emplace(key);
  return file_.get_float(full(key));
}

double Metadata::number(std::string_view key, double fallback) const {
  seen_.emplace(key);
  return file_.get_float(full(key), fallback);
}

std::string Metadata::text(std::string_view key, std::string_view fallback) const {
  seen_.emplace(key);
  return std::string(file_.get_string(full(key), fallback));
}

std::optional<std::vector<int64_t>> Metadata::integers(std::string_view key) const {
  seen_.emplace(key);
  return file_.find_int_array(full(key));
}

bool Metadata::has(std::string_view key) const {
  return file_.find(full(key)) != nullptr;
}

int64_t Metadata::uniform(std::string_view key, int64_t min, int64_t max) const {
  seen_.emplace(key);
  const GgufValue* value = file_.find(full(key));
  if (value == nullptr || !std::holds_alternative<std::shared_ptr<const GgufArray>>(*value))
    return integer(key, min, max);
  const auto entries = file_.find_int_array(full(key));
  if (!entries || entries->empty()) fail(key, "an array of integers is needed");
  int64_t found = 0;
  for (int64_t entry : *entries) {
    if (entry == 0) continue;  // layers without attention
    if (entry < min || entry > max || (found != 0 && entry != found)) {
      fail(key, fmt::format("value {} in an array; layers of different shapes are not supported, {} to {} allowed",
                            entry, min, max));
    }
    found = entry;
  }
  if (found == 0) fail(key, fmt::format("all entries are 0; at least {} is needed", min));
  return found;
}

void Metadata::fail(std::string_view key, std::string_view what) const {
  throw InputError(fmt::format("{}: key {}{}: {}", file_.path(), prefix_, printable(key), what));
}

void Metadata::accept(std::string_view key, const std::vector<double>& accepted, std::string_view effect) const {
  if (!seen_.emplace(key).second) return;  // somebody has read it
  const GgufValue* value = file_.find(full(key));
  if (value == nullptr) return;
  const auto numbers = numbers_of(*value);
  const auto is_accepted = [&](double number) {
    return std::any_of(accepted.begin(), accepted.end(), [&](double wanted) { return is_near(number, wanted); });
  };
  if (numbers && std::all_of(numbers->begin(), numbers->end(), is_accepted)) return;
  fail(key, fmt::format("{}: it {}, which is not supported{}", text_of(*value), effect,
                        accepted.empty() ? "" : fmt::format("; only {} is", fmt::join(accepted, " or "))));
}

void Metadata::check_rotations(const ModelConfig& c) const {
  // Positions of a text are the same on the axes time, height and width, so sections of these three change nothing.
  seen_.emplace("rope.dimension_sections");
  if (const GgufValue* value = file_.find(full("rope.dimension_sections"))) {
    const auto sections = numbers_of(*value);
    if (!sections || sections->size() > 4 || (sections->size() == 4 && (*sections)[3] != 0)) {
      fail("rope.dimension_sections",
           fmt::format("{}; at most three sections and a fourth of 0 are supported", text_of(*value)));
    }
  }
  accept("rope.freq_base_swa", {c.rope_base}, "rotates the layers with a sliding window in another way");
  accept("rope.dimension_count_swa", {static_cast<double>(c.rope_dim)},
         "rotates the layers with a sliding window in another way");
}

void Metadata::check_attention(const ModelConfig& c) const {
  accept("attention.scale", {0, 1.0 / std::sqrt(static_cast<double>(c.head_dim))},
         "multiplies the scores of attention");
  // A window that no context reaches beyond hides nothing.
  seen_.emplace("attention.sliding_window");
  if (const GgufValue* value = file_.find(full("attention.sliding_window"))) {
    const auto windows = numbers_of(*value);
    const auto hides_nothing = [&](double window) {
      return window == 0 || window >= static_cast<double>(c.context_length);
    };
    if (!windows || !std::all_of(windows->begin(), windows->end(), hides_nothing)) {
      fail("attention.sliding_window",
           fmt::format("{}: it hides earlier tokens from attention, which is not supported; only 0 is, and at least "
                       "context_length, {}",
                       text_of(*value), c.context_length));
    }
  } else {
    accept("attention.sliding_window_pattern", {0}, "gives layers a sliding window");
  }
  seen_.emplace("attention.sliding_window_pattern");
  accept("attention.key_length_swa", {static_cast<double>(c.head_dim)}, "gives layers another length of heads");
  accept("attention.value_length_swa", {static_cast<double>(c.head_dim)}, "gives layers another length of heads");
}

void Metadata::check_experts(const ModelConfig& c) const {
  accept("expert_count", {0}, "adds experts to a dense architecture");
  accept("expert_used_count", {0}, "adds experts to a dense architecture");
  accept("expert_feed_forward_length", {0}, "adds experts to a dense architecture");
  accept("expert_shared_feed_forward_length", {0}, "adds a shared expert");
  accept("expert_shared_count", {c.num_experts > 0 && c.shared_expert_dim > 0 ? 1.0 : 0.0},
         "changes the number of shared experts");
  // Groups of which all are used limit nothing.
  const GgufValue* groups = file_.find(full("expert_group_count"));
  const GgufValue* used = file_.find(full("expert_group_used_count"));
  const bool all_used = groups != nullptr && used != nullptr && number_of(*groups) && number_of(*used) &&
                        *number_of(*used) >= *number_of(*groups);
  for (const std::string_view key : {"expert_group_count", "expert_group_used_count"}) {
    if (!all_used) accept(key, {0, 1}, "chooses experts by groups");
    seen_.emplace(key);
  }
}

void Metadata::check_unread(const ModelConfig& c) const {
  check_rotations(c);
  check_attention(c);
  check_experts(c);
  for (const Switch& s : switches()) accept(s.key, s.off, s.effect);
  accept("embedding_length_out", {static_cast<double>(c.hidden_dim)}, "changes the width of the output");
  for (const auto& [name, value] : file_.metadata()) {
    if (!name.starts_with(prefix_)) continue;
    const std::string_view key = name.substr(prefix_.size());
    if (seen_.find(key) != seen_.end()) continue;
    if (std::find(kHarmless.begin(), kHarmless.end(), key) != kHarmless.end()) continue;
    if (key == "tensor_data_layout" && text_of(value) == "'reference'") continue;
    fail(key, fmt::format("{}: this program does not know the key and cannot tell what it would change; convert the "
                          "file without it if it changes nothing",
                          text_of(value)));
  }
}

std::vector<std::string> metadata_notes(const GgufFile& file) {
  constexpr std::string_view kSampling = "general.sampling.";
  // What the tokenizer reads, what other vocabularies than byte-level BPE use, and what changes no text here.
  constexpr std::array kTokenizer = {"model",
                                     "pre",
                                     "tokens",
                                     "token_type",
                                     "token_type_count",
                                     "scores",
                                     "merges",
                                     "bos_token_id",
                                     "eos_token_id",
                                     "eot_token_id",
                                     "eom_token_id",
                                     "add_bos_token",
                                     "add_sep_token",
                                     "add_space_prefix",
                                     "remove_extra_whitespaces",
                                     "cls_token_id",
                                     "mask_token_id",
                                     "sep_token_id",
                                     "seperator_token_id",
                                     "padding_token_id",
                                     "pad_token_id",
                                     "unknown_token_id",
                                     "unk_token_id",
                                     "fim_pre_token_id",
                                     "fim_suf_token_id",
                                     "fim_mid_token_id",
                                     "fim_pad_token_id",
                                     "fim_rep_token_id",
                                     "fim_sep_token_id",
                                     "prefix_token_id",
                                     "suffix_token_id",
                                     "middle_token_id",
                                     "precompiled_charsmap"};
  std::vector<std::string> notes;
  std::vector<std::string> sampling;
  for (const auto& [key, value] : file.metadata()) {
    if (key.starts_with(kSampling)) {
      sampling.push_back(fmt::format("{} {}", printable(key.substr(kSampling.size())), text_of(value)));
    } else if (key == "tokenizer.ggml.add_eos_token") {
      const auto* flag = std::get_if<bool>(&value);
      if (flag == nullptr || *flag) {
        notes.push_back(fmt::format("{} is {}: not used, a prompt is continued and not ended", key, text_of(value)));
      }
    } else if (key.starts_with("tokenizer.ggml.")) {
      const std::string_view name = key.substr(std::string_view("tokenizer.ggml.").size());
      if (std::find(kTokenizer.begin(), kTokenizer.end(), name) == kTokenizer.end())
        notes.push_back(
            fmt::format("{} is {}: not used, this program does not know it", printable(key), text_of(value)));
    }
  }
  if (!sampling.empty()) {
    notes.push_back(
        fmt::format("the file recommends for sampling: {}; not used unless given as flags (--temp, --top-k, "
                    "--top-p, --min-p)",
                    fmt::join(sampling, ", ")));
  }
  return notes;
}

}  // namespace foretoken
