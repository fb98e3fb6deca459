#include "mtp/rollback.h"

namespace foretoken {

void rollback(Session& session, const Acceptance& acceptance) {
  session.commit(acceptance.num_accepted + 1);
}

}  // namespace foretoken
