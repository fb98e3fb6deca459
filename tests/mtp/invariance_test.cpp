#include "tests/mtp/invariance_matrix.h"

#include <set>
#include <tuple>
#include <utility>

// The invariance matrix: the ids and every bit of every logit are the same for any number of drafts, either expert
// core, any number of threads, any instruction set, any cut of the prompt, repacked weights or not, whoever chooses the
// number of drafts and from whatever vocabulary, whoever else is in the passes, and after being saved, restored and
// copied.

namespace foretoken {
namespace {

using test::Axes;
using test::covering_settings;
using test::kCores;
using test::kWhole;
using test::Matrix;
using test::matrix_model;
using test::Neighbours;
using test::RandomModel;
using test::Setting;

// Sanitizers and debug builds run one case of 29 of the product (a prime, so that every value of every axis has its
// turn) and one of 7 of the settings that cover pairs.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr int kStride = 29, kCoveringStride = 7;
#else
constexpr int kStride = 1, kCoveringStride = 1;
#endif

// Says which columns of the matrix this machine could not fill.
void print_missing_isas() {
  for (Isa isa : compiled_isas()) {
    if (!isa_supported(isa)) WARN("not run: " << isa_name(isa) << ", this processor lacks it");
  }
}

// ---- the axes of each matrix ----

Axes axes_of_neighbours(bool has_mtp) {
  Axes axes;
  if (has_mtp) axes.k = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  axes.prompt_chunks = {1, 7, 64, kWhole};
  return axes;
}

Axes axes_of_storage(bool has_mtp) {
  Axes axes;
  if (has_mtp) axes.k = {0, 1, 3, 8};
  axes.prompt_chunks = {7, kWhole};
  axes.repack = {true, false};
  return axes;
}

Axes axes_of_shapes() {
  Axes axes;
  axes.k = {0, 2, 5};
  axes.prompt_chunks = {1, 7, kWhole};
  axes.repack = {true, false};
  return axes;
}

Axes axes_of_attention_splits(bool has_mtp) {
  Axes axes;
  if (has_mtp) axes.k = {0, 1, 3, 8};
  axes.prompt_chunks = {1, 100, kAttentionSplit, kWhole};
  return axes;
}

Axes axes_of_drafting() {
  Axes axes;
  axes.k = {1, 2, 3, 4, 5, 6, 7, 8};
  axes.threads = {1, 2};
  axes.isas = {best_isa()};
  axes.prompt_chunks = {7};
  axes.controller = {false, true};
  axes.draft_vocab = {0, 1, 100, 320, 32768};
  axes.own_drafts = {false, true};
  return axes;
}

// Pairs of values of two axes, and how many of them meet in these settings.
std::pair<int, int> count_pairs(const Axes& axes, const std::vector<Setting>& settings) {
  int wanted = 0;
  std::set<std::tuple<size_t, size_t, size_t, size_t>> met;
  size_t a = 0;
  axes.for_each([&](const auto& values_a, auto field_a) {
    size_t b = 0;
    axes.for_each([&](const auto& values_b, auto field_b) {
      if (b > a) {
        wanted += static_cast<int>(values_a.size() * values_b.size());
        for (size_t i = 0; i < values_a.size(); ++i) {
          for (size_t j = 0; j < values_b.size(); ++j) {
            for (const Setting& setting : settings) {
              if (setting.*field_a == values_a[i] && setting.*field_b == values_b[j]) met.insert({a, i, b, j});
            }
          }
        }
      }
      ++b;
    });
    ++a;
  });
  return {wanted, static_cast<int>(met.size())};
}

TEST_CASE("In each matrix every two values of two axes meet") {
  std::vector<Axes> all = {axes_of_shapes(), axes_of_drafting()};
  for (const bool has_mtp : {true, false}) {
    for (Axes axes : {axes_of_neighbours(has_mtp), axes_of_storage(has_mtp), axes_of_attention_splits(has_mtp)})
      all.push_back(axes);
  }
  for (Axes axes : all) {
    // Of this machine, and of one that has them all.
    for (const std::vector<Isa>& isas : {axes.isas, compiled_isas()}) {
      axes.isas = isas;
      std::vector<Setting> settings = covering_settings(axes);
      const auto [wanted, met] = count_pairs(axes, settings);
      CHECK(met == wanted);
      // The count sees what it is there for: each setting was taken for a pair that the ones before it do not have.
      std::vector<int> sizes = axes.sizes();
      std::sort(sizes.rbegin(), sizes.rend());
      CHECK(static_cast<int>(settings.size()) >= sizes[0] * sizes[1]);
      CHECK(static_cast<int>(settings.size()) <= 3 * sizes[0] * sizes[1]);
      settings.pop_back();
      CHECK(count_pairs(axes, settings).second < wanted);
    }
  }
}

// ---- the matrices ----

TEST_CASE("invariance matrix: drafts x expert core x threads x instruction set x prompt chunk x sampling") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  Matrix matrix(matrix_model(architecture), /*prompt_tokens=*/66, /*new_tokens=*/20);
  print_missing_isas();
  int index = 0;
  for (int k = 0; k <= (matrix.has_mtp() ? kMaxDraft : 0); ++k) {
    for (MoeVerify core : kCores) {
      for (int threads : {1, 2, 3}) {
        for (Isa isa : supported_isas()) {
          for (int chunk : {1, 7, 64, kWhole}) {
            for (bool sampled : {false, true}) {
              if (index++ % kStride == 0) matrix.check({k, core, threads, isa, chunk, sampled});
            }
          }
        }
      }
    }
  }
  matrix.finish(architecture);
}

TEST_CASE("invariance among neighbours, and of texts that are saved, restored and copied") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
  Matrix matrix(matrix_model(architecture), /*prompt_tokens=*/66, /*new_tokens=*/20);
  matrix.check_all(covering_settings(axes_of_neighbours(matrix.has_mtp())), kCoveringStride);
  matrix.finish(architecture);
}

TEST_CASE("invariance without repacking, and with keys and values of 32 bits") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe", "qwen35");
  const KvType kv_type = GENERATE(KvType::kF16, KvType::kF32);
  Matrix matrix(matrix_model(architecture), /*prompt_tokens=*/66, /*new_tokens=*/20, kv_type);
  matrix.check_all(covering_settings(axes_of_storage(matrix.has_mtp())), kCoveringStride);
  matrix.finish(architecture);
}

TEST_CASE("invariance over every weight type at once, shapes that do not interleave, tied head and fused gate and up") {
  RandomModel spec = matrix_model("qwen35moe");
  SECTION("every type") {
    spec.hidden_dim = 256;
    spec.types.clear();
    for (const WeightTypeInfo& info : all_weight_types()) spec.types.push_back(info.type);
  }
  SECTION("odd shapes") {
    spec.take_odd_shapes();
  }
  SECTION("tied and fused, with scales") {
    spec.tied_head = true;
    spec.fused_gate_up = true;
    spec.scales = true;
  }
  SECTION("NVFP4 and Q2_0, with scales") {
    spec.types = {WeightType::kNVFP4, WeightType::kQ2_0, WeightType::kNVFP4};
    spec.scales = true;
  }
  SECTION("one expert a token, one value head a key head, three delta nets to one attention") {
    spec.experts_per_token = 1;
    spec.num_key_heads = spec.num_value_heads;
    spec.num_layers = spec.attention_interval = 4;
  }
  Matrix matrix(spec, /*prompt_tokens=*/40, /*new_tokens=*/16);
  matrix.check_all(covering_settings(axes_of_shapes()), kCoveringStride);
  matrix.finish("special shapes");
}

TEST_CASE("invariance over contexts that cross attention splits") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  RandomModel spec = matrix_model(architecture);
  spec.hidden_dim = 64;
  spec.expert_dim = spec.shared_dim = 64;
  // The prompt ends before a split's end, the new tokens begin and end windows on both sides of it.
  Matrix matrix(spec, /*prompt_tokens=*/2 * kAttentionSplit - 13, /*new_tokens=*/26);
  matrix.check_all(covering_settings(axes_of_attention_splits(matrix.has_mtp())), kCoveringStride);
  matrix.finish(architecture);
}

TEST_CASE("the controller and the draft vocabulary change speed alone") {
  Matrix matrix(matrix_model("qwen35moe"), /*prompt_tokens=*/20, /*new_tokens=*/80);
  matrix.check_all(covering_settings(axes_of_drafting()), kCoveringStride);
  matrix.finish("controller", /*by_the_clock=*/true);
}

}  // namespace
}  // namespace foretoken
