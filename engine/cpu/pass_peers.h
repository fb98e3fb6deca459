#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/rank_plan.h"
#include "engine/model/shapes.h"
#include "engine/transport.h"
#include "moe/expert_peers.h"

namespace foretoken {

/// What the passes of one process of a cluster exchange with the others'. Every process goes through the same layers of
/// the same pass, so all of them make the same calls. Buffers are taken in the constructor.
///
/// What is gathered are rows of activations: each rank has computed its columns in place, and gets the others'. Two to
/// four messages a layer, and where they share memory the one of the router, whose message would take longer over a
/// network than its reading in each:
///
///   mixer     attended queries or delta-net outputs, by heads      then the output matrix, by rows
///   hidden    what the mixer adds                                  then norm, router, gate and up
///   router    logits, by experts
///   inner     silu(gate) * up of every slot, by rows; with whole experts what every slot adds, by expert
///   hidden    the residual
class PassPeers final : public ExpertPeers {
 public:
  /// `transport` and `share` stay. shapes: of the share. max_rows: of a pass.
  PassPeers(Transport& transport, const ModelShare& share, const ModelShapes& shapes, int64_t max_rows);

  [[nodiscard]] Transport& transport() { return transport_; }
  [[nodiscard]] const RankPlan& plan() const { return share_.plan; }
  [[nodiscard]] int rank() const { return share_.rank; }
  [[nodiscard]] bool by_layers() const { return plan().mode == ClusterMode::kLayers; }
  [[nodiscard]] bool is_last() const { return rank() + 1 == plan().num_ranks(); }
  [[nodiscard]] size_t size_bytes() const { return message_.capacity() * sizeof(float); }

  // By rows. layer: in the model, the MTP layer behind the trunk's.

  /// The column, in rows of all heads, of this rank's mixer column `local`.
  [[nodiscard]] int64_t mixer_column(int layer, int64_t local) const {
    return plan().layers[layer].mixer.global_of(rank(), local);
  }
  /// rows: [num_rows, columns of all heads].
  void gather_mixer(int layer, float* rows, int64_t num_columns, int num_rows);
  void gather_hidden(float* rows, int num_rows) override;
  void gather_router(float* logits, int num_rows) override;
  /// The feed-forward part of this layer is next.
  void begin_feed_forward(int layer);
  void gather_inner(float* routed, int64_t num_slots, float* shared, int num_shared_rows) override;
  void gather_partials(float* partials, std::span<const int32_t> experts, float* shared, int num_shared_rows) override;

  // By layers.

  /// The residual rows [num_rows, hidden_dim] from the rank before this one, and to the one behind.
  void receive_rows(float* rows, int num_rows);
  void send_rows(const float* rows, int num_rows);

 private:
  struct Part {
    float* rows;
    int64_t num_columns;  // of a row
    int64_t num_rows;
    const RowOwners* owners;  // of the columns
  };
  void gather(std::span<const Part> parts);
  float* pack(const Part& part, int of_rank, float* at) const;
  const float* unpack(const Part& part, int of_rank, const float* at) const;
  void exchange();

  Transport& transport_;
  const ModelShare& share_;
  const int64_t hidden_dim_;
  const RankPlan::Layer* layer_ = nullptr;
  int64_t inner_dim_ = 0, shared_dim_ = 0;  // of layer_
  std::vector<float> message_;              // all ranks' parts, one after the other
  std::vector<int64_t> ends_;               // [num_ranks] of them, in values
  std::vector<int64_t> byte_ends_;
};

}  // namespace foretoken
