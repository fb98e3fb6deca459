#include <algorithm>
#include <catch2/catch.hpp>

#include "kernels/base/error.h"
#include "mtp/accept.h"
#include "tests/engine/gguf/gguf_edit.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/transcript.h"

namespace foretoken {
namespace {

using test::GgufEdit;
using test::random_ids;
using test::RandomModel;
using test::TempFolder;
using test::transcribe;
using test::Transcript;

TEST_CASE("accept takes the longest prefix of drafts that equal the target's choices") {
  struct Row {
    std::vector<TokenId> drafts, choices;
    int num_accepted;
    TokenId next;
  };
  const std::vector<Row> table = {
      // No draft: the choice after the last known token is the bonus.
      {{}, {7}, 0, 7},
      // One draft: wrong, corrected by 8; right, and 9 follows.
      {{7}, {8, 9}, 0, 8},
      {{7}, {7, 9}, 1, 9},
      // The first wrong draft ends it, whatever comes after.
      {{1, 2, 3}, {1, 2, 3, 4}, 3, 4},
      {{1, 2, 3}, {1, 2, 9, 4}, 2, 9},
      {{1, 2, 3}, {1, 9, 3, 4}, 1, 9},
      {{1, 2, 3}, {9, 2, 3, 4}, 0, 9},
      // All wrong: choices after a wrong draft stand on a wrong token and are worth nothing.
      {{1, 2, 3}, {4, 5, 6, 7}, 0, 4},
      // Choices that equal the next draft, not this one: no alignment is tried.
      {{1, 2, 3}, {2, 3, 4, 5}, 0, 2},
      // Repetitions.
      {{5, 5, 5, 5}, {5, 5, 5, 5, 5}, 4, 5},
      {{5, 5, 5, 5}, {5, 5, 6, 5, 5}, 2, 6},
      // Id 0 is a token like any other.
      {{0, 0}, {0, 0, 0}, 2, 0},
      {{0, 1}, {0, 0, 1}, 1, 0},
      // The longest window.
      {{1, 2, 3, 4, 5, 6, 7, 8}, {1, 2, 3, 4, 5, 6, 7, 8, 9}, 8, 9},
      {{1, 2, 3, 4, 5, 6, 7, 8}, {1, 2, 3, 4, 5, 6, 7, 0, 9}, 7, 0},
  };
  for (const Row& row : table) {
    const Acceptance got = accept(row.drafts, row.choices);
    INFO("drafts " << Catch::Detail::stringify(row.drafts) << ", choices " << Catch::Detail::stringify(row.choices));
    CHECK(got.num_accepted == row.num_accepted);
    CHECK(got.next == row.next);
  }
}

RandomModel small_model() {
  RandomModel spec;
  spec.hidden_dim = 64;
  spec.head_dim = 16;
  spec.rope_dim = 8;
  spec.state_size = 16;
  spec.num_experts = 4;
  spec.expert_dim = spec.shared_dim = 32;
  return spec;
}

constexpr int64_t kPromptTokens = 11, kNewTokens = 24;

/// A model whose continuation of a prompt is known from plain decoding.
struct Known {
  explicit Known(const GgufEdit& file) {
    file.write(folder.file("model.gguf"));
    model.emplace(Model::load(folder.file("model.gguf"), {}));
    session.threads = 1;
    plain.max_new_tokens = kNewTokens;
    plain.ignore_eos = true;
    prompt = random_ids(kPromptTokens, 256, 42);
    reference = transcribe(*model, session, prompt, plain);
    REQUIRE(static_cast<int64_t>(reference.result.ids.size()) == kNewTokens);
    continuation = reference.result.ids;
  }

  /// Decoding with drafts that are right with probability `acceptance`.
  DecodeOptions drafting(int k, double acceptance) const {
    DecodeOptions options = plain;
    options.mtp = k;
    options.controller = false;
    options.forced_continuation = continuation;
    options.forced_acceptance = acceptance;
    return options;
  }

  TempFolder folder;
  std::optional<Model> model;
  SessionOptions session;
  DecodeOptions plain;
  std::vector<TokenId> prompt, continuation;
  Transcript reference;
};

std::vector<TokenId> first_ids(const std::vector<TokenId>& ids, int64_t count) {
  return {ids.begin(), ids.begin() + count};
}

// The logits of a generation that ended earlier are the beginning of those of one that went on.
void check_is_beginning(const Transcript& got, const Transcript& whole, int64_t num_ids) {
  CHECK(got.result.ids == first_ids(whole.result.ids, num_ids));
  CHECK(got.in_order);
  REQUIRE(got.logits.size() <= whole.logits.size());
  const int64_t rows = static_cast<int64_t>(got.logits.size()) / got.vocab_size;
  const int64_t difference = got.first_difference(whole);
  CHECK((difference == -1 || difference == rows));
}

TEST_CASE("forced acceptance accepts every draft, none, or those the coin says, and never changes the text") {
  const Known known(small_model().build());
  for (int k = 1; k <= kMaxDraft; ++k) {
    for (double acceptance : {0.0, 0.5, 1.0}) {
      INFO("k " << k << ", acceptance " << acceptance);
      const Transcript got = transcribe(*known.model, known.session, known.prompt, known.drafting(k, acceptance));
      CHECK(got.result.ids == known.continuation);
      CHECK(got.first_difference(known.reference) == -1);
      CHECK(got.in_order);
      const DecodeStatistics& s = got.result.statistics;
      if (acceptance == 0.0) CHECK(s.accepted == 0);
      if (acceptance == 1.0) CHECK(s.accepted == s.drafted);
      if (acceptance == 0.5) CHECK((s.accepted > 0 && s.accepted < s.drafted));
      // One token comes from the prompt's pass, each window gives its accepted drafts and one more; the last window
      // drafts no further than asked.
      CHECK(s.new_tokens == kNewTokens);
      CHECK(s.prompt_tokens == kPromptTokens);
      CHECK(s.verified_tokens == kNewTokens - 1);
      CHECK(s.verified_tokens == s.verify_passes + s.accepted);
      CHECK(s.drafted <= s.verify_passes * k);
      if (acceptance == 1.0) CHECK(s.verify_passes == (kNewTokens - 1 + k) / (k + 1));
      int64_t windows = 0, drafted = 0, by_position = 0, accepted = 0;
      for (size_t i = 0; i < s.windows_by_k.size(); ++i) {
        windows += s.windows_by_k[i];
        drafted += s.windows_by_k[i] * static_cast<int64_t>(i);
      }
      for (size_t i = 0; i < s.drafted_by_position.size(); ++i) {
        by_position += s.drafted_by_position[i];
        accepted += s.accepted_by_position[i];
        CHECK(s.accepted_by_position[i] <= s.drafted_by_position[i]);
        if (i > 0) CHECK(s.accepted_by_position[i] <= s.accepted_by_position[i - 1]);
      }
      CHECK(windows == s.verify_passes);
      CHECK(drafted == s.drafted);
      CHECK(by_position == s.drafted);
      CHECK(accepted == s.accepted);
    }
  }
}

TEST_CASE("a token that ends the generation ends it inside a window as outside") {
  const Known known(small_model().build());
  for (const size_t at : {size_t{0}, size_t{1}, size_t{2}, size_t{3}, size_t{5}, size_t{8}}) {
    const TokenId end = known.continuation[at];
    const auto first =
        std::find(known.continuation.begin(), known.continuation.end(), end) - known.continuation.begin();
    GgufEdit file = small_model().build();
    file.set_uint32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(end));
    const Known ending(file);
    REQUIRE(ending.continuation == known.continuation);  // ignore_eos goes past it
    for (int k = 0; k <= kMaxDraft; ++k) {
      INFO("ends at new token " << first << ", k " << k);
      DecodeOptions options = ending.drafting(k, 1.0);
      options.ignore_eos = false;
      std::vector<TokenId> heard;
      options.on_token = [&](TokenId id) {
        heard.push_back(id);
        return true;
      };
      const Transcript got = transcribe(*ending.model, ending.session, ending.prompt, options);
      CHECK(got.result.stop_reason == StopReason::kEndOfGeneration);
      check_is_beginning(got, ending.reference, first);
      CHECK(heard == got.result.ids);
      // Nobody hears of logits behind the end: those of the last token's own choice are the last.
      CHECK(static_cast<int64_t>(got.logits.size()) / got.vocab_size == kPromptTokens + first);
    }
  }
}

TEST_CASE(
    "the context's end, the number of tokens asked for and a callback end a generation inside a window as outside") {
  const Known known(small_model().build());
  for (int k = 0; k <= kMaxDraft; ++k) {
    for (int64_t room = 1; room <= 14; ++room) {
      INFO("k " << k << ", " << room << " tokens");
      {
        SessionOptions session = known.session;
        session.ctx_size = kPromptTokens + room;
        const Transcript got = transcribe(*known.model, session, known.prompt, known.drafting(k, 1.0));
        CHECK(got.result.stop_reason == StopReason::kContextFull);
        check_is_beginning(got, known.reference, room);
      }
      {
        DecodeOptions options = known.drafting(k, 1.0);
        options.max_new_tokens = room;
        const Transcript got = transcribe(*known.model, known.session, known.prompt, options);
        CHECK(got.result.stop_reason == StopReason::kLength);
        check_is_beginning(got, known.reference, room);
      }
      {
        DecodeOptions options = known.drafting(k, 1.0);
        int64_t heard = 0;
        options.on_token = [&](TokenId) { return ++heard < room; };
        const Transcript got = transcribe(*known.model, known.session, known.prompt, options);
        CHECK(got.result.stop_reason == StopReason::kCallback);
        check_is_beginning(got, known.reference, room);
      }
    }
  }
}

TEST_CASE("an interrupt ends the generation after the window that runs") {
  const Known known(small_model().build());
  for (int k : {0, 3}) {
    std::atomic<bool> stop{false};
    DecodeOptions options = known.drafting(k, 1.0);
    options.stop = &stop;
    int heard = 0;
    options.on_token = [&](TokenId) {
      if (++heard == 3) stop = true;
      return true;
    };
    const Transcript got = transcribe(*known.model, known.session, known.prompt, options);
    INFO("k " << k);
    CHECK(got.result.stop_reason == StopReason::kInterrupted);
    // k 3: the first token, then a window of four.
    check_is_beginning(got, known.reference, k == 0 ? 3 : 5);
  }
}

TEST_CASE("an interrupt ends the reading of a prompt after the chunk that runs") {
  const Known known(small_model().build());
  SessionOptions session = known.session;
  session.prompt_chunk = 2;
  REQUIRE(known.prompt.size() > 4);
  std::atomic<bool> stop{false};
  DecodeOptions options = known.drafting(0, 1.0);
  options.stop = &stop;
  options.all_prompt_logits = true;
  options.on_logits = [&](int64_t position, const float*) { stop = position >= 2; };
  Session running(*known.model, session);
  const DecodeResult result = decode(running, known.prompt, options);
  CHECK(result.stop_reason == StopReason::kInterrupted);
  CHECK(result.ids.empty());
  CHECK(result.statistics.prompt_tokens == 4);
}

TEST_CASE("a session serves one generation after the other as if it were new") {
  const Known known(small_model().build());
  SessionOptions options = known.session;
  options.with_mtp = true;
  options.max_window = kMaxDraft + 1;
  Session session(*known.model, options);
  for (int k : {3, 0, 8, 1, 3}) {
    INFO("k " << k);
    CHECK(decode(session, known.prompt, known.drafting(k, 0.5)).ids == known.continuation);
    (void)decode(session, random_ids(30, 256, 5), known.drafting(2, 0.5));  // something else in between
  }
}

TEST_CASE("a prompt that fills the context, and drafts from a model that has no MTP layer, are refused in one line") {
  const Known known(small_model().build());
  const auto error_of = [](auto&& run) {
    try {
      run();
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  SessionOptions options = known.session;
  options.ctx_size = kPromptTokens;
  Session session(*known.model, options);
  const std::string full = error_of([&] { (void)decode(session, known.prompt, known.plain); });
  INFO(full);
  CHECK(full.find("11") != std::string::npos);
  CHECK(full.find("--ctx-size") != std::string::npos);
  CHECK(full.find('\n') == std::string::npos);

  RandomModel spec = small_model();
  spec.architecture = "qwen3moe";
  const TempFolder folder;
  spec.write(folder.file("model.gguf"));
  const Model without = Model::load(folder.file("model.gguf"), {});
  check_mtp(without, 0);
  check_mtp(*known.model, kMaxDraft);
  const std::string none = error_of([&] { check_mtp(without, 2); });
  INFO(none);
  CHECK(none.find("no MTP layer") != std::string::npos);
  CHECK(none.find(folder.file("model.gguf")) != std::string::npos);
  CHECK(none.find('\n') == std::string::npos);
}

}  // namespace
}  // namespace foretoken
