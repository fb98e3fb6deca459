#pragma once

#include <memory>
#include <optional>
#include <string>

#include "tools/serve/chat_prompts.h"
#include "tools/serve/exchange.h"
#include "tools/serve/generation_request.h"
#include "tools/serve/request_log.h"
#include "tools/serve/service.h"

namespace foretoken {

/// What the routes share. While the model is loading everything but `log` is empty, and the gate lets nobody to it.
struct ServeState {
  explicit ServeState(bool log_prompts) : log(log_prompts) {}

  RequestLog log;
  ServedModel served;
  std::unique_ptr<Service> service;
  std::optional<ChatPrompts> chat;
  bool offers_metrics = true, offers_slots = true;
  std::string slot_save_path;  // empty: slots are not saved

  std::atomic<bool> is_ready = false;
};

}  // namespace foretoken
