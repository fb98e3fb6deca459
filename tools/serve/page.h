#pragma once

#include <string_view>

namespace foretoken {

/// tools/serve/page.html: what GET / answers.
extern const std::string_view kPage;

}  // namespace foretoken
