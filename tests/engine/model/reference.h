#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/text/tokenizer.h"
#include "kernels/attention/attention.h"
#include "kernels/formats/weight_codec.h"

namespace foretoken::test {

/// How the reference treats a row that meets a quantised matrix.
enum class Activations {
  kExact,  // as it is: what the file's weights mean
  kInt8,   // rounded first as rule 1 of the contract says (docs/exactness.md): what a right engine computes, but for
           // float rounding
};

struct ReferenceOptions {
  Activations activations = Activations::kExact;
  KvType kv_type = KvType::kF32;  // kF16: keys and values are rounded to halves, as the engine's cache does
};

/// How near a forward pass came to a place where float rounding decides. An engine that is right but rounds each step
/// to float32 may step to the other side of such a place, and a comparison then shows the step, not a fault.
struct Margins {
  double rounding = 0.5;  // smallest distance of a value to a rounding edge of its int8 grid, in units of the grid
  double router = 1e300;  // smallest difference between the logits of the last chosen expert and the first one left out
};

struct ReferenceResult {
  int64_t num_rows = 0, hidden_dim = 0, vocab_size = 0;
  std::vector<double> hidden;      // [num_rows, hidden_dim] after the final norm
  std::vector<double> logits;      // [num_rows, vocab_size]
  std::vector<double> mtp_hidden;  // [num_rows, hidden_dim] after the MTP layer's norm; empty without MTP layer
  std::vector<double> mtp_logits;  // [num_rows, vocab_size]; row p has token p and the hidden of p-1 (zeros at 0)
  Margins margins;

  [[nodiscard]] std::span<const double> logits_row(int64_t row) const;
  [[nodiscard]] std::span<const double> mtp_logits_row(int64_t row) const;
};

/// The forward pass of qwen35moe, qwen35, qwen3next, qwen3moe and llama models in double precision, whole prompts at once, written from
/// the papers' formulas and from nothing of the engine but its file reader and its decoding of weight blocks. Slow and
/// plain on purpose.
class ReferenceModel {
 public:
  explicit ReferenceModel(const std::string& path, const ReferenceOptions& options = {});

  [[nodiscard]] ReferenceResult forward(std::span<const TokenId> ids);

  [[nodiscard]] int64_t vocab_size() const { return vocab_size_; }
  [[nodiscard]] bool has_mtp() const { return num_mtp_layers_ > 0; }

 private:
  /// A tensor's values; matrices of a 3-D tensor stand one after the other.
  struct Weight {
    std::vector<float> values;
    int64_t num_rows = 0, num_cols = 0;
    int activation_block = 0;
    std::vector<float> scales;  // of what equal shares of the rows compute; empty: 1
  };
  /// Rows of activations, [num_rows, num_cols].
  struct Rows {
    std::vector<double> values;
    int64_t num_rows = 0, num_cols = 0;
    Rows() = default;
    Rows(int64_t rows, int64_t cols) : values(static_cast<size_t>(rows * cols)), num_rows(rows), num_cols(cols) {}
    [[nodiscard]] double* row(int64_t r) { return values.data() + r * num_cols; }
    [[nodiscard]] const double* row(int64_t r) const { return values.data() + r * num_cols; }
  };

  [[nodiscard]] bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }
  const Weight& weight(const std::string& name);
  [[nodiscard]] int64_t key(const char* name, int64_t fallback) const;

  [[nodiscard]] Rows embed(const std::string& name, std::span<const TokenId> ids) const;
  [[nodiscard]] std::vector<double> seen_by(const Weight& w, const double* x);
  void multiply(const Weight& w, int64_t row_begin, int64_t row_end, const double* x, double* y);
  [[nodiscard]] Rows multiply(const std::string& name, const Rows& x);
  /// A product that the file may hold as rows [begin, end) of a fused tensor.
  [[nodiscard]] Rows columns(const Rows& x, int64_t begin, int64_t end) const;
  void add_bias(const std::string& name, int64_t begin, Rows& x);
  [[nodiscard]] Rows norm(const std::string& name, const Rows& x);
  void norm_in_place(const Weight& w, double* x) const;
  void rotate(int64_t position, double* head) const;

  [[nodiscard]] Rows attention(const std::string& block, const Rows& x);
  [[nodiscard]] Rows delta_net(const std::string& block, const Rows& x);
  [[nodiscard]] Rows feed_forward(const std::string& block, const Rows& x);
  void add_routed_experts(const std::string& block, const Rows& x, Rows& y);
  [[nodiscard]] Rows layer(int64_t index, Rows x, bool recurrent);

  GgufFile file_;
  ReferenceOptions options_;
  std::string arch_;
  std::map<std::string, Weight> weights_;
  Margins margins_;
  int64_t num_layers_ = 0, num_mtp_layers_ = 0, hidden_dim_ = 0, vocab_size_ = 0;
  int64_t num_heads_ = 0, num_kv_heads_ = 0, head_dim_ = 0, rope_dim_ = 0;
  int64_t num_experts_ = 0, top_k_ = 0;
  int64_t state_size_ = 0, num_key_heads_ = 0, num_value_heads_ = 0, conv_taps_ = 0;
  bool hybrid_ = false;  // qwen35* and qwen3next: delta nets, gated attention
  bool next_ = false;    // qwen3next: value heads grouped by key head, fused tensors
  bool llama_ = false;   // no norms of heads, adjacent values turn together
  double eps_ = 0, rope_base_ = 0;
  double rope_factor_ = 1, rope_context_ = 0;
  bool yarn_ = false;
  std::vector<bool> recurrent_;  // [num_layers]
};

/// Norm of (got - want) divided by the norm of want.
[[nodiscard]] double relative_error(std::span<const float> got, std::span<const double> want);

}  // namespace foretoken::test
