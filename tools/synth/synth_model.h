#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/text/tokenizer.h"
#include "kernels/formats/weight_type.h"

namespace foretoken {

/// A model to be made. The defaults are the shape `tiny`.
struct SynthSpec {
  /// kChain: the greedy text is known, and acceptance and routing overlap have dials (tools/synth/synth_chain.h says
  /// how). kRandom: plain random weights, every formula counts fully, the text is arbitrary.
  enum class Text { kChain, kRandom };

  /// One of architectures(): qwen35moe; qwen35 (dense); qwen3next; qwen3moe (attention alone, no shared expert, no MTP
  /// layer); llama (dense, attention alone, no norms of heads, no MTP layer).
  std::string architecture = "qwen35moe";
  Text text = Text::kChain;
  int num_layers = 4;          // of the trunk
  bool with_mtp = true;        // where the architecture can have one
  int attention_interval = 4;  // each so many layers one has attention, the others a delta net; where is_hybrid()
  int64_t hidden_dim = 256;    // a multiple of 32, at least 64
  int64_t vocab_size = 512;    // at least 320
  int64_t context_length = 4096;
  int num_heads = 4, num_kv_heads = 2, head_dim = 64, rope_dim = 16;  // see rotates_whole_heads()
  double rope_base = 1e7;
  int num_experts = 16, experts_per_token = 4;
  int64_t expert_dim = 256;
  int64_t shared_expert_dim = 256;  // dense models: the feed-forward
  int state_size = 64, num_key_heads = 2, num_value_heads = 4, conv_taps = 4;

  /// Dealt round over the matrices, in file order; empty: the mixture Q4_K_M (Q6_K for head, attention values and every
  /// second down projection, Q5_K for the delta net's inputs, Q8_0 for its alpha and beta, Q4_K for the rest). Norms,
  /// routers and convolutions are F32 always. A matrix whose rows the type's blocks do not divide becomes Q8_0, or F16
  /// if those do not either.
  std::vector<WeightType> types = {WeightType::kF32};
  bool fused_gate_up = false;  // one ffn_gate_up_exps.weight instead of two tensors
  bool tied_head = false;      // no output.weight; kRandom alone

  double acceptance = 0.8;  // kChain: chance that a draft is right if those before it were
  double overlap = 0.45;    // kChain: share of a token's routed experts that the next token goes to as well
  uint64_t seed = 1;

  /// One of shape_names(), as deep as the model of that name. Throws UsageError listing them for another name.
  [[nodiscard]] static SynthSpec for_shape(std::string_view name);
  [[nodiscard]] static std::vector<std::string> shape_names();
  [[nodiscard]] static std::vector<std::string> architectures();
  /// "q4_k_m", a weight type, or several types with commas between. Throws UsageError listing them for another name.
  void set_types(std::string_view text);

  /// Whether there are delta nets beside attention, whose queries then have gates.
  [[nodiscard]] bool is_hybrid() const { return architecture != "qwen3moe" && architecture != "llama"; }
  [[nodiscard]] bool has_experts() const { return architecture != "qwen35" && architecture != "llama"; }
  [[nodiscard]] bool rotates_whole_heads() const { return !is_hybrid(); }
  [[nodiscard]] bool has_mtp() const { return with_mtp && is_hybrid(); }
  /// Throws UsageError naming the value and its limits.
  void check() const;
};

/// What was made.
struct SynthReport {
  size_t file_bytes = 0;
  int num_tensors = 0;
  double num_weights = 0;
  double acceptance = 0;           // kChain with an MTP layer: share of the cycle's tokens whose draft is right; else 0
  double overlap = 0;              // kChain with experts: measured over the first layer's router; else 0
  int64_t cycle_length = 0;        // kChain
  std::vector<TokenId> first_ids;  // kChain: the text from id `first_ids[0]` on, 32 ids
};

/// Writes the model, in constant memory, with all cores. The same spec gives the same bytes on every machine. Throws
/// UsageError (check()) and InputError (a disk without enough room, or that refuses). progress(bytes_done, bytes_all)
/// may be empty.
SynthReport write_synth_model(const std::string& path, const SynthSpec& spec,
                              const std::function<void(size_t, size_t)>& progress = {});

/// The greedy text of a chain model after `last`. REQUIRES: spec.text == kChain.
[[nodiscard]] std::vector<TokenId> known_continuation(const SynthSpec& spec, TokenId last, int64_t count);
/// The same for a file; nothing if it is no chain model of ours (the keys foretoken.synth.* are missing).
[[nodiscard]] std::optional<std::vector<TokenId>> known_continuation(const GgufFile& file, TokenId last, int64_t count);

}  // namespace foretoken
