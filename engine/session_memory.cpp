#include "engine/session_memory.h"

#include <algorithm>

#include "engine/cpu/cpu_backend.h"
#include "engine/cuda/cuda_io.h"
#include "engine/engine.h"
#include "engine/model/shapes.h"

namespace foretoken {

SessionOptions with_defaults(const ModelConfig& config, SessionOptions o) {
  if (o.ctx_size == 0) o.ctx_size = std::min(config.context_length, kDefaultContext);
  if (o.threads == 0) o.threads = available_cores();
  o.prompt_chunk = static_cast<int>(std::min<int64_t>(o.prompt_chunk, o.ctx_size));
  return o;
}

SessionMemory session_memory(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config,
                             const SessionOptions& options) {
  const SessionOptions o = with_defaults(config, options);
  const ModelShapes shapes = ModelShapes::of(weights, config, o.with_mtp);
  return o.device == Device::kCpu ? cpu_session_memory(shapes, o) : cuda::device_session_memory(shapes, weights, o);
}

}  // namespace foretoken
