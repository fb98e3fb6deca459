#include "tests/engine/model/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/base/half.h"

namespace foretoken::test {

namespace {

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}
double silu(double x) {
  return x * sigmoid(x);
}
double softplus(double x) {
  return x > 30 ? x : std::log1p(std::exp(x));
}

double dot(const float* w, const double* x, int64_t n) {
  // Four sums, so that a compiler without leave to reorder can still keep the adder busy.
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int64_t lane = 0; lane < 4; ++lane) sums[lane] += double{w[i + lane]} * x[i + lane];
  }
  for (; i < n; ++i) sums[0] += double{w[i]} * x[i];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

double dot(const double* a, const double* b, int64_t n) {
  return std::inner_product(a, a + n, b, 0.0);
}

void softmax(std::vector<double>& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - largest);
  for (double& value : x) value /= sum;
}

}  // namespace

std::span<const double> ReferenceResult::logits_row(int64_t row) const {
  return std::span(logits).subspan(row * vocab_size, static_cast<size_t>(vocab_size));
}

std::span<const double> ReferenceResult::mtp_logits_row(int64_t row) const {
  return std::span(mtp_logits).subspan(row * vocab_size, static_cast<size_t>(vocab_size));
}

ReferenceModel::ReferenceModel(const std::string& path, const ReferenceOptions& options)
    : file_(GgufFile::open(path)), options_(options), arch_(file_.get_string("general.architecture")) {
  next_ = arch_ == "qwen3next";
  llama_ = arch_ == "llama";
  FT_CHECK(next_ || llama_ || arch_ == "qwen35moe" || arch_ == "qwen35" || arch_ == "qwen3moe");
  hybrid_ = arch_ != "qwen3moe" && !llama_;
  num_mtp_layers_ = key("nextn_predict_layers", 0);
  num_layers_ = key("block_count", -1) - num_mtp_layers_;
  hidden_dim_ = key("embedding_length", -1);
  eps_ = file_.get_float(arch_ + ".attention.layer_norm_rms_epsilon");
  num_heads_ = key("attention.head_count", -1);
  num_kv_heads_ = key("attention.head_count_kv", num_heads_);
  head_dim_ = key("attention.key_length", hidden_dim_ / num_heads_);
  rope_dim_ = key("rope.dimension_count", head_dim_);
  rope_base_ = file_.get_float(arch_ + ".rope.freq_base", 10000.0);
  rope_factor_ = file_.get_float(arch_ + ".rope.scaling.factor", 1.0);
  yarn_ = file_.get_string(arch_ + ".rope.scaling.type", "linear") == "yarn";
  rope_context_ = static_cast<double>(key("rope.scaling.original_context_length", 1));
  num_experts_ = key("expert_count", 0);
  top_k_ = key("expert_used_count", 0);
  recurrent_.assign(num_layers_, false);
  if (hybrid_) {
    state_size_ = key("ssm.state_size", -1);
    num_key_heads_ = key("ssm.group_count", -1);
    num_value_heads_ = key("ssm.time_step_rank", -1);
    conv_taps_ = key("ssm.conv_kernel", -1);
    const int64_t interval = key("full_attention_interval", 4);
    const auto flags = file_.find_int_array(arch_ + ".attention.recurrent_layers");  // one a layer
    for (int64_t i = 0; i < num_layers_; ++i) {
      const auto index = static_cast<size_t>(i);
      recurrent_[index] = flags ? flags->at(index) != 0 : (i + 1) % interval != 0;
    }
  }
  const GgufTensor* embedding = file_.find_tensor("token_embd.weight");
  FT_CHECK(embedding != nullptr);
  vocab_size_ = embedding->shape[1];
}

int64_t ReferenceModel::key(const char* name, int64_t fallback) const {
  constexpr int64_t kMax = int64_t{1} << 40;
  const std::string full = arch_ + "." + name;
  return fallback < 0 ? file_.get_int(full, 0, kMax) : file_.get_int(full, 0, kMax, fallback);
}

// Decodes a tensor at its first use.
const ReferenceModel::Weight& ReferenceModel::weight(const std::string& name) {
  const auto found = weights_.find(name);
  if (found != weights_.end()) return found->second;
  const GgufTensor* tensor = file_.find_tensor(name);
  if (tensor == nullptr || !tensor->type()) throw InputError("the reference cannot read tensor " + name);
  Weight w;
  w.num_cols = tensor->shape[0];
  w.num_rows = tensor->num_values() / w.num_cols;
  w.activation_block = weight_type_info(*tensor->type()).activation_block;
  w.values.resize(tensor->num_values());
  decode_row(*tensor->type(), tensor->data, tensor->num_values(), w.values.data());
  const std::string scale =
      name == "token_embd.weight" ? "output.scale" : name.substr(0, name.find_last_of('.') + 1) + "scale";
  if (const GgufTensor* scales = file_.find_tensor(scale); scales != nullptr) {
    w.scales.resize(scales->num_values());
    decode_row(*scales->type(), scales->data, scales->num_values(), w.scales.data());
  }
  return weights_.emplace(name, std::move(w)).first->second;
}

ReferenceModel::Rows ReferenceModel::embed(const std::string& name, std::span<const TokenId> ids) const {
  const GgufTensor* tensor = file_.find_tensor(name);
  const size_t row_bytes = tensor->size_bytes / static_cast<size_t>(vocab_size_);
  Rows x(static_cast<int64_t>(ids.size()), hidden_dim_);
  std::vector<float> decoded(static_cast<size_t>(hidden_dim_));
  for (int64_t r = 0; r < x.num_rows; ++r) {
    const auto id = static_cast<size_t>(ids[r]);
    decode_row(*tensor->type(), tensor->data + id * row_bytes, hidden_dim_, decoded.data());
    std::copy(decoded.begin(), decoded.end(), x.row(r));
  }
  return x;
}

// A row as the matrix sees it: rounded to int8 if the options ask for it and the matrix is quantised. d = amax / 127, q
// = rint(x * (127 / amax)) in float32, ties to even. The margin is how far the nearest value stayed from a tie.
std::vector<double> ReferenceModel::seen_by(const Weight& w, const double* x) {
  std::vector<double> seen(x, x + w.num_cols);
  if (options_.activations == Activations::kExact || w.activation_block == 0) return seen;
  for (int64_t begin = 0; begin < w.num_cols; begin += w.activation_block) {
    float amax = 0;
    for (int64_t i = begin; i < begin + w.activation_block; ++i)
      amax = std::max(amax, std::abs(static_cast<float>(x[i])));
    const float d = amax / 127.0f, inverse = amax > 0 ? 127.0f / amax : 0.0f;
    for (int64_t i = begin; i < begin + w.activation_block; ++i) {
      const double steps = x[i] * double{inverse};
      margins_.rounding = std::min(margins_.rounding, 0.5 - std::abs(steps - std::nearbyint(steps)));
      seen[i] = double{std::nearbyint(static_cast<float>(x[i]) * inverse)} * double{d};
    }
  }
  return seen;
}

// y = rows [row_begin, row_end) of w times x.
void ReferenceModel::multiply(const Weight& w, int64_t row_begin, int64_t row_end, const double* x, double* y) {
  const std::vector<double> seen = seen_by(w, x);
  for (int64_t o = row_begin; o < row_end; ++o) {
    y[o - row_begin] = dot(w.values.data() + o * w.num_cols, seen.data(), w.num_cols);
    if (w.scales.empty()) continue;
    const int64_t share = w.num_rows / static_cast<int64_t>(w.scales.size());
    y[o - row_begin] *= double{w.scales[o / share]};
  }
}

ReferenceModel::Rows ReferenceModel::multiply(const std::string& name, const Rows& x) {
  const Weight& w = weight(name);
  FT_CHECK(w.num_cols == x.num_cols);
  Rows y(x.num_rows, w.num_rows);
  for (int64_t r = 0; r < x.num_rows; ++r) multiply(w, 0, w.num_rows, x.row(r), y.row(r));
  return y;
}

void ReferenceModel::norm_in_place(const Weight& w, double* x) const {
  const auto n = static_cast<int64_t>(w.values.size());
  const double scale = 1 / std::sqrt(dot(x, x, n) / static_cast<double>(n) + eps_);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale * double{w.values[i]};
}

ReferenceModel::Rows ReferenceModel::norm(const std::string& name, const Rows& x) {
  Rows y = x;
  for (int64_t r = 0; r < y.num_rows; ++r) norm_in_place(weight(name), y.row(r));
  return y;
}

// Pairs (i, i + rope_dim/2), or (2i, 2i + 1), turn by position * base^(-2i/rope_dim); values past rope_dim pass through.
// A factor divides the angles. YaRN (Peng et al. 2023, 3.2 and 3.4): pairs that turn more than 32 times in the first
// context keep theirs, those that turn less than once have theirs divided, with a ramp between the two over the pairs'
// numbers; both queries and keys grow by 0.1 ln(factor) + 1.
void ReferenceModel::rotate(int64_t position, double* head) const {
  const int64_t half = rope_dim_ / 2;
  for (int64_t i = 0; i < half; ++i) {
    double angle = static_cast<double>(position) *
                   std::pow(rope_base_, -2.0 * static_cast<double>(i) / static_cast<double>(rope_dim_));
    double magnitude = 1;
    if (yarn_) {
      const auto pair_of = [&](double turns) {
        return static_cast<double>(rope_dim_) * std::log(rope_context_ / (2 * M_PI * turns)) /
               (2 * std::log(rope_base_));
      };
      const double low = std::max(0.0, std::floor(pair_of(32))),
                   high = std::min(static_cast<double>(rope_dim_ - 1), std::ceil(pair_of(1)));
      const double divided = std::clamp((static_cast<double>(i) - low) / (high == low ? 0.001 : high - low), 0.0, 1.0);
      angle = angle * (1 - divided) + angle / rope_factor_ * divided;
      magnitude = 0.1 * std::log(rope_factor_) + 1;
    } else {
      angle /= rope_factor_;
    }
    double& first = llama_ ? head[2 * i] : head[i];
    double& second = llama_ ? head[2 * i + 1] : head[i + half];
    const double a = first * magnitude, b = second * magnitude;
    first = a * std::cos(angle) - b * std::sin(angle);
    second = a * std::sin(angle) + b * std::cos(angle);
  }
}

ReferenceModel::Rows ReferenceModel::columns(const Rows& x, int64_t begin, int64_t end) const {
  Rows part(x.num_rows, end - begin);
  for (int64_t r = 0; r < x.num_rows; ++r) std::copy_n(x.row(r) + begin, end - begin, part.row(r));
  return part;
}

void ReferenceModel::add_bias(const std::string& name, int64_t begin, Rows& x) {
  if (!has(name)) return;
  const Weight& bias = weight(name);
  for (int64_t r = 0; r < x.num_rows; ++r) {
    for (int64_t i = 0; i < x.num_cols; ++i) x.row(r)[i] += double{bias.values[begin + i]};
  }
}

ReferenceModel::Rows ReferenceModel::attention(const std::string& block, const Rows& x) {
  const int64_t q_rows = num_heads_ * head_dim_ * (hybrid_ ? 2 : 1), kv_rows = num_kv_heads_ * head_dim_;
  Rows q, k, v;
  if (has(block + "attn_qkv.weight")) {
    const Rows all = multiply(block + "attn_qkv.weight", x);
    q = columns(all, 0, q_rows);
    k = columns(all, q_rows, q_rows + kv_rows);
    v = columns(all, q_rows + kv_rows, q_rows + 2 * kv_rows);
  } else {
    q = multiply(block + "attn_q.weight", x);
    k = multiply(block + "attn_k.weight", x);
    v = multiply(block + "attn_v.weight", x);
  }
  add_bias(block + "attn_q.bias", 0, q);
  add_bias(block + "attn_k.bias", 0, k);
  add_bias(block + "attn_v.bias", 0, v);
  add_bias(block + "attn_qkv.bias", 0, q);
  add_bias(block + "attn_qkv.bias", q_rows, k);
  add_bias(block + "attn_qkv.bias", q_rows + kv_rows, v);
  const int64_t q_stride =
      hybrid_ ? 2 * head_dim_ : head_dim_;  // gated: query and gate stand side by side in each head
  for (int64_t r = 0; r < x.num_rows; ++r) {
    for (int64_t h = 0; h < num_heads_; ++h) {
      if (!llama_) norm_in_place(weight(block + "attn_q_norm.weight"), q.row(r) + h * q_stride);
      rotate(r, q.row(r) + h * q_stride);
    }
    for (int64_t h = 0; h < num_kv_heads_; ++h) {
      if (!llama_) norm_in_place(weight(block + "attn_k_norm.weight"), k.row(r) + h * head_dim_);
      rotate(r, k.row(r) + h * head_dim_);
    }
  }
  if (options_.kv_type == KvType::kF16) {
    for (Rows* rows : {&k, &v}) {
      for (double& value : rows->values) value = double{half_to_float(float_to_half(static_cast<float>(value)))};
    }
  }
  Rows attended(x.num_rows, num_heads_ * head_dim_);
  for (int64_t r = 0; r < x.num_rows; ++r) {
    for (int64_t h = 0; h < num_heads_; ++h) {
      const int64_t kv_begin = h / (num_heads_ / num_kv_heads_) * head_dim_;
      const double* query = q.row(r) + h * q_stride;
      std::vector<double> p(static_cast<size_t>(r + 1));
      for (int64_t j = 0; j <= r; ++j) {
        p[j] = dot(query, k.row(j) + kv_begin, head_dim_) / std::sqrt(static_cast<double>(head_dim_));
      }
      softmax(p);
      for (int64_t i = 0; i < head_dim_; ++i) {
        double sum = 0;
        for (int64_t j = 0; j <= r; ++j) sum += p[j] * v.row(j)[kv_begin + i];
        attended.row(r)[h * head_dim_ + i] = hybrid_ ? sum * sigmoid(query[head_dim_ + i]) : sum;
      }
    }
  }
  return multiply(block + "attn_output.weight", attended);
}

// Gated delta net: S <- decay S; S <- S + k (beta (v - S^T k))^T; o = S^T q / sqrt(state_size), value head i with key
// head i mod num_key_heads, or of qwen3next with key head i / (value heads of a key head), whose fused tensors hold the
// parts of key head 0, then those of key head 1 ...
ReferenceModel::Rows ReferenceModel::delta_net(const std::string& block, const Rows& x) {
  const int64_t group = num_value_heads_ / num_key_heads_;
  Rows u, z, b, alpha;
  if (has(block + "ssm_in.weight")) {
    const Rows all = multiply(block + "ssm_in.weight", x);
    const int64_t S = state_size_, stride = 2 * S + 2 * group * S, keys = S * num_key_heads_;
    u = Rows(x.num_rows, 2 * keys + S * num_value_heads_);
    z = Rows(x.num_rows, S * num_value_heads_);
    for (int64_t r = 0; r < x.num_rows; ++r) {
      for (int64_t h = 0; h < num_key_heads_; ++h) {
        const double* from = all.row(r) + h * stride;
        std::copy_n(from, S, u.row(r) + h * S);
        std::copy_n(from + S, S, u.row(r) + keys + h * S);
        std::copy_n(from + 2 * S, group * S, u.row(r) + 2 * keys + h * group * S);
        std::copy_n(from + 2 * S + group * S, group * S, z.row(r) + h * group * S);
      }
    }
  } else {
    u = multiply(block + "attn_qkv.weight", x);
    z = multiply(block + "attn_gate.weight", x);
  }
  if (next_) {
    const Rows both = multiply(block + "ssm_ba.weight", x);
    b = alpha = Rows(x.num_rows, num_value_heads_);
    for (int64_t r = 0; r < x.num_rows; ++r) {
      for (int64_t h = 0; h < num_value_heads_; ++h) {
        b.row(r)[h] = both.row(r)[h / group * 2 * group + h % group];
        alpha.row(r)[h] = both.row(r)[h / group * 2 * group + group + h % group];
      }
    }
  } else {
    b = multiply(block + "ssm_beta.weight", x);
    alpha = multiply(block + "ssm_alpha.weight", x);
  }
  const Weight& taps = weight(block + "ssm_conv1d.weight");
  const Weight& a = weight(block + "ssm_a");
  const Weight& dt = weight(block + "ssm_dt.bias");
  const int64_t S = state_size_, key_dim = S * num_key_heads_;

  Rows y(u.num_rows, u.num_cols);
  for (int64_t r = 0; r < u.num_rows; ++r) {
    for (int64_t c = 0; c < u.num_cols; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < conv_taps_; ++j) {
        const int64_t from = r - conv_taps_ + 1 + j;
        if (from >= 0) sum += double{taps.values[c * conv_taps_ + j]} * u.row(from)[c];
      }
      y.row(r)[c] = silu(sum);
    }
    for (int64_t h = 0; h < 2 * num_key_heads_; ++h) {  // queries, then keys
      double* head = y.row(r) + h * S;
      const double length = std::max(std::sqrt(dot(head, head, S)), eps_);
      for (int64_t i = 0; i < S; ++i) head[i] /= length;
    }
  }

  Rows out(x.num_rows, S * num_value_heads_);
  for (int64_t h = 0; h < num_value_heads_; ++h) {
    const int64_t key_head = next_ ? h / group : h % num_key_heads_;
    std::vector<double> state(static_cast<size_t>(S * S), 0.0);  // [key, value]
    for (int64_t r = 0; r < x.num_rows; ++r) {
      const double* q = y.row(r) + key_head * S;
      const double* k = y.row(r) + key_dim + key_head * S;
      const double* v = y.row(r) + 2 * key_dim + h * S;
      const double beta = sigmoid(b.row(r)[h]);
      const auto head = static_cast<size_t>(h);
      const double decay = std::exp(double{a.values[head]} * softplus(alpha.row(r)[h] + double{dt.values[head]}));
      for (double& s : state) s *= decay;
      for (int64_t c = 0; c < S; ++c) {
        double memory = 0;
        for (int64_t i = 0; i < S; ++i) memory += state[i * S + c] * k[i];
        const double delta = beta * (v[c] - memory);
        double o = 0;
        for (int64_t i = 0; i < S; ++i) o += (state[i * S + c] += k[i] * delta) * q[i];
        out.row(r)[h * S + c] = o / std::sqrt(static_cast<double>(S));
      }
      norm_in_place(weight(block + "ssm_norm.weight"), out.row(r) + h * S);
      for (int64_t c = 0; c < S; ++c) out.row(r)[h * S + c] *= silu(z.row(r)[h * S + c]);
    }
  }
  return multiply(block + "ssm_out.weight", out);
}

// y += sum over the top_k experts of w_e * down_e(silu(gate_e x) * up_e x), w = softmax renormalised over the chosen.
void ReferenceModel::add_routed_experts(const std::string& block, const Rows& x, Rows& y) {
  const bool fused = has(block + "ffn_gate_up_exps.weight");
  const Weight& gate = weight(block + (fused ? "ffn_gate_up_exps.weight" : "ffn_gate_exps.weight"));
  const Weight& up = fused ? gate : weight(block + "ffn_up_exps.weight");
  const Weight& down = weight(block + "ffn_down_exps.weight");
  const int64_t expert_dim = down.num_cols;
  const int64_t stride = fused ? 2 * expert_dim : expert_dim;  // fused: each expert's gate rows, then its up rows
  const int64_t up_begin = fused ? expert_dim : 0;
  const Rows router = multiply(block + "ffn_gate_inp.weight", x);

  std::vector<double> gated(static_cast<size_t>(expert_dim)), upped(static_cast<size_t>(expert_dim));
  std::vector<double> part(static_cast<size_t>(hidden_dim_));
  for (int64_t r = 0; r < x.num_rows; ++r) {
    const double* score = router.row(r);
    std::vector<int64_t> order(static_cast<size_t>(num_experts_));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return score[i] > score[j]; });
    if (top_k_ < num_experts_) {
      margins_.router = std::min(margins_.router, score[order[top_k_ - 1]] - score[order[top_k_]]);
    }
    order.resize(top_k_);
    // The softmax over all experts, renormalised over the chosen ones, is the softmax over the chosen ones.
    std::vector<double> share;
    for (int64_t e : order) share.push_back(score[e]);
    softmax(share);
    for (size_t rank = 0; rank < order.size(); ++rank) {
      const int64_t e = order[rank];
      multiply(gate, e * stride, e * stride + expert_dim, x.row(r), gated.data());
      multiply(up, e * stride + up_begin, e * stride + up_begin + expert_dim, x.row(r), upped.data());
      for (size_t i = 0; i < gated.size(); ++i) gated[i] = silu(gated[i]) * upped[i];
      multiply(down, e * hidden_dim_, (e + 1) * hidden_dim_, gated.data(), part.data());
      for (int64_t i = 0; i < hidden_dim_; ++i) y.row(r)[i] += share[rank] * part[i];
    }
  }
}

ReferenceModel::Rows ReferenceModel::feed_forward(const std::string& block, const Rows& x) {
  const bool routed = num_experts_ > 0;
  const std::string suffix = routed ? "_shexp.weight" : ".weight";
  Rows y(x.num_rows, hidden_dim_);
  if (routed) add_routed_experts(block, x, y);
  if (has(block + "ffn_gate" + suffix)) {
    Rows inner = multiply(block + "ffn_gate" + suffix, x);
    const Rows up = multiply(block + "ffn_up" + suffix, x);
    for (size_t i = 0; i < inner.values.size(); ++i) inner.values[i] = silu(inner.values[i]) * up.values[i];
    const Rows part = multiply(block + "ffn_down" + suffix, inner);
    for (int64_t r = 0; r < x.num_rows; ++r) {
      const double share =
          routed ? sigmoid(dot(weight(block + "ffn_gate_inp_shexp.weight").values.data(), x.row(r), hidden_dim_)) : 1.0;
      for (int64_t i = 0; i < hidden_dim_; ++i) y.row(r)[i] += share * part.row(r)[i];
    }
  }
  return y;
}

ReferenceModel::Rows ReferenceModel::layer(int64_t index, Rows x, bool recurrent) {
  const std::string block = "blk." + std::to_string(index) + ".";
  const Rows a = norm(block + "attn_norm.weight", x);
  const Rows mixed = recurrent ? delta_net(block, a) : attention(block, a);
  for (size_t i = 0; i < x.values.size(); ++i) x.values[i] += mixed.values[i];
  const Rows f = feed_forward(block, norm(block + (hybrid_ ? "post_attention_norm.weight" : "ffn_norm.weight"), x));
  for (size_t i = 0; i < x.values.size(); ++i) x.values[i] += f.values[i];
  return x;
}

ReferenceResult ReferenceModel::forward(std::span<const TokenId> ids) {
  margins_ = {};
  const std::string head = has("output.weight") ? "output.weight" : "token_embd.weight";
  Rows x = embed("token_embd.weight", ids);
  for (int64_t i = 0; i < num_layers_; ++i) x = layer(i, std::move(x), recurrent_[i]);
  const Rows hidden = norm("output_norm.weight", x);

  ReferenceResult result;
  result.num_rows = hidden.num_rows;
  result.hidden_dim = hidden_dim_;
  result.vocab_size = vocab_size_;
  result.logits = multiply(head, hidden).values;
  if (has_mtp()) {
    const std::string block = "blk." + std::to_string(num_layers_) + ".";
    const std::string own_embedding = block + "nextn.embed_tokens.weight",
                      own_head = block + "nextn.shared_head_head.weight";
    const std::string own_norm = block + "nextn.shared_head_norm.weight";
    const Rows e =
        norm(block + "nextn.enorm.weight", embed(has(own_embedding) ? own_embedding : "token_embd.weight", ids));
    Rows previous(hidden.num_rows, hidden_dim_);  // row p: the hidden of p - 1
    std::copy(hidden.values.begin(), hidden.values.end() - hidden_dim_, previous.values.begin() + hidden_dim_);
    previous = norm(block + "nextn.hnorm.weight", previous);
    Rows both(hidden.num_rows, 2 * hidden_dim_);
    for (int64_t r = 0; r < both.num_rows; ++r) {
      std::copy_n(e.row(r), hidden_dim_, both.row(r));
      std::copy_n(previous.row(r), hidden_dim_, both.row(r) + hidden_dim_);
    }
    const Rows m = norm(has(own_norm) ? own_norm : "output_norm.weight",
                        layer(num_layers_, multiply(block + "nextn.eh_proj.weight", both), /*recurrent=*/false));
    result.mtp_logits = multiply(has(own_head) ? own_head : head, m).values;
    result.mtp_hidden = m.values;
  }
  result.hidden = hidden.values;
  result.margins = margins_;
  return result;
}

double relative_error(std::span<const float> got, std::span<const double> want) {
  FT_CHECK(got.size() == want.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace foretoken::test
