#pragma once

#include <string_view>

namespace foretoken {

/// Tells the service manager that started the program ("READY=1", "STOPPING=1"), by the datagram that sd_notify(3)
/// describes. Does nothing where $NOTIFY_SOCKET names none.
void notify_service_manager(std::string_view state);

}  // namespace foretoken
