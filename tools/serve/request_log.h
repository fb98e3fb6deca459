#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tools/serve/answer_record.h"
#include "tools/serve/generation_request.h"

namespace foretoken {

/// One line of JSON on standard error for each request that made answers: what was done, never what was said, unless
/// `with_prompts`.
class RequestLog {
 public:
  explicit RequestLog(bool with_prompts) : with_prompts_(with_prompts) {}

  void write(std::string_view route, int status, const GenerationRequest& request, const Tokenizer& tokenizer,
             const std::vector<AnswerRecord>& answers, double ms);

 private:
  const bool with_prompts_;
  std::atomic<int64_t> next_id_ = 1;
};

}  // namespace foretoken
