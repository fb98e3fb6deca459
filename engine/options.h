#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/isa.h"
#include "kernels/threads/numa.h"
#include "moe/moe_verify.h"

namespace foretoken {

/// Where trunk and experts run. Split: the trunk and what experts fit on the GPU, the others on the CPU. The bits are
/// the same everywhere, unless SessionOptions::cublas is set.
enum class Device { kCpu, kCuda, kSplit };

/// What the environment asks for. Read once at start; see `foretoken decode --help`.
struct Environment {
  std::optional<MoeVerify> moe_verify;   // FORETOKEN_MOE_VERIFY=grouped|per-token
  std::optional<Isa> isa;                // FORETOKEN_ISA=scalar|avx2|avx512
  std::optional<int> threads;            // FORETOKEN_THREADS=N, 1..ThreadTeam::kMaxThreads
  std::optional<bool> numa;              // FORETOKEN_NUMA=on|off
  std::optional<bool> dependent_launch;  // FORETOKEN_CUDA_DEPENDENT_LAUNCH=on|off
  std::vector<std::string> set;          // "NAME=value" of each variable that is set, for printing

  /// Throws UsageError listing the known values for an unknown one, InputError for an instruction set that the
  /// processor lacks.
  [[nodiscard]] static Environment read();
};

class Model;
class Cluster;

/// How a model is shared out over the processes of a cluster ("ranks"). An output row is always computed by one of
/// them, whole, so that no sum is split and no bit depends on the shares.
///
///   kRows     attention and delta nets by heads, every other matrix and every expert by output rows
///   kExperts  the same, but each routed expert whole on one rank
///   kLayers   whole layers, the head and the MTP layer on the last rank
enum class ClusterMode : uint8_t { kRows, kExperts, kLayers };
inline constexpr ClusterMode kClusterModes[] = {ClusterMode::kRows, ClusterMode::kExperts, ClusterMode::kLayers};

/// Which part of a model one process of a cluster loads.
struct ShareRequest {
  ClusterMode mode = ClusterMode::kRows;
  std::vector<double> shares;  // [ranks] how much of the work each takes, in any unit
  int rank = 0;
};

struct LoadOptions {
  std::string mtp_path;  // a file with the MTP layer, of a model that has none in its own; see open_model()
  bool repack = true;    // interleave the weights while loading; false: compute from the file's own layout (same bits)
  /// Called when everything but the weights is known and has been checked; may throw, so that nothing is read in vain.
  std::function<void(const Model& without_weights)> on_header;
  /// Called while loading with bytes done and bytes in all; may be empty.
  std::function<void(size_t done, size_t all)> progress;
  /// Where the rows of repacked weights are put; a session over the same nodes reads them from there (same bits over
  /// any others). Weights in the file's layout lie where the system has read the file.
  NumaNodes nodes = NumaNodes::of_machine();
  std::optional<ShareRequest> share;  // nothing: the whole model
};

/// What of the routed experts a session with Device::kSplit keeps on the GPU; plan_placement fills it in.
struct SplitOptions {
  std::vector<int> experts;  // [num_layers] of trunk layer l the experts [0, experts[l])
  int cache_entries = 0;     // hot experts beside them, in each layer that is not whole there
  /// Experts that a layer of a pass misses and the device reads itself, 0 .. cuda::kMostFetched at most; kMeasured: as the
  /// measured times suggest. (An optional here makes g++ 12 warn of the vector before it.)
  static constexpr int kMeasured = -1;
  int fetched = kMeasured;
};

struct SessionOptions {
  int64_t ctx_size = 0;  // positions; 0: the model's own context, at most 4096
  KvType kv_type = KvType::kF16;
  int prompt_chunk = 256;  // rows of one pass over the prompt
  int max_window = 1;      // rows of the widest verify pass: k + 1
  int parallel = 1;        // sequences at a time
  /// KV memory of all sequences together; 0: a whole context for each. At least one page is taken.
  size_t kv_memory_bytes = 0;
  bool with_mtp = false;  // keep the MTP layer's cache and buffers. REQUIRES: the model has an MTP layer
  MoeVerify moe_verify = MoeVerify::kGrouped;
  Device device = Device::kCpu;
  SplitOptions split;  // with Device::kSplit
  /// F16 and BF16 matrices on the GPU by cuBLAS, whose bits are not the CPU's. REQUIRES: not Device::kCpu.
  bool cublas = false;
  /// Kernels on the GPU may begin before those ahead have ended (Launches::kDependent). The bits are the same.
  bool dependent_launch = true;
  Isa isa = best_isa();
  int threads = 0;                            // 0: available_cores()
  NumaNodes nodes = NumaNodes::of_machine();  // that the threads are laid over
  bool profile = false;                       // time every work item (some 50 ns each); see Engine::profile
  /// Set from a signal handler or another thread: a pass on the CPU that runs gives up within a moment and throws
  /// Interrupted. The sequences in it are lost.
  const std::atomic<bool>* stop = nullptr;
  /// The other processes that hold the rest of a model that was loaded as a share; nullptr for a whole one.
  Cluster* cluster = nullptr;
};

}  // namespace foretoken
