#include "tests/mtp/invariance_matrix.h"

// The invariance matrix: the ids and every bit of every logit are the same for any number of drafts, either expert
// core, any number of threads, any instruction set, any cut of the prompt, repacked weights or not, whoever chooses the
// number of drafts and from whatever vocabulary.

namespace foretoken {
namespace {

using test::kCores;
using test::kWhole;
using test::Matrix;
using test::matrix_model;
using test::RandomModel;
using test::Setting;

// Sanitizers and debug builds run one case of 29 (a prime, so that every value of every axis has its turn).
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr int kStride = 29;
#else
constexpr int kStride = 1;
#endif

// Says which columns of the matrix this machine could not fill.
void print_missing_isas() {
  for (Isa isa : compiled_isas()) {
    if (!isa_supported(isa)) WARN("not run: " << isa_name(isa) << ", this processor lacks it");
  }
}

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

TEST_CASE("invariance without repacking, and with keys and values of 32 bits") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe", "qwen35");
  const KvType kv_type = GENERATE(KvType::kF16, KvType::kF32);
  Matrix matrix(matrix_model(architecture), /*prompt_tokens=*/66, /*new_tokens=*/20, kv_type);
  int index = 0;
  for (int k : {0, 1, 3, 8}) {
    if (k > 0 && !matrix.has_mtp()) break;
    for (Isa isa : supported_isas()) {
      for (bool repack : {false, true}) {
        for (int chunk : {7, kWhole}) {
          for (bool sampled : {false, true}) {
            const MoeVerify core = kCores[static_cast<size_t>(index) % 2];
            const int threads = 1 + index % 3;
            if (index++ % ((kStride + 3) / 4) == 0) matrix.check({k, core, threads, isa, chunk, sampled}, repack);
          }
        }
      }
    }
  }
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
    spec.hidden_dim = 96;
    spec.expert_dim = 40;
    spec.shared_dim = 72;
    spec.vocab_size = 331;
    spec.num_experts = 5;
    spec.experts_per_token = 3;
  }
  SECTION("tied and fused") {
    spec.tied_head = true;
    spec.fused_gate_up = true;
  }
  SECTION("one expert a token, one value head a key head, three delta nets to one attention") {
    spec.experts_per_token = 1;
    spec.num_key_heads = spec.num_value_heads;
    spec.num_layers = spec.attention_interval = 4;
  }
  Matrix matrix(spec, /*prompt_tokens=*/40, /*new_tokens=*/16);
  int index = 0;
  for (int k : {0, 2, 5}) {
    for (Isa isa : supported_isas()) {
      for (bool repack : {true, false}) {
        for (int chunk : {1, 7, kWhole}) {
          const MoeVerify core = kCores[static_cast<size_t>(index) % 2];
          const int threads = 1 + index % 3;
          if (index++ % ((kStride + 3) / 4) == 0) matrix.check({k, core, threads, isa, chunk, index % 2 == 0}, repack);
        }
      }
    }
  }
  matrix.finish("special shapes");
}

TEST_CASE("invariance over contexts that cross attention splits") {
  const std::string architecture = GENERATE("qwen35moe", "qwen3moe");
  RandomModel spec = matrix_model(architecture);
  spec.hidden_dim = 64;
  spec.expert_dim = spec.shared_dim = 64;
  // The prompt ends before a split's end, the new tokens begin and end windows on both sides of it.
  Matrix matrix(spec, /*prompt_tokens=*/2 * kAttentionSplit - 13, /*new_tokens=*/26);
  int index = 0;
  for (int k : {0, 1, 3, 8}) {
    if (k > 0 && !matrix.has_mtp()) break;
    for (int threads : {1, 2, 3}) {
      for (Isa isa : supported_isas()) {
        for (int chunk : {1, 100, kAttentionSplit, kWhole}) {
          const MoeVerify core = kCores[static_cast<size_t>(index) % 2];
          if (index++ % kStride == 0) matrix.check({k, core, threads, isa, chunk, index % 2 == 0});
        }
      }
    }
  }
  matrix.finish(architecture);
}

TEST_CASE("the controller and the draft vocabulary change speed alone") {
  Matrix matrix(matrix_model("qwen35moe"), /*prompt_tokens=*/20, /*new_tokens=*/80);
  int index = 0;
  for (int k = 1; k <= kMaxDraft; ++k) {
    for (bool controller : {false, true}) {
      for (int64_t draft_vocab : {0, 1, 100, 320, 32768}) {
        for (bool sampled : {false, true}) {
          Setting setting{k, kCores[static_cast<size_t>(index) % 2], 1 + index % 2, best_isa(), 7, sampled};
          setting.controller = controller;
          setting.draft_vocab = draft_vocab;
          setting.own_drafts = index % 3 == 0;
          if (index++ % ((kStride + 3) / 4) == 0) matrix.check(setting);
        }
      }
    }
  }
  matrix.finish("controller", /*by_the_clock=*/true);
}

}  // namespace
}  // namespace foretoken
