#pragma once

#include <span>
#include <vector>

#include "engine/model/model.h"
#include "engine/options.h"

namespace foretoken::test {

struct EngineLogits {
  int64_t vocab_size = 0;
  std::vector<float> trunk, mtp;  // [num_rows, vocab_size]
};

/// Logits of the engine at every position, the prompt cut into passes of `chunk` rows. Row p of the MTP layer has token
/// p and the trunk's hidden of p - 1, zeros at 0.
[[nodiscard]] EngineLogits run_engine(const Model& model, std::span<const TokenId> ids, KvType kv_type, bool with_mtp,
                                      int chunk);

/// Largest relative error of a position; infinite where the sizes differ, NaN where a logit is.
[[nodiscard]] double worst_error(std::span<const float> got, std::span<const double> want, int64_t vocab_size);

}  // namespace foretoken::test
