#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/tokenizer.h"
#include "kernels/formats/weight_type.h"
#include "tests/engine/gguf/gguf_edit.h"

namespace foretoken::test {

/// A small model with random weights in which every formula counts: matrices N(0, 1/inputs), norms near 1, decays
/// spread over their range. The defaults fit every weight type (rows of 256 values) and have one delta net layer, one
/// attention layer and an MTP layer.
struct RandomModel {
  std::string architecture = "qwen35moe";
  bool mtp = true;     // not of qwen3moe and llama
  int num_layers = 2;  // of the trunk
  int attention_interval =
      2;  // each so-manieth layer has attention, the others a delta net; qwen3moe and llama have attention alone
  int64_t hidden_dim = 256;
  int64_t vocab_size = 320;  // at least 262
  int64_t context_length = 4096;
  int num_heads = 4, num_kv_heads = 2, head_dim = 64, rope_dim = 16;  // qwen3moe rotates whole heads
  int num_experts = 8, experts_per_token = 2;                         // qwen35 and llama have none
  int64_t expert_dim = 256;
  int64_t shared_dim = 256;  // shared expert of qwen35moe and qwen3next, feed-forward of qwen35 and llama
  int state_size = 64, num_key_heads = 2, num_value_heads = 4, conv_taps = 4;
  std::vector<WeightType> types = {
      WeightType::kF32};  // dealt out to the matrices in turn; Q8_0 or F16 where a row does not fit a type's block
  /// Part of a tensor's name ("^" in front: its beginning) and its type instead, the first that fits. Only these name
  /// the router, which is F32 otherwise. Where a row does not fit, as above.
  std::vector<std::pair<std::string, WeightType>> rules;
  bool tied_head = false;       // no output.weight
  bool fused_gate_up = false;   // one ffn_gate_up_exps.weight instead of two tensors
  bool fused_inputs = false;    // qwen3next: ssm_in, as in its older files, instead of attn_qkv and attn_gate
  bool attention_bias = false;  // of q, k and v
  bool fused_qkv = false;       // of attention
  bool scales = false;          // a NAME.scale beside every matrix but the embedding; one a matrix, of experts one each
  uint64_t seed = 1;

  /// All keys and tensors, ready to be written or changed.
  [[nodiscard]] GgufEdit build() const;
  void write(const std::string& path) const { build().write(path); }

  /// Rows of odd groups and blocks, a vocabulary and experts of no round number: nothing interleaves whole.
  void take_odd_shapes() {
    hidden_dim = 96;
    expert_dim = 40;
    shared_dim = 72;
    vocab_size = 331;
    num_experts = 5;
    experts_per_token = 3;
  }
};

/// Every kind of part, and as small as they come: the emulation runs some million threads a second. Six experts.
[[nodiscard]] RandomModel small_model(const std::string& architecture);

/// Rows of 128 and of 256 values, so that both kinds of 8-bit rows meet; K-quants, legacy types, floats; experts no
/// power of two (six).
[[nodiscard]] RandomModel matrix_model(const std::string& architecture);

/// `count` ids below `limit`, the same for the same seed.
[[nodiscard]] std::vector<TokenId> random_ids(int count, int64_t limit, uint64_t seed);

}  // namespace foretoken::test
