#include "engine/cluster/share_layout.h"

#include <algorithm>

#include "engine/sequence/kv_pages.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

// The layers that a page has keys and values of, in order.
std::vector<size_t> attention_layers(const RankPlan& plan, int num_trunk_layers, bool with_mtp) {
  std::vector<size_t> layers;
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const bool is_mtp = i >= static_cast<size_t>(num_trunk_layers);
    if (!plan.layers[i].is_recurrent && (!is_mtp || with_mtp)) layers.push_back(i);
  }
  return layers;
}

KvShape whole_shape(const RankPlan& plan, KvType type, bool with_mtp) {
  std::vector<AttentionShape> shapes;
  for (const size_t i : attention_layers(plan, plan.num_trunk_layers, with_mtp))
    shapes.push_back(plan.layers[i].attention);
  return {shapes, type};
}

void add(ShareLayout& layout, size_t whole_offset, size_t size_bytes) {
  if (size_bytes == 0) return;
  layout.pieces.push_back({whole_offset, layout.own_bytes, size_bytes});
  layout.own_bytes += size_bytes;
}

}  // namespace

void ShareLayout::to_whole(std::span<const std::byte> own, std::span<std::byte> whole) const {
  FT_CHECK_EQ(own.size(), own_bytes);
  for (const Piece& piece : pieces) {
    std::copy_n(own.begin() + static_cast<std::ptrdiff_t>(piece.own_offset), piece.size_bytes,
                whole.begin() + static_cast<std::ptrdiff_t>(piece.whole_offset));
  }
}

void ShareLayout::from_whole(std::span<const std::byte> whole, std::span<std::byte> own) const {
  FT_CHECK_EQ(own.size(), own_bytes);
  for (const Piece& piece : pieces) {
    std::copy_n(whole.begin() + static_cast<std::ptrdiff_t>(piece.whole_offset), piece.size_bytes,
                own.begin() + static_cast<std::ptrdiff_t>(piece.own_offset));
  }
}

ShareLayout page_layout(const RankPlan& plan, int rank, KvType type, bool with_mtp) {
  const KvShape whole = whole_shape(plan, type, with_mtp);
  ShareLayout layout;
  int index = 0;
  for (const size_t i : attention_layers(plan, plan.num_trunk_layers, with_mtp)) {
    const RankPlan::Layer& layer = plan.layers[i];
    const KvShape::Layer& in_page = whole.layer(index++);
    if (!plan.holds(rank, static_cast<int>(i))) continue;
    const bool all_heads = plan.mode == ClusterMode::kLayers;
    const RankPlan::Heads& heads = layer.heads[rank];
    const int first = all_heads ? 0 : heads.first_kv_head;
    const int count = all_heads ? layer.attention.num_kv_heads : heads.num_kv_heads;
    add(layout, static_cast<size_t>(in_page.offset + first * in_page.head_bytes),
        static_cast<size_t>(count * in_page.head_bytes));
  }
  return layout;
}

size_t whole_page_bytes(const RankPlan& plan, KvType type, bool with_mtp) {
  return static_cast<size_t>(whole_shape(plan, type, with_mtp).page_bytes());
}

size_t whole_state_bytes(const RankPlan& plan) {
  size_t bytes = 0;
  for (const RankPlan::Layer& layer : plan.layers) {
    if (layer.is_recurrent)
      bytes += static_cast<size_t>(layer.delta_net.state_values() + layer.delta_net.history_values()) * sizeof(float);
  }
  return bytes;
}

ShareLayout state_layout(const RankPlan& plan, int rank) {
  ShareLayout layout;
  size_t begin = 0;
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const RankPlan::Layer& layer = plan.layers[i];
    if (!layer.is_recurrent) continue;
    const DeltaNetShape& shape = layer.delta_net;
    const auto state_bytes = static_cast<size_t>(shape.state_values()) * sizeof(float);
    const auto history_bytes = static_cast<size_t>(shape.history_values()) * sizeof(float);
    const size_t layer_begin = begin;
    begin += state_bytes + history_bytes;
    if (!plan.holds(rank, static_cast<int>(i))) continue;
    if (plan.mode == ClusterMode::kLayers) {
      add(layout, layer_begin, state_bytes + history_bytes);
      continue;
    }
    const RankPlan::DeltaHeads& heads = layer.delta_heads[rank];
    const auto size = static_cast<size_t>(shape.state_size);
    const size_t head_bytes = size * size * sizeof(float), row_bytes = size * sizeof(float);
    for (const int head : heads.value_heads)
      add(layout, layer_begin + static_cast<size_t>(head) * head_bytes, head_bytes);
    for (int tap = 0; tap + 1 < shape.conv_taps; ++tap) {
      const size_t row = layer_begin + state_bytes + static_cast<size_t>(tap * shape.conv_channels()) * sizeof(float);
      for (const int64_t part : {int64_t{0}, shape.key_dim()}) {
        add(layout,
            row + static_cast<size_t>(part) * sizeof(float) + static_cast<size_t>(heads.first_key_head) * row_bytes,
            static_cast<size_t>(heads.num_key_heads) * row_bytes);
      }
      for (const int head : heads.value_heads) {
        add(layout,
            row + static_cast<size_t>(2 * shape.key_dim()) * sizeof(float) + static_cast<size_t>(head) * row_bytes,
            row_bytes);
      }
    }
  }
  return layout;
}

}  // namespace foretoken
