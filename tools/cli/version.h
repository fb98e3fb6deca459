#pragma once

namespace foretoken {

extern const char* const kVersion;
extern const char* const kCommit;

}  // namespace foretoken
