#pragma once

namespace foretoken {

/// Makes sessions with options.device == kCuda possible in this program (see set_device_backend).
void use_cuda_backend();

}  // namespace foretoken
