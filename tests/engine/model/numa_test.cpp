#include "kernels/threads/numa.h"

#include <catch2/catch.hpp>
#include <cstring>

#include "engine/model/model.h"
#include "engine/model/weights.h"
#include "engine/session.h"
#include "kernels/formats/matrix.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"

// Nodes of memory move weights and work about, never a bit. Only fake nodes here: of this machine's processors, and of
// ones that it lacks.

namespace foretoken {
namespace {

using test::random_ids;
using test::RandomModel;
using test::TempFolder;

NumaNodes made_of(const std::vector<int>& counts) {
  const std::vector<int> own = allowed_cpus();
  std::vector<NumaNode> nodes;
  size_t next = 0;
  for (const int count : counts) {
    NumaNode node{static_cast<int>(nodes.size()), {}};
    for (int i = 0; i < count; ++i, ++next)
      node.cpus.push_back(next < own.size() ? own[next] : 100000 + static_cast<int>(next));
    nodes.push_back(node);
  }
  return NumaNodes(nodes);
}

Model load(const std::string& path, const NumaNodes& nodes) {
  LoadOptions options;
  options.nodes = nodes;
  return Model::load(path, options);
}

// Logits of the trunk and of drafts from some groups of ids, which come in three steps.
std::vector<float> logits(const Model& model, const NumaNodes& nodes, int threads, MoeVerify verify) {
  SessionOptions options;
  options.ctx_size = 16;
  options.prompt_chunk = 5;
  options.max_window = 5;
  options.with_mtp = true;
  options.threads = threads;
  options.nodes = nodes;
  options.moe_verify = verify;
  Session session(model, options);
  const int64_t vocab = model.config().vocab_size;
  const std::vector<TokenId> ids = random_ids(5, vocab, 3);
  session.forward(ids);
  session.compute_logits(0, 5);
  std::vector<float> all;
  const std::vector<float> zeros(static_cast<size_t>(model.config().hidden_dim), 0.0f);
  std::vector<const float*> hidden{zeros.data()};
  for (int r = 0; r < 5; ++r) {
    all.insert(all.end(), session.logits(r), session.logits(r) + vocab);
    if (r < 4) hidden.push_back(session.hidden(r));
  }
  session.commit(5);
  const auto draft = [&] {
    session.mtp_forward(ids, 0, hidden);
    session.mtp_compute_logits(0, 5);
    for (int r = 0; r < 5; ++r) all.insert(all.end(), session.mtp_logits(r), session.mtp_logits(r) + vocab);
  };
  draft();
  const std::vector<int32_t> groups{0, 1, 2, 5, 8, 9, 17};
  session.set_draft_groups(groups);
  draft();
  for (const int32_t group : {19, 3, 12}) session.add_draft_group(group);
  draft();
  return all;
}

TEST_CASE("Weights and logits have the same bits over any nodes", "[numa]") {
  RandomModel spec;
  spec.types = {WeightType::kQ4_K, WeightType::kQ6_K, WeightType::kQ8_0, WeightType::kF16, WeightType::kF32};
  spec.fused_gate_up = GENERATE(false, true);
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  spec.write(path);
  const NumaNodes one;
  const Model plain = load(path, one);
  const std::vector<float> want = logits(plain, one, 1, MoeVerify::kGrouped);
  for (const std::vector<int>& counts : std::vector<std::vector<int>>{{1, 1}, {1, 3}, {2, 2, 2, 2}, {5, 1, 3}}) {
    const NumaNodes nodes = made_of(counts);
    const Model model = load(path, nodes);
    CAPTURE(counts, spec.fused_gate_up);
    CHECK(model.weights().matrix_bytes == plain.weights().matrix_bytes);
    REQUIRE(model.weights().buffers.size() == plain.weights().buffers.size());
    for (size_t i = 0; i < model.weights().buffers.size(); ++i) {
      const AlignedBuffer &a = model.weights().buffers[i], &b = plain.weights().buffers[i];
      REQUIRE(a.size_bytes() == b.size_bytes());
      CHECK(std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
    }
    for (const int threads : {1, 2, 3, 5}) {
      for (const MoeVerify verify : {MoeVerify::kGrouped, MoeVerify::kPerToken}) {
        CAPTURE(threads);
        const std::vector<float> got = logits(model, nodes, threads, verify);
        REQUIRE(got.size() == want.size());
        CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
      }
    }
    // A session over other nodes than the weights'.
    CHECK(logits(plain, nodes, 3, MoeVerify::kGrouped) == want);
    CHECK(logits(model, one, 3, MoeVerify::kGrouped) == want);
  }
}

TEST_CASE("A head longer than its unit is shared out in several", "[numa]") {
  RandomModel spec;
  spec.hidden_dim = 64, spec.num_experts = 2, spec.experts_per_token = 1, spec.expert_dim = 32, spec.shared_dim = 32;
  spec.num_layers = 1, spec.attention_interval = 1, spec.head_dim = 32;
  spec.vocab_size = 2 * kHeadUnitRows + 40;
  spec.types = {WeightType::kQ8_0};
  const TempFolder folder;
  const std::string path = folder.file("model.gguf");
  spec.write(path);
  const NumaNodes one, nodes = made_of({1, 1, 1});
  const std::vector<float> want = logits(load(path, one), one, 1, MoeVerify::kGrouped);
  CHECK(logits(load(path, nodes), nodes, 3, MoeVerify::kGrouped) == want);
}

}  // namespace
}  // namespace foretoken
