#include "tools/serve/exchange.h"

#include "mtp/stopwatch.h"
#include "tools/serve/connection.h"
#include "tools/serve/http_server.h"

namespace foretoken {

namespace {

// How soon a client that has left is noticed while nothing happens, and how long a stream may be silent.
constexpr std::chrono::milliseconds kLookForClient(20);
constexpr double kKeepAliveMs = 5000;

/// A request on its way: the ticket whose end stops the work, and what has come so far.
struct Course {
  std::string route;
  GenerationRequest request;
  std::unique_ptr<AnswerFormat> format;
  std::unique_ptr<Service::Ticket> ticket;
  std::vector<AnswerRecord> records;
  size_t num_ended = 0;
  Stopwatch watch;
  double last_write_ms = 0;

  [[nodiscard]] bool is_over() const { return num_ended == records.size(); }
  AnswerRecord& take(const AnswerEvent& event) {
    AnswerRecord& record = records.at(event.answer);
    record.add(event);
    num_ended += event.kind == AnswerEvent::Kind::kEnd ? 1 : 0;
    return record;
  }
};

bool client_has_left() {
  const Connection* connection = Connection::current();
  return connection != nullptr && connection->client_has_left();
}

/// What an answer that could not be made is an error of.
std::optional<ApiError> error_of(const AnswerEnd& end) {
  if (end.reason == StopReason::kFailed) return server_failure(end.failure);
  if (end.reason == StopReason::kInterrupted) return unavailable(end.failure);
  return std::nullopt;
}

std::string write_event(Course& course, const AnswerEvent& event) {
  const AnswerRecord& record = course.take(event);
  switch (event.kind) {
    case AnswerEvent::Kind::kPrompt:
      return course.format->prompt(record, event);
    case AnswerEvent::Kind::kToken:
      return course.format->token(record, event);
    case AnswerEvent::Kind::kEnd:
      if (const std::optional<ApiError> error = error_of(*event.end)) return course.format->error(*error);
      return course.format->end_of(record, event);
  }
  return {};
}

}  // namespace

void Exchange::run(const std::string& route, const GenerationRequest& request, std::unique_ptr<AnswerFormat> format,
                   httplib::Response& response) {
  auto course = std::make_shared<Course>();
  course->route = route;
  course->request = request;
  course->format = std::move(format);
  std::vector<AnswerRequest> answers = request.answers(served_);
  for (size_t i = 0; i < answers.size(); ++i) {
    if (request.parsing) {
      course->records.emplace_back(*request.parsing);
    } else {
      course->records.emplace_back();
    }
  }
  course->ticket = service_.submit(std::move(answers));
  const auto log = [&to = log_, &tokenizer = *served_.tokenizer](const Course& done, int status) {
    to.write(done.route, status, done.request, tokenizer, done.records, done.watch.elapsed_ms());
  };

  if (!request.stream) {
    while (!course->is_over()) {
      const std::optional<AnswerEvent> event = course->ticket->channel().pop(kLookForClient);
      if (event) (void)course->take(*event);
      if (client_has_left()) {
        log(*course, 499);
        Connection::current()->close_after_answer();
        return;
      }
    }
    for (const AnswerRecord& record : course->records) {
      if (const std::optional<ApiError> error = error_of(*record.end)) {
        log(*course, error->status());
        throw *error;
      }
    }
    answer_json(response, course->format->whole(course->records));
    log(*course, 200);
    return;
  }

  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");
  const auto provide = [course, has_begun = false](size_t, httplib::DataSink& sink) mutable {
    std::string text;
    if (!has_begun) text = course->format->begin();
    has_begun = true;
    // What is there already goes out together.
    auto wait = text.empty() ? kLookForClient : std::chrono::milliseconds(0);
    while (!course->is_over()) {
      const std::optional<AnswerEvent> event = course->ticket->channel().pop(wait);
      if (!event) break;
      text += write_event(*course, *event);
      wait = std::chrono::milliseconds(0);
    }
    if (client_has_left()) return false;
    if (course->is_over()) text += course->format->end(course->records);
    const double now_ms = course->watch.elapsed_ms();
    if (text.empty() && now_ms - course->last_write_ms >= kKeepAliveMs) text = kSseKeepAlive;
    if (!text.empty()) {
      if (!sink.write(text.data(), text.size())) return false;
      course->last_write_ms = now_ms;
    }
    if (course->is_over()) sink.done();
    return true;
  };
  response.set_chunked_content_provider("text/event-stream", provide, [course, log](bool) {
    // Also where the client has left: the ticket's end stops what still runs.
    course->ticket.reset();
    log(*course, course->is_over() ? 200 : 499);
  });
}

}  // namespace foretoken
