#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace foretoken {

/// Where numbers stopped being finite, or are about to be lost: a sum of squares that overflows makes zeros of a row
/// without a trace. In the order in which a layer computes.
enum class FaultKind : uint8_t {
  kEmbedding,
  kMtpHidden,  // the trunk's hidden row that the MTP layer starts from
  kMtpJoin,    // embedding and hidden row joined
  kQueries,    // queries and their gates
  kKeys,
  kKeyRange,  // finite, but not in the f16 cache
  kValues,
  kValueRange,
  kAttention,  // what attention adds to the residual
  kDeltaGates,
  kDeltaInput,  // the delta net's queries and keys
  kDeltaOutput,
  kDeltaNet,  // what the delta net adds to the residual
  kRouter,
  kFeedForward,  // what the feed-forward part adds to the residual
  kLogits,
};

struct RowFault {
  int layer = 0;  // the number of layers for what is behind the last one
  FaultKind kind = FaultKind::kEmbedding;
};

/// One line about a fault of the row at `position`; `is_mtp`: of the MTP layer.
[[nodiscard]] std::string describe_fault(const RowFault& fault, int64_t position, bool is_mtp);

/// The faults of one pass: of each row the first one, by layer and kind. Which thread finds a fault, and when, does not
/// show. Different threads may call note(); everything else is for the thread that runs the pass.
class RowFaults {
 public:
  /// Room for so many rows. Passes of more take it when they come.
  void reserve(int num_rows) {
    if (num_rows > static_cast<int>(first_.size())) first_ = std::vector<std::atomic<uint32_t>>(num_rows);
  }
  /// Rows [0, num_rows) have no faults.
  void begin(int num_rows) {
    reserve(num_rows);
    for (int r = 0; r < num_rows; ++r) first_[r].store(kNone, std::memory_order_relaxed);
    num_rows_ = num_rows;
  }

  void note(int64_t row, const RowFault& fault) {
    const uint32_t code = static_cast<uint32_t>(fault.layer) << kKindBits | static_cast<uint32_t>(fault.kind);
    std::atomic<uint32_t>& first = first_[row];
    uint32_t known = first.load(std::memory_order_relaxed);
    while (code < known && !first.compare_exchange_weak(known, code, std::memory_order_relaxed)) {
    }
  }

  [[nodiscard]] int num_rows() const { return num_rows_; }
  [[nodiscard]] std::optional<RowFault> find(int row) const {
    const uint32_t code = first_[row].load(std::memory_order_relaxed);
    if (code == kNone) return std::nullopt;
    return RowFault{static_cast<int>(code >> kKindBits), static_cast<FaultKind>(code & ((1u << kKindBits) - 1))};
  }

 private:
  static constexpr int kKindBits = 8;
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  std::vector<std::atomic<uint32_t>> first_;  // [the most rows so far] layer and kind in one number, or kNone
  int num_rows_ = 0;
};

}  // namespace foretoken
