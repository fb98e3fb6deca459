#include "engine/cuda/cuda_io.h"

namespace foretoken::cuda {

void CudaIo::allocate() {
  memory.allocate("rows and logits");
  for (MirroredArena* arena : {&windows.memory, &chunks.memory, &result.memory, &mtp.memory, &gather.memory})
    arena->allocate("tables of a pass");
}

}  // namespace foretoken::cuda
