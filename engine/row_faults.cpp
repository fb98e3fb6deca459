#include "engine/row_faults.h"

#include <fmt/format.h>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

std::string_view what_is_wrong(FaultKind kind) {
  switch (kind) {
    case FaultKind::kEmbedding:
      return "the token's embedding is not finite, or too large to be normalised";
    case FaultKind::kMtpHidden:
      return "the trunk's hidden row is too large to be normalised";
    case FaultKind::kMtpJoin:
      return "embedding and hidden row joined are not finite, or too large to be normalised";
    case FaultKind::kQueries:
      return "attention's queries or gates are not finite, or too large for a score";
    case FaultKind::kKeys:
      return "attention's keys are not finite, or too large for a score";
    case FaultKind::kKeyRange:
      return "a key is beyond 65504, the most that the f16 KV cache holds; --kv-type f32 may help";
    case FaultKind::kValues:
      return "attention's values are not finite";
    case FaultKind::kValueRange:
      return "a value is beyond 65504, the most that the f16 KV cache holds; --kv-type f32 may help";
    case FaultKind::kAttention:
      return "what attention adds is not finite, or too large to be normalised";
    case FaultKind::kDeltaGates:
      return "the delta net's gates are not finite";
    case FaultKind::kDeltaInput:
      return "the delta net's queries or keys are not finite, or too large to be normalised";
    case FaultKind::kDeltaOutput:
      return "the delta net's output is not finite, or too large to be normalised";
    case FaultKind::kDeltaNet:
      return "what the delta net adds is not finite, or too large to be normalised";
    case FaultKind::kRouter:
      return "the logits of the router of experts are not finite";
    case FaultKind::kFeedForward:
      return "what the feed-forward part adds is not finite, or too large to be normalised";
    case FaultKind::kLogits:
      return "the logits are not finite";
  }
  FT_CHECK(false);
  return {};
}

}  // namespace

std::string describe_fault(const RowFault& fault, int64_t position, bool is_mtp) {
  std::string place = is_mtp ? "MTP layer" : fmt::format("layer {}", fault.layer);
  if (!is_mtp && fault.kind == FaultKind::kEmbedding) place = "embedding";
  if (!is_mtp && fault.kind == FaultKind::kLogits) place = "output head";
  const bool may_be_cache = fault.kind == FaultKind::kKeyRange || fault.kind == FaultKind::kValueRange;
  return fmt::format("position {}, {}: {}{}", position, place, what_is_wrong(fault.kind),
                     may_be_cache ? "" : "; the file is damaged, or was converted out of the range of its numbers");
}

}  // namespace foretoken
