#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "engine/options.h"
#include "kernels/threads/numa.h"

namespace foretoken {

class WeightLoader;

[[nodiscard]] std::string_view cluster_mode_name(ClusterMode mode);

/// Which rows of a matrix each rank has, and so which columns of the product. Owners are disjoint and cover all rows.
class RowOwners {
 public:
  RowOwners() = default;
  /// ranges[rank] rise; empty ones are left out.
  explicit RowOwners(std::vector<std::vector<RowRange>> ranges);
  /// num_rows rows in units of unit_rows, one range a rank, in proportion to `shares`.
  [[nodiscard]] static RowOwners split(int64_t num_rows, int64_t unit_rows, const std::vector<double>& shares);

  [[nodiscard]] int num_ranks() const { return static_cast<int>(ranges_.size()); }
  [[nodiscard]] const std::vector<RowRange>& of(int rank) const { return ranges_[rank]; }
  [[nodiscard]] int64_t num_rows() const { return num_rows_; }  // of all ranks
  [[nodiscard]] int64_t count(int rank) const { return counts_[rank]; }
  /// Of a rank with one range or none: where it begins.
  [[nodiscard]] int64_t begin(int rank) const { return of(rank).empty() ? 0 : of(rank).front().begin; }
  [[nodiscard]] int64_t end(int rank) const { return of(rank).empty() ? 0 : of(rank).back().end; }
  /// The row that is number `local` among those of `rank`, and the number that a row of its has.
  [[nodiscard]] int64_t global_of(int rank, int64_t local) const;
  [[nodiscard]] int64_t local_of(int rank, int64_t row) const;
  [[nodiscard]] bool owns(int rank, int64_t row) const;

 private:
  std::vector<std::vector<RowRange>> ranges_;
  std::vector<int64_t> counts_;
  int64_t num_rows_ = 0;
};

/// Who computes what of a model. Every rank makes the same plan from the file's headers and the same shares.
struct RankPlan {
  ClusterMode mode = ClusterMode::kRows;
  std::vector<double> shares;  // [num_ranks] how much of the work each takes, in any unit

  /// A rank's heads of an attention layer: query heads [first_head, + num_heads), which use key heads [first_kv_head, +
  /// num_kv_heads). Where there are fewer key heads than ranks, several have the same one.
  struct Heads {
    int first_head = 0, num_heads = 0;
    int first_kv_head = 0, num_kv_heads = 0;
  };
  /// A rank's heads of a delta net.
  struct DeltaHeads {
    int first_key_head = 0, num_key_heads = 0;
    std::vector<int> value_heads;  // rising
  };
  struct Layer {
    bool is_recurrent = false;
    AttentionShape attention;             // of the whole layer
    DeltaNetShape delta_net;              // of the whole layer
    std::vector<Heads> heads;             // [num_ranks], of attention
    std::vector<DeltaHeads> delta_heads;  // [num_ranks], of a delta net
    RowOwners mixer;                      // columns of what the mixer's output matrix reads
    RowOwners inner;                      // rows of each routed expert's gate and up
    RowOwners shared_inner;               // rows of gate and up of the shared expert, or of a dense part
    RowOwners experts;                    // whole experts, with kExperts
    RowOwners router;                     // experts by who computes their logits, where ranks share memory
  };
  int num_trunk_layers = 0;
  std::vector<Layer> layers;    // of the trunk, then the MTP layer's if there is one
  RowOwners hidden;             // rows of the matrices that add to the residual
  RowOwners vocab;              // rows of the head
  std::vector<int> layer_ends;  // [num_ranks] with kLayers: rank r has trunk layers [layer_ends[r - 1], layer_ends[r])

  /// `weights`: as declared, whole.
  [[nodiscard]] static RankPlan of(const ModelConfig& config, const ModelWeights& weights, ClusterMode mode,
                                   std::vector<double> shares);

  [[nodiscard]] int num_ranks() const { return static_cast<int>(shares.size()); }
  [[nodiscard]] int first_layer(int rank) const {
    return mode != ClusterMode::kLayers || rank == 0 ? 0 : layer_ends[static_cast<size_t>(rank) - 1];
  }
  /// Whether the rank computes anything of this layer.
  [[nodiscard]] bool holds(int rank, int layer) const;
};

/// What one process holds of a model.
struct ModelShare {
  RankPlan plan;
  int rank = 0;
};

/// Leaves of what was declared the rank's share: shapes, matrices and what `load` will read.
void hold_share(const ModelShare& share, WeightLoader& load, ModelWeights& weights);

}  // namespace foretoken
