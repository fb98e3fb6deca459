#pragma once

#include <httplib.h>

#include <atomic>
#include <memory>
#include <string>

#include "tools/serve/answer_format.h"
#include "tools/serve/request_log.h"
#include "tools/serve/service.h"

namespace foretoken {

/// Answers one request: hands its answers to the service and writes what comes back, at once or as a stream. A client
/// that goes away stops the work. Throws ApiError while nothing has been written.
class Exchange {
 public:
  Exchange(Service& service, const ServedModel& served, RequestLog& log)
      : service_(service), served_(served), log_(log) {}

  /// `route` is for the log.
  void run(const std::string& route, const GenerationRequest& request, std::unique_ptr<AnswerFormat> format,
           httplib::Response& response);

 private:
  Service& service_;
  const ServedModel& served_;
  RequestLog& log_;
};

}  // namespace foretoken
