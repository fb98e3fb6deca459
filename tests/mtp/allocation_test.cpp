#include <fmt/format.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "mtp/scheduler.h"
#include "tests/engine/model/random_model.h"

// After start nothing allocates in a step: operator new of this program counts, on all threads. The sanitizers bring
// their own.

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
std::atomic<int64_t> num_allocations{0};
}

void* operator new(size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace foretoken {
namespace {

struct Setting {
  const char* name;
  bool mtp, ngram, controller;
  MoeVerify verify = MoeVerify::kGrouped;
  SamplingOptions sampling = {};
};

TEST_CASE("after a warm-up no step allocates, of one text and of several", "[allocation]") {
  const Model model = Model::load(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf", {});
  SamplingOptions sampled;
  sampled.temperature = 0.8f;
  sampled.top_k = 40;
  sampled.top_p = 0.9f;
  constexpr int kDrafts = 3;
  for (const Setting& setting :
       {Setting{"off", false, false, true}, Setting{"fixed", true, false, false},
        Setting{"controlled", true, false, true}, Setting{"ngram", false, true, true},
        Setting{"ngram, then MTP", true, true, false}, Setting{"per token", true, false, false, MoeVerify::kPerToken},
        Setting{"sampled", true, false, false, MoeVerify::kGrouped, sampled}}) {
    for (const int num_texts : {1, 3}) {
      INFO(fmt::format("{}, {} texts", setting.name, num_texts));
      const bool drafts = setting.mtp || setting.ngram;
      SessionOptions o;
      o.ctx_size = 1024;
      o.parallel = num_texts;
      o.with_mtp = setting.mtp;
      o.max_window = drafts ? kDrafts + 1 : 1;
      o.moe_verify = setting.verify;
      o.threads = 1;  // others take their scratch when they first come to a kind of work, whenever that is
      Engine engine(model, o);
      SchedulerOptions options;
      options.generator = {setting.mtp, drafts ? kDrafts : 0, setting.controller, kAutoDraftVocab, setting.ngram};
      Scheduler scheduler(engine, options);
      for (int i = 0; i < num_texts; ++i) {
        GenerationOptions text;
        text.max_new_tokens = 900;
        text.max_drafts = drafts ? kDrafts : 0;
        text.sampling = setting.sampling;
        text.ignore_eos = true;
        (void)scheduler.add(test::random_ids(20 + i, model.config().vocab_size, static_cast<uint64_t>(i)), text);
      }
      for (int i = 0; i < 60; ++i) REQUIRE(scheduler.step());
      // With a page boundary of each text among them.
      const int64_t before = num_allocations;
      for (int i = 0; i < 150; ++i) (void)scheduler.step();
      const int64_t during = num_allocations - before;
      CHECK(during == 0);
      CHECK(scheduler.num_active() == num_texts);
    }
  }
}

}  // namespace
}  // namespace foretoken

#endif
