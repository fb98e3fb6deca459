#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "kernels/select/softmax.h"
#include "tests/engine/model/reference.h"
#include "tests/mtp/transcript.h"

// The demonstration model that the project ships: a small trained qwen35moe with an MTP layer that is right more often
// than not.

namespace foretoken {
namespace {

using test::Activations;
using test::ReferenceModel;
using test::ReferenceResult;
using test::relative_error;
using test::transcribe;
using test::Transcript;

const char* const kPath = FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf";

const Model& demo_model() {
  static const Model model = Model::load(kPath, {});
  return model;
}

const std::vector<std::string> kPrompts = {
    "def read_lines(path):\n",
    "import os\nimport sys\n\nclass Parser:\n    def __init__(self, ",
    "    def close(self):\n        if self._",
    "for name in sorted(names):\n    if name",
    "class Cache:\n    \"\"\"Keep the last results",
};

TEST_CASE("the demonstration model agrees with the reference") {
  const std::vector<TokenId> ids = demo_model().tokenizer().encode(kPrompts[1]);
  REQUIRE(ids == std::vector<TokenId>{728, 594, 198, 728, 718, 293, 491, 539, 1594, 269, 258, 337, 463, 592, 517, 272,
                                      11, 220});
  SessionOptions options;
  options.kv_type = KvType::kF32;
  options.with_mtp = true;
  Session session(demo_model(), options);
  const ReferenceResult want = ReferenceModel(kPath, {.activations = Activations::kInt8}).forward(ids);
  session.forward(ids);
  const int rows = static_cast<int>(ids.size());
  const auto vocab_size = static_cast<size_t>(demo_model().config().vocab_size);
  const std::vector<float> zeros(static_cast<size_t>(demo_model().config().hidden_dim), 0.0f);
  std::vector<const float*> hidden{zeros.data()};
  for (int r = 0; r + 1 < rows; ++r) hidden.push_back(session.hidden(r));
  // A trained model's rows come near a rounding edge of the 8-bit grid somewhere in 18 positions (see
  // agreement_test.cpp): one step of one value moves the logits by 1e-3 at most.
  for (int r = 0; r < rows; ++r) {
    session.compute_logits(r, r + 1);
    INFO("position " << r);
    CHECK(relative_error(std::span(session.logits(r), vocab_size), want.logits_row(r)) < 1e-3);
  }
  session.mtp_forward(ids, 0, hidden);
  for (int r = 0; r < rows; ++r) {
    session.mtp_compute_logits(r, r + 1);
    INFO("MTP layer, position " << r);
    CHECK(relative_error(std::span(session.mtp_logits(r), vocab_size), want.mtp_logits_row(r)) < 1e-3);
  }
}

DecodeOptions decode_options(int k, bool sampled) {
  DecodeOptions options;
  options.max_new_tokens = 100;
  options.mtp = k;
  options.controller = false;
  options.draft_vocab = 1024;
  options.ignore_eos = true;
  if (sampled) {
    options.sampling.temperature = 0.7f;
    options.sampling.top_p = 0.9f;
    options.sampling.seed = 3;
  }
  return options;
}

TEST_CASE("the demonstration model writes the same text with drafts as without, and accepts many") {
  for (const bool sampled : {false, true}) {
    int64_t drafted = 0, accepted = 0;
    for (const std::string& text : kPrompts) {
      const std::vector<TokenId> prompt = demo_model().tokenizer().encode(text);
      const Transcript plain = transcribe(demo_model(), {}, prompt, decode_options(0, sampled));
      REQUIRE(plain.result.ids.size() == 100);
      for (int k : {1, 2, 3, 4, 8}) {
        INFO((sampled ? "sampled" : "greedy") << ", k " << k << ", prompt " << text);
        const Transcript got = transcribe(demo_model(), {}, prompt, decode_options(k, sampled));
        CHECK(got.result.ids == plain.result.ids);
        CHECK(got.first_difference(plain) == -1);
        CHECK(got.in_order);
        if (k > 1) continue;
        drafted += got.result.statistics.drafted;
        accepted += got.result.statistics.accepted;
      }
    }
    // Another engine accepts 81 of 100 first drafts of this file's greedy text; 60 leave room for other prompts.
    INFO(accepted << " of " << drafted << " accepted");
    CHECK(accepted * 100 > drafted * (sampled ? 40 : 60));
  }
}

/// The MTP layer over a known text: true tokens, true hiddens, in one pass.
class KnownText {
 public:
  explicit KnownText(std::vector<TokenId> ids) : ids_(std::move(ids)), session_(demo_model(), options()) {
    session_.forward(ids_);
    hidden_.push_back(zeros_.data());
    for (size_t r = 0; r + 1 < ids_.size(); ++r) hidden_.push_back(session_.hidden(static_cast<int>(r)));
  }

  /// The `count` drafts for positions [position, position + count): the first from the row before it, each further one
  /// from the draft before it and that row's own output.
  std::vector<TokenId> drafts(size_t position, size_t count) {
    const std::span<const TokenId> known(ids_.data(), position);
    session_.mtp_forward(known, 0, std::span(hidden_).first(position));
    std::vector<TokenId> drafts{best(static_cast<int>(position) - 1)};
    const float* hidden = session_.mtp_hidden(static_cast<int>(position) - 1);
    while (drafts.size() < count) {
      session_.mtp_forward(std::span(&drafts.back(), 1), static_cast<int64_t>(position + drafts.size()) - 1,
                           std::span(&hidden, 1));
      hidden = session_.mtp_hidden(0);
      drafts.push_back(best(0));
    }
    return drafts;
  }

 private:
  static SessionOptions options() {
    SessionOptions o;
    o.with_mtp = true;
    return o;
  }
  TokenId best(int row) {
    session_.mtp_compute_logits(row, row + 1);
    return static_cast<TokenId>(argmax(best_isa(), session_.mtp_logits(row), demo_model().config().vocab_size));
  }

  const std::vector<TokenId> ids_;
  Session session_;
  const std::vector<float> zeros_ = std::vector<float>(static_cast<size_t>(demo_model().config().hidden_dim), 0.0f);
  std::vector<const float*> hidden_;
};

// What the MTP layer proposes is a function of the true tokens and hiddens, however they reached it: in prompt chunks,
// in refreshed windows, with only the last row computed in full. So which drafts of a text are accepted can be said
// without a decode cycle.
TEST_CASE("drafts are the MTP layer's argmax over true hiddens, then over its own") {
  const std::vector<TokenId> prompt = demo_model().tokenizer().encode(kPrompts[1]);
  const std::vector<TokenId> text = transcribe(demo_model(), {}, prompt, decode_options(0, false)).result.ids;
  std::vector<TokenId> all = prompt;
  all.insert(all.end(), text.begin(), text.end());
  KnownText known(all);
  for (const size_t k : {1, 2, 4, 8}) {
    std::vector<int64_t> drafted(kMaxDraft, 0), accepted(kMaxDraft, 0);
    // A window drafts behind the last known token, but leaves room for its last choice.
    for (size_t position = prompt.size() + 1; position < all.size();) {
      size_t right = 0;
      const size_t count = std::min(k, all.size() - position - 1);
      if (count > 0) {
        const std::vector<TokenId> drafts = known.drafts(position, count);
        while (right < count && drafts[right] == all[position + right]) ++accepted[right++];
        for (size_t i = 0; i < count; ++i) ++drafted[i];
      }
      position += right + 1;
    }
    REQUIRE(accepted[0] > 0);
    REQUIRE(accepted[0] < drafted[0]);
    for (const int chunk : {3, 256}) {
      INFO("k " << k << ", prompt chunks of " << chunk);
      SessionOptions session_options;
      session_options.prompt_chunk = chunk;
      DecodeOptions decode = decode_options(static_cast<int>(k), false);
      decode.draft_vocab = 0;
      const Transcript got = transcribe(demo_model(), session_options, prompt, decode);
      CHECK(got.result.statistics.drafted_by_position == drafted);
      CHECK(got.result.statistics.accepted_by_position == accepted);
    }
  }
}

}  // namespace
}  // namespace foretoken
