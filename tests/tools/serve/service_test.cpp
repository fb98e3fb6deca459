#include "tools/serve/service.h"

#include <catch2/catch.hpp>
#include <memory>
#include <random>
#include <thread>

#include "mtp/decoder.h"
#include "tests/tools/subprocess.h"
#include "tools/serve/answer_record.h"
#include "tools/serve/api_error.h"

namespace foretoken::test {
namespace {

struct Text {
  std::string prompt;
  int64_t tokens;
  SamplingOptions sampling;
};

std::vector<Text> texts() {
  SamplingOptions warm;
  warm.temperature = 0.9f;
  warm.seed = 5;
  const std::string stem = "import os\nimport sys\n\n\ndef read_lines(path):\n    return open(path).read()\n\n\n";
  return {{"def main():", 24, {}}, {"x", 60, warm}, {stem, 9, {}}, {stem + "class A:\n", 30, warm}, {"import", 1, {}}};
}

class Subject {
 public:
  Subject() : model_(Model::load(kDemoModel, {})) {
    for (const Text& text : texts()) {
      SessionOptions options;
      options.ctx_size = 512;
      Session session(model_, options);
      DecodeOptions decoding;
      decoding.max_new_tokens = text.tokens;
      decoding.sampling = text.sampling;
      alone_.push_back(decode(session, model_.tokenizer().encode(text.prompt), decoding).ids);
    }
  }

  [[nodiscard]] std::unique_ptr<Service> service(int parallel, int max_queue) const {
    SessionOptions session;
    session.ctx_size = 512;
    session.parallel = parallel;
    session.threads = 2;
    session.max_window = 5;
    session.with_mtp = true;
    ServiceOptions options;
    options.scheduler.generator.mtp = true;
    options.scheduler.generator.max_drafts = 4;
    options.scheduler.cache_bytes = size_t{64} << 20;
    options.max_queue = max_queue;
    return std::make_unique<Service>(model_, session, options);
  }

  [[nodiscard]] AnswerRequest request(size_t index, int max_drafts) const {
    const Text text = texts()[index];
    AnswerRequest request;
    request.prompt = model_.tokenizer().encode(text.prompt);
    request.max_new_tokens = text.tokens;
    request.max_drafts = max_drafts;
    request.sampling = text.sampling;
    return request;
  }

  [[nodiscard]] const Model& model() const { return model_; }
  [[nodiscard]] const std::vector<TokenId>& alone(size_t index) const { return alone_[index]; }

 private:
  Model model_;
  std::vector<std::vector<TokenId>> alone_;
};

/// All answers of a request, to their ends.
std::vector<AnswerRecord> collect(AnswerChannel& channel, size_t count) {
  std::vector<AnswerRecord> records(count);
  for (size_t ended = 0; ended < count;) {
    const std::optional<AnswerEvent> event = channel.pop(std::chrono::seconds(60));
    REQUIRE(event);
    records.at(event->answer).add(*event);
    ended += event->kind == AnswerEvent::Kind::kEnd ? 1 : 0;
  }
  return records;
}

void wait_until_idle(const Service& service) {
  for (int i = 0; i < 2000 && service.num_unfinished() > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  REQUIRE(service.num_unfinished() == 0);
}

}  // namespace

TEST_CASE("Answers are those that decode gives, whoever else asks and leaves", "[serve]") {
  const Subject subject;
  const std::unique_ptr<Service> service = subject.service(3, 100);
  const int pages = service->engine().free_pages(), slots = service->engine().free_slots();
  std::atomic<int> wrong = 0, finished = 0;
  std::vector<std::thread> clients;
  for (unsigned seed = 0; seed < 8; ++seed) {
    clients.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int i = 0; i < 6; ++i) {
        const size_t index = random() % texts().size();
        const auto ticket = service->submit({subject.request(index, static_cast<int>(random() % 5))});
        if (random() % 3 == 0) {  // leaves, now or after an event
          if (random() % 2 == 0) (void)ticket->channel().pop(std::chrono::milliseconds(20));
          continue;
        }
        const std::vector<AnswerRecord> records = collect(ticket->channel(), 1);
        ++finished;
        wrong += records[0].ids != subject.alone(index) ? 1 : 0;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(wrong == 0);
  CHECK(finished > 16);
  wait_until_idle(*service);
  service->between_steps([&](Scheduler& scheduler, const std::vector<const Answer*>& running) {
    CHECK(running.empty());
    CHECK(scheduler.num_active() == 0);
    CHECK(scheduler.num_waiting() == 0);
    scheduler.cache().clear();
    CHECK(service->engine().free_pages() == pages);
    CHECK(service->engine().free_slots() == slots);
  });
}

TEST_CASE("An answer's events add up to its text, and say how each token came", "[serve]") {
  const Subject subject;
  const auto service = subject.service(2, 4);
  AnswerRequest request = subject.request(0, 4);
  request.with_logprobs = true;
  request.num_logprobs = 3;
  const auto ticket = service->submit({request, request});
  for (const AnswerRecord& record : collect(ticket->channel(), 2)) {
    CHECK(record.ids == subject.alone(0));
    CHECK(record.text == subject.model().tokenizer().decode(record.ids));
    CHECK(record.finish_reason() == "length");
    CHECK(record.drafted == record.end->statistics.drafted);
    CHECK(record.accepted == record.end->statistics.accepted);
    REQUIRE(record.logprobs.size() == record.ids.size());
    for (size_t i = 0; i < record.ids.size(); ++i) {
      REQUIRE(record.logprobs[i].size() == 4);
      CHECK(record.logprobs[i][0].id == record.ids[i]);
      CHECK(record.logprobs[i][1].id == record.ids[i]);  // greedy: the likeliest
      CHECK(record.logprobs[i][1].logprob >= record.logprobs[i][2].logprob);
    }
  }
}

TEST_CASE("A stop string ends an answer in front of it", "[serve]") {
  const Subject subject;
  const auto service = subject.service(1, 1);
  AnswerRequest request = subject.request(0, 3);
  const std::string whole = subject.model().tokenizer().decode(subject.alone(0));
  request.stops = {whole.substr(whole.size() / 2, 4)};
  const auto ticket = service->submit({request});
  const std::vector<AnswerRecord> records = collect(ticket->channel(), 1);
  CHECK(records[0].text == whole.substr(0, whole.find(request.stops[0])));
  CHECK(records[0].end->stopping_word == request.stops[0]);
  CHECK(records[0].finish_reason() == "stop");
}

TEST_CASE("Who cannot be served is told so at once", "[serve]") {
  const Subject subject;
  const auto service = subject.service(1, 1);
  AnswerRequest long_request = subject.request(0, 0);
  long_request.prompt.assign(512, 1);
  try {
    (void)service->submit({long_request});
    FAIL("taken");
  } catch (const ApiError& error) {
    CHECK(error.type() == "exceed_context_size_error");
    CHECK(error.body()["error"]["n_prompt_tokens"] == 512);
    CHECK(error.body()["error"]["n_ctx"] == 512);
  }
  AnswerRequest endless = subject.request(0, 0);
  endless.max_new_tokens = 500;
  endless.ignore_eos = true;
  auto first = service->submit({endless});
  const auto second = service->submit({endless});
  try {
    (void)service->submit({endless});
    FAIL("taken");
  } catch (const ApiError& error) {
    CHECK(error.status() == 503);
  }
  first.reset();  // room again
  for (int i = 0; i < 2000 && service->num_unfinished() > 1; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const auto third = service->submit({endless});
  service->close();
  CHECK_THROWS_AS(service->submit({endless}), ApiError);
  service->cut();
  CHECK(collect(third->channel(), 1)[0].end->reason == StopReason::kInterrupted);
}

TEST_CASE("An answer ends when its time is over", "[serve]") {
  const Subject subject;
  const auto service = subject.service(1, 1);
  AnswerRequest request = subject.request(0, 0);
  request.max_new_tokens = 500;
  request.ignore_eos = true;
  request.max_predict_ms = 1e-3;
  const auto ticket = service->submit({request});
  const std::vector<AnswerRecord> records = collect(ticket->channel(), 1);
  CHECK(records[0].ids.size() <= 2);
  CHECK(records[0].finish_reason() == "length");
}

}  // namespace foretoken::test
