#include "moe/work.h"

#include "kernels/base/error.h"

namespace foretoken {

std::string_view work_name(Work work) {
  switch (work) {
    case Work::kRoutedExperts:
      return "routed experts";
    case Work::kSharedExpert:
      return "shared expert";
    case Work::kRouter:
      return "router";
    case Work::kDeltaProjections:
      return "delta-net projections";
    case Work::kDeltaRecurrence:
      return "delta-net recurrence";
    case Work::kAttentionProjections:
      return "attention projections";
    case Work::kAttention:
      return "attention";
    case Work::kHead:
      return "head";
    case Work::kMtpLayer:
      return "MTP layer";
    case Work::kDraftHead:
      return "draft head";
    case Work::kRows:
      return "norms and rows";
    case Work::kNumKinds:
      break;
  }
  FT_CHECK(false);
  return {};
}

}  // namespace foretoken
