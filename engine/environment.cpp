#include <fmt/format.h>

#include <charconv>
#include <cstdlib>

#include "engine/options.h"
#include "kernels/base/error.h"
#include "kernels/threads/thread_team.h"

namespace foretoken {

namespace {

MoeVerify moe_verify_from_name(std::string_view name) {
  if (name == "grouped") return MoeVerify::kGrouped;
  if (name == "per-token") return MoeVerify::kPerToken;
  throw UsageError(fmt::format("FORETOKEN_MOE_VERIFY={}: unknown value; known: grouped, per-token", name));
}

bool switch_from_text(const char* name, std::string_view text) {
  if (text == "on") return true;
  if (text == "off") return false;
  throw UsageError(fmt::format("{}={}: unknown value; known: on, off", name, text));
}

int threads_from_text(std::string_view text) {
  int threads = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), threads);
  if (error != std::errc() || end != text.data() + text.size() || threads < 1 || threads > ThreadTeam::kMaxThreads) {
    throw UsageError(
        fmt::format("FORETOKEN_THREADS={}: it takes a whole number from 1 to {}", text, ThreadTeam::kMaxThreads));
  }
  return threads;
}

}  // namespace

Environment Environment::read() {
  Environment environment;
  const auto value_of = [&](const char* name) -> std::optional<std::string_view> {
    const char* const value = std::getenv(name);
    if (value == nullptr) return std::nullopt;
    environment.set.push_back(fmt::format("{}={}", name, value));
    return value;
  };
  if (const auto value = value_of("FORETOKEN_MOE_VERIFY")) environment.moe_verify = moe_verify_from_name(*value);
  if (const auto value = value_of("FORETOKEN_ISA")) environment.isa = isa_from_name(*value);
  if (const auto value = value_of("FORETOKEN_THREADS")) environment.threads = threads_from_text(*value);
  const auto switch_of = [&](const char* name) -> std::optional<bool> {
    const auto value = value_of(name);
    return value ? std::optional(switch_from_text(name, *value)) : std::nullopt;
  };
  environment.numa = switch_of("FORETOKEN_NUMA");
  environment.dependent_launch = switch_of("FORETOKEN_CUDA_DEPENDENT_LAUNCH");
  return environment;
}

}  // namespace foretoken
