#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <map>

#include "kernels/formats/interleave.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"
#include "moe/moe.h"
#include "tests/engine/model/random_model.h"

namespace foretoken {
namespace {

struct Shape {
  int64_t hidden_dim = 256;
  int num_experts = 13;
  int top_k = 3;
  int64_t expert_dim = 96;
  int64_t shared_dim = 64;  // 0: no shared expert
  WeightType type = WeightType::kQ8_0;
  bool interleave = true;  // where the shape allows it
  bool fused = false;      // gate and up of an expert in one tensor
};

/// Random weights of one layer, and their values for the check.
class Layer {
 public:
  explicit Layer(const Shape& shape) : shape_(shape) {
    const int64_t experts = shape.num_experts, dim = shape.expert_dim;
    weights_.num_experts = shape.num_experts;
    weights_.top_k = shape.top_k;
    if (experts > 0) {
      weights_.router = matrix("router", experts, shape.hidden_dim, WeightType::kF32, 1);
      weights_.down = {matrix("down", experts * shape.hidden_dim, dim, shape.type, shape.hidden_dim), shape.hidden_dim,
                       0, shape.hidden_dim};
      if (shape.fused) {
        const MatrixView both = matrix("gate_up", 2 * experts * dim, shape.hidden_dim, shape.type, dim);
        weights_.gate = {both, 2 * dim, 0, dim};
        weights_.up = {both, 2 * dim, dim, dim};
      } else {
        weights_.gate = {matrix("gate", experts * dim, shape.hidden_dim, shape.type, dim), dim, 0, dim};
        weights_.up = {matrix("up", experts * dim, shape.hidden_dim, shape.type, dim), dim, 0, dim};
      }
    }
    if (shape.shared_dim == 0) return;
    weights_.shared.gate = matrix("shared_gate", shape.shared_dim, shape.hidden_dim, shape.type, shape.shared_dim);
    weights_.shared.up = matrix("shared_up", shape.shared_dim, shape.hidden_dim, shape.type, shape.shared_dim);
    weights_.shared.down = matrix("shared_down", shape.hidden_dim, shape.shared_dim, shape.type, shape.hidden_dim);
    if (experts > 0) {
      (void)matrix("shared_router", 1, shape.hidden_dim, WeightType::kF32, 1);
      weights_.shared_router = {values_["shared_router"].data(), shape.hidden_dim};
    }
  }

  [[nodiscard]] const MoeWeights& weights() const { return weights_; }

  /// What the layer adds to one row, in double. The rows of x are exact in 8 bits, the inner rows are not: for float
  /// types only.
  [[nodiscard]] std::vector<double> expected(const float* x) {
    const int64_t dim = shape_.hidden_dim;
    std::vector<double> y(static_cast<size_t>(dim), 0.0);
    if (shape_.num_experts > 0) {
      std::vector<double> score = times("router", 0, shape_.num_experts, to_double(x, dim));
      std::vector<int64_t> order(score.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
      double sum = 0;
      for (int i = 0; i < shape_.top_k; ++i) sum += std::exp(score[order[i]]);
      for (int i = 0; i < shape_.top_k; ++i) {
        const int64_t e = order[i], f = shape_.expert_dim;
        const auto part = shape_.fused ? swiglu("gate_up", 2 * e * f, "gate_up", (2 * e + 1) * f, "down", e * dim, f, x)
                                       : swiglu("gate", e * f, "up", e * f, "down", e * dim, f, x);
        add(std::exp(score[e]) / sum, part, y);
      }
    }
    if (shape_.shared_dim > 0) {
      const double gate =
          shape_.num_experts > 0 ? 1 / (1 + std::exp(-times("shared_router", 0, 1, to_double(x, dim))[0])) : 1.0;
      add(gate, swiglu("shared_gate", 0, "shared_up", 0, "shared_down", 0, shape_.shared_dim, x), y);
    }
    return y;
  }

 private:
  // Rows are interleaved if parts of `granule` rows allow it.
  MatrixView matrix(const std::string& name, int64_t num_rows, int64_t num_cols, WeightType type, int64_t granule) {
    std::vector<float>& values = values_[name];
    values.resize(num_rows * num_cols);
    const auto draws = test::random_ids(static_cast<int>(values.size()), 2001, values_.size());
    const double scale = 1.7 / (1000 * std::sqrt(static_cast<double>(num_cols)));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((draws[i] - 1000) * scale);
    MatrixView rows{nullptr, num_rows, num_cols, type, Layout::kRows};
    AlignedBuffer plain(rows.size_bytes());
    encode_row(type, values.data(), num_rows * num_cols, plain.data());
    decode_row(type, plain.data(), num_rows * num_cols, values.data());
    rows.data = plain.data();
    if (shape_.interleave && can_interleave(type, granule, num_cols)) {
      AlignedBuffer mixed(rows.size_bytes());
      interleave_rows(rows, 0, num_rows, mixed.data());
      rows.data = mixed.data();
      rows.layout = Layout::kInterleaved;
      buffers_.push_back(std::move(mixed));
    } else {
      buffers_.push_back(std::move(plain));
    }
    return rows;
  }

  static std::vector<double> to_double(const float* x, int64_t n) { return {x, x + n}; }
  static void add(double weight, const std::vector<double>& from, std::vector<double>& to) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += weight * from[i];
  }
  std::vector<double> times(const std::string& name, int64_t row_begin, int64_t num_rows,
                            const std::vector<double>& x) {
    const std::vector<float>& w = values_[name];
    std::vector<double> y;
    for (int64_t o = row_begin; o < row_begin + num_rows; ++o) {
      double sum = 0;
      for (size_t i = 0; i < x.size(); ++i) sum += double{w[static_cast<size_t>(o) * x.size() + i]} * x[i];
      y.push_back(sum);
    }
    return y;
  }
  std::vector<double> swiglu(const std::string& gate, int64_t gate_begin, const std::string& up, int64_t up_begin,
                             const std::string& down, int64_t down_begin, int64_t inner, const float* x) {
    const std::vector<double> row = to_double(x, shape_.hidden_dim);
    std::vector<double> g = times(gate, gate_begin, inner, row);
    const std::vector<double> u = times(up, up_begin, inner, row);
    for (size_t i = 0; i < g.size(); ++i) g[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
    return times(down, down_begin, shape_.hidden_dim, g);
  }

  Shape shape_;
  MoeWeights weights_;
  std::map<std::string, std::vector<float>> values_;
  std::vector<AlignedBuffer> buffers_;
};

struct Run {
  std::vector<float> residual;  // [num_rows, hidden_dim]
  Routing routing;
  int distinct_experts = 0;
};

constexpr int kMaxRows = 20;

// Neighbouring rows are alike, so that experts are shared.
void fill_rows(int num_rows, RowBuffer& x, RowBuffer& residual) {
  for (int r = 0; r < num_rows; ++r) {
    const auto own = test::random_ids(static_cast<int>(x.num_cols()), 2001, static_cast<uint64_t>(r));
    const auto common = test::random_ids(static_cast<int>(x.num_cols()), 2001, 1000);
    for (size_t i = 0; i < own.size(); ++i) {
      x.row(r)[i] = static_cast<float>(own[i] + common[i] - 2000) * 1e-3f;
      residual.row(r)[i] = static_cast<float>(own[i]) * 1e-3f;
    }
  }
}

void quantise_rows(Isa isa, int num_rows, unsigned blocks, RowBuffer& x) {
  for (int r = 0; r < num_rows; ++r) {
    if (blocks & 1u) x.quantise(isa, r, 32);
    if (blocks & 2u) x.quantise(isa, r, 256);
  }
}

MoeShape scratch_shape(const Shape& shape) {
  return {shape.hidden_dim, shape.num_experts, shape.top_k, shape.expert_dim, shape.shared_dim};
}

Run run(const Layer& layer, const Shape& shape, int num_rows, Isa isa, int threads, MoeVerify verify,
        MoeScratch& scratch) {
  ThreadTeam team(threads);
  RowBuffer x(kMaxRows, shape.hidden_dim), residual(kMaxRows, shape.hidden_dim);
  fill_rows(num_rows, x, residual);
  const MoeWeights& weights = layer.weights();
  if (shape.num_experts == 0) {
    quantise_rows(isa, num_rows, input_blocks(weights.shared), x);
    dense_forward(isa, team, weights.shared, x, num_rows, scratch, residual);
  } else {
    quantise_rows(isa, num_rows, input_blocks(weights), x);
    moe_forward(isa, team, verify, weights, x, num_rows, scratch, residual);
  }
  Run result;
  result.residual.assign(residual.row(0), residual.row(num_rows - 1) + shape.hidden_dim);
  result.routing = scratch.routing;
  result.distinct_experts = scratch.distinct_experts;
  return result;
}

Run run(const Layer& layer, const Shape& shape, int num_rows, Isa isa, int threads, MoeVerify verify,
        ExpertReads* reads = nullptr) {
  MoeScratch scratch(scratch_shape(shape), kMaxRows, threads);
  scratch.reads = reads;
  return run(layer, shape, num_rows, isa, threads, verify, scratch);
}

// What these weights add to a residual of zeros, [kMaxRows, hidden_dim].
template <class Weights>
std::vector<float> added_by(const Weights& weights, const Shape& shape) {
  ThreadTeam team(1);
  RowBuffer x(kMaxRows, shape.hidden_dim), residual(kMaxRows, shape.hidden_dim);
  MoeScratch scratch(scratch_shape(shape), kMaxRows, 1);
  fill_rows(kMaxRows, x, residual);
  quantise_rows(best_isa(), kMaxRows, input_blocks(weights), x);
  for (int r = 0; r < kMaxRows; ++r) std::fill_n(residual.row(r), shape.hidden_dim, 0.0f);
  if constexpr (std::is_same_v<Weights, DenseWeights>) {
    dense_forward(best_isa(), team, weights, x, kMaxRows, scratch, residual);
  } else {
    moe_forward(best_isa(), team, MoeVerify::kPerToken, weights, x, kMaxRows, scratch, residual);
  }
  return {residual.row(0), residual.row(kMaxRows - 1) + shape.hidden_dim};
}

std::vector<Shape> shapes() {
  std::vector<Shape> list;
  list.push_back({});
  list.push_back({.num_experts = 8, .top_k = 1});
  list.push_back({.num_experts = 4, .top_k = 4, .shared_dim = 0});
  list.push_back({.expert_dim = 72, .shared_dim = 40, .type = WeightType::kF16});  // rows that do not interleave
  list.push_back({.expert_dim = 256, .shared_dim = 256, .type = WeightType::kQ4_K});
  list.push_back({.expert_dim = 256, .shared_dim = 0, .type = WeightType::kQ6_K, .fused = true});
  list.push_back({.expert_dim = 64, .type = WeightType::kQ4_0, .interleave = false});
  list.push_back({.expert_dim = 32, .type = WeightType::kF32, .fused = true});
  list.push_back(
      {.num_experts = 0, .top_k = 0, .expert_dim = 0, .shared_dim = 160, .type = WeightType::kF32});  // dense
  return list;
}

TEST_CASE("a row's feed-forward bits depend on nothing but the row: cores, threads, instruction sets, neighbours") {
  for (const Shape& shape : shapes()) {
    const Layer layer(shape);
    const Run alone = run(layer, shape, 1, Isa::kScalar, 1, MoeVerify::kPerToken);
    const Run want = run(layer, shape, kMaxRows, Isa::kScalar, 1, MoeVerify::kPerToken);
    CHECK(std::memcmp(alone.residual.data(), want.residual.data(), alone.residual.size() * sizeof(float)) == 0);
    for (Isa isa : supported_isas()) {
      for (int threads : {1, 2, 3}) {
        for (MoeVerify verify : {MoeVerify::kGrouped, MoeVerify::kPerToken}) {
          for (int num_rows : {1, 2, 5, 9, 10, kMaxRows}) {
            INFO(weight_type_info(shape.type).name << " " << shape.num_experts << " experts, " << isa_name(isa) << ", "
                                                   << threads << " threads, " << num_rows << " rows, grouped "
                                                   << (verify == MoeVerify::kGrouped));
            const Run got = run(layer, shape, num_rows, isa, threads, verify);
            CHECK(std::memcmp(got.residual.data(), want.residual.data(), got.residual.size() * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("one scratch serves layers of different shapes, to the bit") {
  const std::vector<Shape> all = {{.num_experts = 8, .top_k = 4, .expert_dim = 64, .shared_dim = 160},
                                  {.num_experts = 5, .top_k = 2, .expert_dim = 256, .shared_dim = 0},
                                  {.num_experts = 0, .top_k = 0, .expert_dim = 0, .shared_dim = 256}};
  MoeShape largest;
  std::vector<Layer> layers;
  for (const Shape& shape : all) {
    layers.emplace_back(shape);
    largest.hidden_dim = shape.hidden_dim;
    if (shape.num_experts == 0) {
      largest.add_dense(shape.shared_dim);
    } else {
      largest.add(layers.back().weights());
    }
  }
  MoeScratch scratch(largest, kMaxRows, 2);
  for (const int num_rows : {kMaxRows, 3}) {
    for (const size_t i : {0, 1, 2, 1, 0}) {
      INFO("layer " << i << ", " << num_rows << " rows");
      const Run want = run(layers[i], all[i], num_rows, best_isa(), 2, MoeVerify::kGrouped);
      const Run got = run(layers[i], all[i], num_rows, best_isa(), 2, MoeVerify::kGrouped, scratch);
      CHECK(got.residual == want.residual);
    }
  }
}

TEST_CASE("experts are added in rank order, then the shared expert, then the residual, to the bit") {
  for (const Shape& shape : shapes()) {
    if (shape.num_experts == 0) continue;
    const Layer layer(shape);
    const Run got = run(layer, shape, kMaxRows, best_isa(), 2, MoeVerify::kGrouped);
    const MoeWeights& all = layer.weights();
    // What each expert gives by itself: a layer of this one expert has the weight 1.
    std::vector<std::vector<float>> parts;
    for (int e = 0; e < shape.num_experts; ++e) {
      MoeWeights one;
      one.num_experts = one.top_k = 1;
      one.router = all.router.slice_rows(e, e + 1);
      const auto cut = [&](const ExpertMatrices& from) {
        return ExpertMatrices{from.expert(e), from.num_rows, 0, from.num_rows};
      };
      one.gate = cut(all.gate), one.up = cut(all.up), one.down = cut(all.down);
      parts.push_back(added_by(one, shape));
    }
    const std::vector<float> shared = all.has_shared() ? added_by(all.shared, shape) : std::vector<float>();
    RowBuffer x(kMaxRows, shape.hidden_dim), residual(kMaxRows, shape.hidden_dim);
    fill_rows(kMaxRows, x, residual);
    for (int r = 0; r < kMaxRows; ++r) {
      float gate = 1.0f;
      if (all.has_shared()) {
        const float score = float_dot(best_isa(), all.shared_router, x.row(r), shape.hidden_dim);
        sigmoid_gate(best_isa(), &score, 1, &gate);
      }
      for (int64_t i = 0; i < shape.hidden_dim; ++i) {
        const auto at = static_cast<size_t>(r * shape.hidden_dim + i);
        float sum = 0;
        for (int rank = 0; rank < shape.top_k; ++rank) {
          const auto slot = static_cast<size_t>(r * shape.top_k + rank);
          sum = std::fma(got.routing.weights[slot], parts[got.routing.experts[slot]][at], sum);
        }
        if (all.has_shared()) sum = std::fma(gate, shared[at], sum);
        if (got.residual[at] != residual.row(r)[i] + sum)
          FAIL("row " << r << ", value " << i << ": " << got.residual[at]);
      }
    }
  }
}

TEST_CASE("the feed-forward part of float layers agrees with double arithmetic") {
  for (const Shape& shape : shapes()) {
    if (!weight_type_info(shape.type).is_float()) continue;
    Layer layer(shape);
    const Run got = run(layer, shape, kMaxRows, best_isa(), 2, MoeVerify::kGrouped);
    RowBuffer x(kMaxRows, shape.hidden_dim), residual(kMaxRows, shape.hidden_dim);
    fill_rows(kMaxRows, x, residual);
    for (int r = 0; r < kMaxRows; ++r) {
      const auto dim = static_cast<size_t>(shape.hidden_dim);
      const std::vector<double> want = layer.expected(x.row(r));
      double difference = 0, norm = 0;
      for (size_t i = 0; i < dim; ++i) {
        const double full = want[i] + double{residual.row(r)[i]};
        const double error = double{got.residual[static_cast<size_t>(r) * dim + i]} - full;
        difference += error * error;
        norm += full * full;
      }
      INFO(weight_type_info(shape.type).name << " row " << r);
      // Two dots of 256 and 256 values in 32 lanes (13 roundings each, adding like a random walk), exp twice, a sum of
      // five: below 20 u.
      CHECK(std::sqrt(difference / norm) < 20 * 0x1p-24);
    }
  }
}

TEST_CASE(
    "grouped reads each used expert once a window, per-token once for each row that uses it, the shared expert once in "
    "both") {
  for (const Shape& shape : shapes()) {
    const Layer layer(shape);
    for (const int num_rows : {1, 4, 9, kMaxRows}) {
      for (const int threads : {1, 3}) {
        for (const MoeVerify verify : {MoeVerify::kGrouped, MoeVerify::kPerToken}) {
          ExpertReads reads(shape.num_experts);
          const Run got = run(layer, shape, num_rows, best_isa(), threads, verify, &reads);
          int distinct = 0;
          for (int32_t e = 0; e < shape.num_experts; ++e) {
            const auto begin = got.routing.experts.begin();
            const auto uses = std::count(begin, begin + num_rows * shape.top_k, e);
            const int64_t times = verify == MoeVerify::kGrouped ? std::min<int64_t>(uses, 1) : uses;
            INFO("expert " << e << ", " << num_rows << " rows, " << threads << " threads, grouped "
                           << (verify == MoeVerify::kGrouped));
            CHECK(reads.rows(e, ExpertReads::kGate) == times * shape.expert_dim);
            CHECK(reads.rows(e, ExpertReads::kUp) == times * shape.expert_dim);
            CHECK(reads.rows(e, ExpertReads::kDown) == times * shape.hidden_dim);
            distinct += uses > 0;
          }
          CHECK(got.distinct_experts == distinct);
          CHECK(reads.rows(kSharedExpert, ExpertReads::kGate) == shape.shared_dim);
          CHECK(reads.rows(kSharedExpert, ExpertReads::kUp) == shape.shared_dim);
          CHECK(reads.rows(kSharedExpert, ExpertReads::kDown) == (shape.shared_dim > 0 ? shape.hidden_dim : 0));
        }
      }
    }
  }
}

}  // namespace
}  // namespace foretoken
