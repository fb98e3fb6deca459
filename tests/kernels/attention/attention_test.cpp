#include "kernels/attention/attention.h"

#include <catch2/catch.hpp>
#include <functional>
#include <memory>

#include "kernels/base/half.h"
#include "kernels/base/math.h"
#include "kernels/float_isa.h"
#include "tests/kernels/attention/contiguous_kv.h"
#include "tests/kernels/base/float_test.h"

namespace foretoken {
#ifdef FORETOKEN_EMULATED_AVX512
void emulated_avx512_attention_split(const KvSplit& kv, int head_dim, float scale, int64_t split,
                                     AttentionQuery* queries, int num_queries);
#endif

namespace test {
namespace {

using SplitFunction = std::function<void(const KvSplit& kv, int head_dim, float scale, int64_t split,
                                         AttentionQuery* queries, int num_queries)>;

SplitFunction split_on(Isa isa) {
  return [isa](const KvSplit& kv, int head_dim, float scale, int64_t split, AttentionQuery* queries, int num_queries) {
    std::vector<float> scratch(static_cast<size_t>(kAttentionSplit + head_dim));
    attention_split(isa, kv, head_dim, scale, split, queries, num_queries, scratch.data());
  };
}

struct Variant {
  std::string name;
  SplitFunction split;
};

std::vector<Variant> fast_variants() {
  std::vector<Variant> variants;
  for (Isa isa : fast_isas()) variants.push_back({std::string(isa_name(isa)), split_on(isa)});
#ifdef FORETOKEN_EMULATED_AVX512
  variants.push_back({"emulated avx512", [](const KvSplit& kv, int head_dim, float scale, int64_t split,
                                            AttentionQuery* queries, int num_queries) {
                        if (head_dim > kMaxTiledHeadDim)
                          return split_on(Isa::kScalar)(kv, head_dim, scale, split, queries, num_queries);
                        emulated_avx512_attention_split(kv, head_dim, scale, split, queries, num_queries);
                      }});
#endif
  return variants;
}

/// Keys and values of one head, with room after the last position only where the type says so: reading beyond is seen
/// by sanitizers.
struct Cache {
  std::vector<uint16_t> half_keys, half_values;
  std::vector<float> float_keys, float_values;
  ContiguousKv head;
  double key(int64_t i) const { return head.type == KvType::kF16 ? half_to_float(half_keys[i]) : float_keys[i]; }
  double value(int64_t i) const { return head.type == KvType::kF16 ? half_to_float(half_values[i]) : float_values[i]; }
};

std::unique_ptr<Cache> random_cache(Random& random, KvType type, int64_t kv_len, int head_dim) {
  auto cache = std::make_unique<Cache>();
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (int64_t i = 0; i < kv_len * head_dim; ++i) {
    const float key = normal(random), value = normal(random);
    if (type == KvType::kF16) {
      cache->half_keys.push_back(float_to_half(key));
      cache->half_values.push_back(float_to_half(value));
    } else {
      cache->float_keys.push_back(key);
      cache->float_values.push_back(value);
    }
  }
  cache->head.type = type;
  cache->head.keys =
      type == KvType::kF16 ? static_cast<const void*>(cache->half_keys.data()) : cache->float_keys.data();
  cache->head.values =
      type == KvType::kF16 ? static_cast<const void*>(cache->half_values.data()) : cache->float_values.data();
  return cache;
}

/// Queries with places for their results.
struct Queries {
  std::vector<Floats> q, out;
  std::vector<AttentionQuery> list;

  Queries(const std::vector<Floats>& vectors, const std::vector<int64_t>& kv_lens, int head_dim) : q(vectors) {
    for (size_t r = 0; r < q.size(); ++r) {
      out.emplace_back(head_dim, static_cast<int>(r % 3));
      list.push_back({q[r].data(), kv_lens[r], 0.0f, 0.0f, out[r].data()});
      attention_reset(list[r], head_dim);
    }
  }
  void require_same(const Queries& want) const {
    for (size_t r = 0; r < q.size(); ++r) {
      INFO("query " << r << ", kv_len " << list[r].kv_len);
      REQUIRE(out[r] == want.out[r]);
      REQUIRE(out[r].guard_is_intact());
      REQUIRE(same_bits(list[r].max, want.list[r].max));
      REQUIRE(same_bits(list[r].sum, want.list[r].sum));
    }
  }
};

struct Problem {
  std::unique_ptr<Cache> cache;
  std::vector<Floats> q;
  std::vector<int64_t> kv_lens;
  int head_dim;
  float scale;
  int64_t num_splits;

  /// A window: `rows` queries of `heads` heads each, row r one position longer than the row before; the last sees
  /// kv_len positions.
  Problem(Random& random, KvType type, int head_dim, int64_t kv_len, int rows, int heads)
      : cache(random_cache(random, type, kv_len, head_dim)),
        head_dim(head_dim),
        scale(1.0f / std::sqrt(static_cast<float>(head_dim))),
        num_splits((kv_len + kAttentionSplit - 1) / kAttentionSplit) {
    for (int r = 0; r < rows; ++r) {
      for (int h = 0; h < heads; ++h) {
        q.push_back(random_floats(random, head_dim, h % 4, 2.0f));
        kv_lens.push_back(std::max<int64_t>(1, kv_len - (rows - 1 - r)));
      }
    }
  }
  Queries queries() const { return Queries(q, kv_lens, head_dim); }
  /// All splits in order, unfinished.
  Queries run(const SplitFunction& split) const {
    Queries queries = this->queries();
    for (int64_t s = 0; s < num_splits; ++s) {
      split(cache->head.split(s, head_dim), head_dim, scale, s, queries.list.data(),
            static_cast<int>(queries.list.size()));
    }
    return queries;
  }
};

TEST_CASE("attention gives the scalar bits for every head size") {
  Random random(1);
  std::vector<int> head_dims = {128, 160, 192, 250, 256, 512, 576, 1024, 1030};
  for (int head_dim = 1; head_dim <= 100; ++head_dim) head_dims.push_back(head_dim);
  for (KvType type : {KvType::kF16, KvType::kF32}) {
    for (int head_dim : head_dims) {
      const Problem problem(random, type, head_dim, 41, 2, 3);
      const Queries want = problem.run(split_on(Isa::kScalar));
      for (const Variant& variant : fast_variants()) {
        INFO(variant.name << ", head_dim " << head_dim << (type == KvType::kF16 ? ", F16" : ", F32"));
        problem.run(variant.split).require_same(want);
      }
    }
  }
}

TEST_CASE("attention gives the scalar bits for every length") {
  Random random(2);
  std::vector<int64_t> lengths = {254, 255, 256, 257, 258, 300, 511, 512, 513, 520, 1000};
  for (int64_t kv_len = 1; kv_len <= 70; ++kv_len) lengths.push_back(kv_len);
  for (KvType type : {KvType::kF16, KvType::kF32}) {
    for (int64_t kv_len : lengths) {
      const Problem problem(random, type, 64, kv_len, 3, 2);
      const Queries want = problem.run(split_on(Isa::kScalar));
      for (const Variant& variant : fast_variants()) {
        INFO(variant.name << ", kv_len " << kv_len << (type == KvType::kF16 ? ", F16" : ", F32"));
        problem.run(variant.split).require_same(want);
      }
    }
  }
}

TEST_CASE("attention gives the same bits however queries are batched") {
  Random random(3);
  for (KvType type : {KvType::kF16, KvType::kF32}) {
    for (int rows : {1, 2, 5}) {
      for (int heads : {1, 2, 3, 4, 7, 8}) {
        const Problem problem(random, type, 96, 262, rows, heads);  // the rows part at a split's border
        const Queries want = problem.run(split_on(Isa::kScalar));
        std::vector<Variant> variants = fast_variants();
        variants.push_back({"scalar", split_on(Isa::kScalar)});
        for (const Variant& variant : variants) {
          INFO(variant.name << ", rows " << rows << ", heads " << heads);
          problem.run(variant.split).require_same(want);
          for (int batch : {1, 3}) {
            Queries parts = problem.queries();
            for (int64_t s = 0; s < problem.num_splits; ++s) {
              for (int begin = 0; begin < rows * heads; begin += batch) {
                variant.split(problem.cache->head.split(s, problem.head_dim), problem.head_dim, problem.scale, s,
                              parts.list.data() + begin, std::min(batch, rows * heads - begin));
              }
            }
            parts.require_same(want);
          }
        }
      }
    }
  }
}

TEST_CASE("positions beyond kv_len do not matter") {
  Random random(4);
  for (KvType type : {KvType::kF16, KvType::kF32}) {
    Problem problem(random, type, 64, 40, 1, 4);
    problem.kv_lens = {10, 40, 11, 3};
    const Queries before = problem.run(split_on(Isa::kScalar));
    // What the query with 40 positions reads stays; NaN beyond kv_len of the others would reach their values through
    // any arithmetic.
    Cache& cache = *problem.cache;
    for (int64_t i = 11 * 64; i < 40 * 64; ++i) {
      if (type == KvType::kF16) {
        cache.half_values[i] = 0x7e00;
      } else {
        cache.float_values[i] = std::nanf("");
      }
    }
    std::vector<Variant> variants = fast_variants();
    variants.push_back({"scalar", split_on(Isa::kScalar)});
    for (const Variant& variant : variants) {
      INFO(variant.name);
      const Queries after = problem.run(variant.split);
      for (size_t r : {0u, 2u, 3u}) CHECK(after.out[r] == before.out[r]);
      CHECK(std::isnan(after.out[1][0]));
    }
  }
}

TEST_CASE("splits merged in order give the bits of splits run in turn") {
  Random random(5);
  const Problem problem(random, KvType::kF16, 80, 700, 2, 2);
  const Queries want = problem.run(split_on(Isa::kScalar));
  for (Isa isa : supported_isas()) {
    Queries whole = problem.queries();
    for (int64_t s = 0; s < problem.num_splits; ++s) {
      Queries part = problem.queries();
      split_on(isa)(problem.cache->head.split(s, problem.head_dim), problem.head_dim, problem.scale, s,
                    part.list.data(), 4);
      for (size_t r = 0; r < 4; ++r) attention_merge(isa, part.list[r], problem.head_dim, whole.list[r]);
    }
    INFO(isa_name(isa));
    whole.require_same(want);
  }
}

TEST_CASE("a merge is the contract's expressions to the bit") {
  Random random(8);
  for (const auto& [before, m] : {std::pair{1.25f, -0.75f}, {-3.0f, 2.5f}, {1.0f, 1.0f}, {-HUGE_VALF, 0.5f}}) {
    const Floats o = random_floats(random, 50), start = random_floats(random, 50);
    const float a = before == -HUGE_VALF ? 0.0f : math::exp(before - std::max(before, m));
    const float b = math::exp(m - std::max(before, m));
    for (Isa isa : supported_isas()) {
      Floats part_out = o, out = start;
      const AttentionQuery part{nullptr, 1, m, 7.3f, part_out.data()};
      AttentionQuery whole{nullptr, 1, before, 2.9f, out.data()};
      attention_merge(isa, part, 50, whole);
      CHECK(whole.max == std::max(before, m));
      CHECK(same_bits(whole.sum, std::fma(7.3f, b, 2.9f * a)));
      for (int64_t i = 0; i < 50; ++i) CHECK(same_bits(out[i], std::fma(o[i], b, start[i] * a)));
    }
  }
}

TEST_CASE("scalar attention matches double arithmetic") {
  Random random(6);
  for (KvType type : {KvType::kF16, KvType::kF32}) {
    for (int64_t kv_len : {1, 100, 256, 700}) {
      const int head_dim = 128;
      const Problem problem(random, type, head_dim, kv_len, 1, 2);
      Queries got = problem.run(split_on(Isa::kScalar));
      for (size_t r = 0; r < got.list.size(); ++r) {
        attention_finish(Isa::kScalar, got.list[r], head_dim);
        std::vector<double> p;
        double largest = -HUGE_VAL, score_error = 0.0, range = 0.0, sum = 0.0;
        for (int64_t j = 0; j < kv_len; ++j) {
          double score = 0.0, magnitude = 0.0;
          for (int i = 0; i < head_dim; ++i) {
            const double product = problem.q[r][i] * problem.cache->key(j * head_dim + i);
            score += product;
            magnitude += std::fabs(product);
          }
          p.push_back(score * problem.scale);
          largest = std::max(largest, p.back());
          // A float dot (head_dim/32 + 5 roundings) and the product with scale.
          score_error = std::max(score_error, (head_dim / 32 + 6) * kUnit * magnitude * problem.scale);
        }
        for (double& weight : p) {
          range = std::max(range, largest - weight);
          weight = std::exp(weight - largest);
          sum += weight;
        }
        // A weight exp(s - m): both scores' errors, u * range for the difference, 2.5 u for exp; a later split scales
        // it by exp(M - M'), once more the same; all that above and below the line of the division.
        const double weight_error = 2 * score_error + (range + 2.5) * kUnit;
        const double splits = static_cast<double>(problem.num_splits);
        // Sums: up to 256 fma for values and 13 additions for weights in a split, 3 roundings a merge; the division.
        const double error = 1.05 * (2 * (1 + splits) * weight_error + (256 + 13 + 6 * splits + 1) * kUnit);
        for (int i = 0; i < head_dim; ++i) {
          double want = 0.0, magnitude = 0.0;
          for (int64_t j = 0; j < kv_len; ++j) {
            want += p[j] * problem.cache->value(j * head_dim + i) / sum;
            magnitude += p[j] * std::fabs(problem.cache->value(j * head_dim + i)) / sum;
          }
          CHECK(std::fabs(got.out[r][i] - want) <= error * magnitude);
        }
      }
    }
  }
}

TEST_CASE("attention_finish and store_kv give the scalar bits") {
  Random random(7);
  for (int64_t n : sweep_sizes()) {
    const Floats x = random_floats(random, n, static_cast<int>(n % 4));
    Floats small = random_floats(random, n, 1, 1e-6f);  // denormal halves too
    if (n > 3) small[1] = 65519.9f, small[2] = 65520.0f, small[3] = -HUGE_VALF;
    for (Isa isa : fast_isas()) {
      INFO(isa_name(isa) << ", n " << n);
      Floats want = x, got = x;
      AttentionQuery a{nullptr, 1, 0.0f, 1.7f, want.data()}, b{nullptr, 1, 0.0f, 1.7f, got.data()};
      attention_finish(Isa::kScalar, a, static_cast<int>(n));
      attention_finish(isa, b, static_cast<int>(n));
      REQUIRE(got == want);
      REQUIRE(got.guard_is_intact());
      for (const Floats* from : {&x, const_cast<const Floats*>(&small)}) {
        std::vector<uint16_t> want_half(static_cast<size_t>(n) + 8, 7), got_half = want_half;
        store_kv(Isa::kScalar, from->data(), n, KvType::kF16, want_half.data());
        store_kv(isa, from->data(), n, KvType::kF16, got_half.data());
        REQUIRE(got_half == want_half);
        std::vector<float> copy(static_cast<size_t>(n));
        store_kv(isa, from->data(), n, KvType::kF32, copy.data());
        REQUIRE(std::memcmp(copy.data(), from->data(), static_cast<size_t>(n) * sizeof(float)) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace foretoken
