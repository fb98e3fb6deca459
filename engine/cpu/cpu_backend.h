#pragma once

#include <memory>

#include "engine/backend.h"
#include "engine/model/shapes.h"

namespace foretoken {

/// Everything on the CPU, straight from the model's own weights. Throws InputError if the memory does not fit what is
/// available. REQUIRES: options has its defaults filled in.
[[nodiscard]] std::unique_ptr<Backend> make_cpu_backend(const Model& model, const SessionOptions& options);

[[nodiscard]] SessionMemory cpu_session_memory(const ModelShapes& shapes, const SessionOptions& options);

}  // namespace foretoken
