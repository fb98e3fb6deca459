#pragma once

#include <memory>

#include "engine/backend.h"
#include "engine/model/shapes.h"
#include "engine/transport.h"

namespace foretoken {

/// Everything on the CPU, straight from the model's own weights. Throws InputError if the memory does not fit what is
/// available. REQUIRES: options has its defaults filled in.
///
/// Of a share of a model it computes that share, together with the other processes' backends over `transport`: all of
/// them are asked for the same passes at the same time. KV pages and states then hold this process's heads or layers,
/// logits its rows of the head, in rising order; sequences, ids and draft groups are the whole model's. With
/// ClusterMode::kLayers hidden rows, logits and the MTP layer are the last process's.
[[nodiscard]] std::unique_ptr<Backend> make_cpu_backend(const Model& model, const SessionOptions& options,
                                                        Transport* transport = nullptr);

[[nodiscard]] SessionMemory cpu_session_memory(const ModelShapes& shapes, const SessionOptions& options);

}  // namespace foretoken
