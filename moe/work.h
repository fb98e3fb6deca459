#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/threads/work_profile.h"

namespace foretoken {

/// Kinds of work that the profile of a model's passes tells apart.
enum class Work : uint8_t {
  kRoutedExperts,
  kSharedExpert,  // and dense feed-forward parts
  kRouter,
  kDeltaProjections,
  kDeltaRecurrence,  // convolution, gates, state, gated norm
  kAttentionProjections,
  kAttention,  // keys, values, queries and the attention itself
  kHead,
  kMtpLayer,  // all of the MTP layer but its head
  kDraftHead,
  kRows,  // norms, residuals, quantisation, embeddings: work by rows
  kNumKinds,
};
static_assert(static_cast<size_t>(Work::kNumKinds) <= kMostWorkKinds);
[[nodiscard]] std::string_view work_name(Work work);

}  // namespace foretoken
