#pragma once

#include "engine/session.h"
#include "mtp/accept.h"

namespace foretoken {

/// Takes back what a verify pass computed beyond the accepted drafts: the KV length moves to the accepted end, and the
/// recurrent state, which the pass left behind the window, will be replayed over the accepted rows by the next pass.
/// Nothing is copied.
void rollback(Session& session, const Acceptance& acceptance);

}  // namespace foretoken
