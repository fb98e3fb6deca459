#include "engine/cuda/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_matrix.h"

namespace foretoken {

namespace {

// What others on the device, the driver's own work areas and the graphs may take meanwhile.
constexpr size_t kUsablePercent = 95;
// Where not all experts fit, this part of the room for them goes to hot experts. A guess: no GPU has measured it.
constexpr size_t kCachePart = 8;
// A context that a proposal rounds down to.
constexpr int64_t kContextStep = 256;

std::string size_text(size_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib >= 1024 ? fmt::format("{:.2f} GiB", mib / 1024) : fmt::format("{:.1f} MiB", mib);
}

/// Bytes of a matrix on the device, whose fields lie in planes.
size_t device_bytes(const MatrixView& matrix) {
  if (matrix.num_rows == 0) return 0;
  const WeightTypeInfo& info = weight_type_info(matrix.type);
  const int64_t num_blocks = matrix.num_cols / info.block_size * info.num_parts();
  const int64_t row_bytes = cuda::plane_offset(matrix.type, cuda::planes_of(matrix.type).count, num_blocks);
  return static_cast<size_t>(matrix.num_rows * row_bytes);
}

/// Adds up a layer's parts in a walk over its weights.
auto size_visit(LayerSizes& sizes) {
  return WeightVisit{
      [&sizes](WeightRole, const MatrixView& matrix) { sizes.dense_bytes += device_bytes(matrix); },
      [&sizes](WeightRole, const VectorView& vector) {
        sizes.dense_bytes += static_cast<size_t>(vector.count) * sizeof(float);
      },
      [&sizes](WeightRole, const ExpertMatrices& experts) {
        if (experts.all.num_rows == 0) return;
        sizes.num_experts = static_cast<int>(experts.all.num_rows / experts.stride_rows);
        sizes.expert_bytes += device_bytes(experts.expert(0));
        sizes.dense_bytes += static_cast<size_t>(experts.scales.count) * sizeof(float);
      },
  };
}

/// The share of a layer's experts that the device has.
double device_share(const LayerSizes& layer, int placed, int cache_entries) {
  if (layer.num_experts == 0) return 1;
  return std::min(1.0, static_cast<double>(placed + (placed == layer.num_experts ? 0 : cache_entries)) /
                           static_cast<double>(layer.num_experts));
}

/// What one layer's routed experts make each side read for one token.
struct ExpertBytes {
  double device = 0, host = 0, bus = 0;
};

ExpertBytes expert_bytes_of(const ModelSizes& sizes, size_t layer, const Placement& plan) {
  const LayerSizes& l = sizes.layers[layer];
  if (l.num_experts == 0) return {};
  const double share = device_share(l, plan.experts[layer], plan.cache_entries);
  const double all = static_cast<double>(l.expert_bytes) * sizes.experts_per_token;
  const double row = static_cast<double>(sizes.hidden_dim) * sizeof(float);
  return {all * share, all * (1 - share), share < 1 ? row * (1 + sizes.experts_per_token * (1 - share)) : 0};
}

/// The parts that every plan has on the device, checked against the budget.
class Planner {
 public:
  Planner(const ModelSizes& sizes, const PlacementRequest& request) : sizes_(sizes), request_(request) {
    plan_.experts.assign(sizes.layers.size(), 0);
    plan_.free_bytes = request.free_bytes;
    plan_.budget_bytes = request.free_bytes / 100 * kUsablePercent + request.free_bytes % 100 * kUsablePercent / 100;
    if (request.reserve_bytes > 0) {
      plan_.budget_bytes =
          std::min(plan_.budget_bytes, request.free_bytes - std::min(request.free_bytes, request.reserve_bytes));
    }
    plan_.dense_bytes = sizes.embed_bytes + sizes.head_bytes;
    for (const LayerSizes& layer : sizes.layers) plan_.dense_bytes += layer.dense_bytes;
    if (request.with_mtp && sizes.mtp) {
      plan_.mtp_bytes = sizes.mtp->dense_bytes + static_cast<size_t>(sizes.mtp->num_experts) * sizes.mtp->expert_bytes +
                        sizes.draft_head_bytes;
    }
    plan_.session_bytes = request.session.total();
    may_hold_ = sizes.layers.size();
    if (request.gpu_layers) may_hold_ = std::min(may_hold_, static_cast<size_t>(*request.gpu_layers));
  }

  Placement plan() {
    check_request();
    if (plan_.device_bytes() > plan_.budget_bytes) refuse_dense();
    room_ = plan_.budget_bytes - plan_.device_bytes();
    if (request_.whole_model) {
      place_all();
    } else if (request_.gpu_experts) {
      place_given(*request_.gpu_experts);
    } else {
      place_whole_layers();
    }
    conclude();
    return std::move(plan_);
  }

 private:
  [[nodiscard]] int most_experts() const {
    int most = 0;
    for (const LayerSizes& layer : sizes_.layers) most = std::max(most, layer.num_experts);
    return most;
  }

  void check_request() const {
    const int most = most_experts();
    if (request_.gpu_experts && *request_.gpu_experts > most) {
      throw InputError(most == 0 ? fmt::format("--gpu-experts {}: the model has no routed experts: leave the flag out",
                                               *request_.gpu_experts)
                                 : fmt::format("--gpu-experts {}: the model has {} routed experts a layer",
                                               *request_.gpu_experts, most));
    }
    if (request_.cache_entries && *request_.cache_entries > most) {
      throw InputError(
          fmt::format("--gpu-cache {}: the model has {} routed experts a layer", *request_.cache_entries, most));
    }
  }

  [[nodiscard]] std::string budget_text() const {
    return fmt::format("of the {} that are free on it {} may be used", size_text(plan_.free_bytes),
                       size_text(plan_.budget_bytes));
  }

  // Not even what every token uses fits.
  [[noreturn]] void refuse_dense() const {
    const size_t needed = plan_.device_bytes();
    const size_t kv = request_.session.kv_bytes;
    int64_t positions = 0;
    if (request_.ctx_size > 0 && kv > 0 && needed - kv < plan_.budget_bytes) {
      const auto ctx_size = static_cast<size_t>(request_.ctx_size);
      const size_t position_bytes = (kv + ctx_size - 1) / ctx_size;
      positions = static_cast<int64_t>((plan_.budget_bytes - (needed - kv)) / position_bytes);
    }
    std::string remedy = "--device cpu needs none of it";
    if (positions >= kContextStep) {
      remedy = fmt::format("--ctx-size {} would fit", positions / kContextStep * kContextStep);
    } else if (plan_.mtp_bytes > 0 && needed - plan_.mtp_bytes <= plan_.budget_bytes) {
      remedy = "without --mtp it would fit";
    }
    throw InputError(fmt::format(
        "--device {}: without its routed experts the model needs {} on the device (trunk {}, MTP layer and draft head "
        "{}, context of {} positions {}); {}; {}",
        request_.whole_model ? "cuda" : "split", size_text(needed), size_text(plan_.dense_bytes),
        size_text(plan_.mtp_bytes), request_.ctx_size, size_text(plan_.session_bytes), budget_text(), remedy));
  }

  [[nodiscard]] size_t layer_bytes(size_t l) const {
    return static_cast<size_t>(sizes_.layers[l].num_experts) * sizes_.layers[l].expert_bytes;
  }

  /// Bytes of one more expert in each of the layers [begin, may_hold_).
  [[nodiscard]] size_t step_bytes(size_t begin) const {
    size_t bytes = 0;
    for (size_t l = begin; l < may_hold_; ++l) bytes += sizes_.layers[l].expert_bytes;
    return bytes;
  }

  void place(size_t l, int count) {
    plan_.experts[l] = std::min(count, sizes_.layers[l].num_experts);
    plan_.expert_bytes += static_cast<size_t>(plan_.experts[l]) * sizes_.layers[l].expert_bytes;
  }

  void place_all() {
    for (size_t l = 0; l < sizes_.layers.size(); ++l) place(l, sizes_.layers[l].num_experts);
    if (plan_.expert_bytes <= room_) return;
    PlacementRequest split = request_;
    split.whole_model = false;
    const Placement fits = plan_placement(sizes_, split);
    const auto whole = std::count_if(fits.experts.begin(), fits.experts.end(), [](int n) { return n > 0; });
    throw InputError(fmt::format(
        "--device cuda: the model and a context of {} positions need {} on the device; {}; --device split would fit, "
        "with the routed experts of {} of {} layers on the device",
        request_.ctx_size, size_text(plan_.device_bytes()), budget_text(), whole, sizes_.layers.size()));
  }

  void place_given(int count) {
    size_t bytes = 0;
    for (size_t l = 0; l < may_hold_; ++l) {
      bytes += static_cast<size_t>(std::min(count, sizes_.layers[l].num_experts)) * sizes_.layers[l].expert_bytes;
    }
    if (bytes > room_) {
      throw InputError(fmt::format(
          "--gpu-experts {}: the first {} experts of {} layers need {} on the device, {} are left for them ({}); "
          "--gpu-experts {} would fit",
          count, count, may_hold_, size_text(bytes), size_text(room_), budget_text(), room_ / step_bytes(0)));
    }
    for (size_t l = 0; l < may_hold_; ++l) place(l, count);
    take_entries(room_ - bytes);
  }

  // Whole layers from the first on; what is left goes to hot experts of the others.
  void place_whole_layers() {
    size_t all = 0;
    for (size_t l = 0; l < may_hold_; ++l) all += layer_bytes(l);
    size_t whole = may_hold_, used = all;
    if (all > room_) {
      const auto fits = [&](size_t count, size_t bytes) {
        if (request_.cache_entries)
          return bytes + static_cast<size_t>(*request_.cache_entries) * step_bytes(count) <= room_;
        return bytes <= room_ - room_ / kCachePart;
      };
      while (whole > 0 && !fits(whole, used)) used -= layer_bytes(--whole);
    }
    for (size_t l = 0; l < whole; ++l) place(l, sizes_.layers[l].num_experts);
    take_entries(room_ - used);
  }

  void take_entries(size_t room) {
    size_t bytes_per_entry = 0;
    int most = 0;
    for (size_t l = 0; l < may_hold_; ++l) {
      const LayerSizes& layer = sizes_.layers[l];
      if (plan_.experts[l] == layer.num_experts) continue;
      bytes_per_entry += layer.expert_bytes;
      most = std::max(most, layer.num_experts - plan_.experts[l]);
    }
    if (bytes_per_entry == 0) return;
    const size_t fitting = room / bytes_per_entry;
    if (request_.cache_entries && static_cast<size_t>(*request_.cache_entries) > fitting) {
      throw InputError(fmt::format(
          "--gpu-cache {}: so many hot experts of every layer that is not whole on the device need {}, {} are left "
          "for them ({}); --gpu-cache {} would fit",
          *request_.cache_entries, size_text(static_cast<size_t>(*request_.cache_entries) * bytes_per_entry),
          size_text(room), budget_text(), fitting));
    }
    const int wanted = request_.cache_entries ? *request_.cache_entries : most;
    plan_.cache_entries = std::min({wanted, most, static_cast<int>(std::min<size_t>(fitting, INT32_MAX))});
    plan_.cache_bytes = static_cast<size_t>(plan_.cache_entries) * bytes_per_entry;
  }

  void conclude() {
    const bool tied = sizes_.head_bytes == 0;  // then the embedding is read as the head, else a row of it
    plan_.device_bytes_per_token = static_cast<double>(plan_.dense_bytes - (tied ? 0 : sizes_.embed_bytes) +
                                                       request_.session.kv_bytes + request_.session.recurrent_bytes);
    for (size_t l = 0; l < sizes_.layers.size(); ++l) {
      const LayerSizes& layer = sizes_.layers[l];
      plan_.host_bytes += static_cast<size_t>(layer.num_experts - plan_.experts[l]) * layer.expert_bytes;
      const ExpertBytes bytes = expert_bytes_of(sizes_, l, plan_);
      plan_.device_bytes_per_token += bytes.device;
      plan_.host_bytes_per_token += bytes.host;
      plan_.bus_bytes_per_token += bytes.bus;
    }
  }

  const ModelSizes& sizes_;
  const PlacementRequest& request_;
  Placement plan_;
  size_t may_hold_ = 0;  // layers whose experts may lie on the device: the first ones
  size_t room_ = 0;      // for routed experts
};

}  // namespace

ModelSizes ModelSizes::of(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config) {
  ModelSizes sizes;
  sizes.layers.resize(weights.layers.size());
  sizes.experts_per_token = config.experts_per_token;
  sizes.hidden_dim = config.hidden_dim;
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    LayerWeights::for_each(size_visit(sizes.layers[l]), weights.layers[l]);
  }
  sizes.embed_bytes = device_bytes(weights.embed);
  if (!weights.tied_head) sizes.head_bytes = device_bytes(weights.head);
  if (config.num_mtp_layers == 0) return sizes;
  MtpWeights::for_each(size_visit(sizes.mtp.emplace()), weights.mtp);
  if (weights.mtp.own_embed) sizes.embed_bytes += device_bytes(weights.mtp.embed);
  if (weights.mtp.own_head) sizes.draft_head_bytes = device_bytes(weights.mtp.head);
  return sizes;
}

Placement plan_placement(const ModelSizes& sizes, const PlacementRequest& request) {
  return Planner(sizes, request).plan();
}

TokenTime expected_time(const Placement& plan, const ModelSizes& sizes, const MachineSpeed& speed) {
  const auto ms = [](double bytes, const std::optional<double>& per_second) -> std::optional<double> {
    if (bytes == 0) return 0.0;
    if (!per_second) return std::nullopt;
    return 1e3 * bytes / *per_second;
  };
  TokenTime time;
  time.device_ms = ms(plan.device_bytes_per_token, speed.device);
  time.host_ms = ms(plan.host_bytes_per_token, speed.host);
  time.bus_ms = ms(plan.bus_bytes_per_token, speed.bus);
  if (!time.device_ms || !time.host_ms || !time.bus_ms) return time;
  double token_ms = *time.device_ms;
  for (size_t l = 0; l < sizes.layers.size(); ++l) {
    const ExpertBytes bytes = expert_bytes_of(sizes, l, plan);
    // The device's experts are in device_ms; where the host takes longer, the device waits for the rest.
    const double here = *ms(bytes.device, speed.device);
    const double there = *ms(bytes.host, speed.host) + *ms(bytes.bus, speed.bus);
    token_ms += std::max(0.0, there - here);
  }
  time.token_ms = token_ms;
  return time;
}

std::string describe(const Placement& plan, const ModelSizes& sizes, const MachineSpeed& speed) {
  const auto num_layers = static_cast<int>(sizes.layers.size());
  int whole = 0, part = 0, with_experts = 0, most = 0;
  for (int l = 0; l < num_layers; ++l) {
    const auto at = static_cast<size_t>(l);
    if (sizes.layers[at].num_experts == 0) continue;
    ++with_experts;
    whole += plan.experts[at] == sizes.layers[at].num_experts ? 1 : 0;
    part += plan.experts[at] > 0 && plan.experts[at] < sizes.layers[at].num_experts ? 1 : 0;
    if (plan.experts[at] < sizes.layers[at].num_experts) most = std::max(most, plan.experts[at]);
  }
  std::string text =
      fmt::format("placement: {} of the device's {} free ({} may be used)\n", size_text(plan.device_bytes()),
                  size_text(plan.free_bytes), size_text(plan.budget_bytes));
  text += fmt::format("  device  trunk {}, MTP layer and draft head {}, context and work {}",
                      size_text(plan.dense_bytes), size_text(plan.mtp_bytes), size_text(plan.session_bytes));
  if (with_experts > 0) {
    text += fmt::format(", routed experts {}", size_text(plan.expert_bytes));
    if (whole == with_experts) {
      text += " (all)";
    } else if (part > 0) {
      text += fmt::format(" ({} of {} in each of {} layers)", most, sizes.layers[0].num_experts, part);
    } else {
      text += fmt::format(" (all of {} of {} layers)", whole, with_experts);
    }
    if (plan.cache_entries > 0) {
      text += fmt::format(", hot experts {} ({} a layer)", size_text(plan.cache_bytes), plan.cache_entries);
    }
  }
  text += "\n";
  text += plan.host_bytes == 0 ? std::string("  RAM     nothing that a token reads\n")
                               : fmt::format("  RAM     routed experts {} (of {} layers)\n", size_text(plan.host_bytes),
                                             with_experts - whole);
  const TokenTime time = expected_time(plan, sizes, speed);
  std::vector<std::string> moved;
  const auto add = [&moved](std::string_view where, double bytes, const std::optional<double>& ms) {
    if (bytes == 0) return;
    moved.push_back(fmt::format("{:.1f} MB {}{}", bytes / 1e6, where, ms ? fmt::format(" ({:.2f} ms)", *ms) : ""));
  };
  add("on the device", plan.device_bytes_per_token, time.device_ms);
  add("in RAM", plan.host_bytes_per_token, time.host_ms);
  add("over the bus", plan.bus_bytes_per_token, time.bus_ms);
  text += fmt::format("  a token moves {}", fmt::join(moved, ", "));
  if (time.token_ms && *time.token_ms > 0) {
    text += fmt::format(": at most {:.1f} tok/s without MTP", 1e3 / *time.token_ms);
  }
  return text + "\n";
}

}  // namespace foretoken
