#include "tools/serve/page.h"

#include "tools/serve/routes.h"

namespace foretoken {

void add_page(HttpServer& server) {
  // It holds nothing that a key protects, and asks for the key itself.
  server.open_to_all("/");
  server.route_get("/", [](const httplib::Request&, httplib::Response& response) {
    // Whatever a model writes, nothing is loaded from elsewhere and nothing is sent there.
    response.set_header("Content-Security-Policy",
                        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
                        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    response.set_header("X-Content-Type-Options", "nosniff");
    response.set_content(kPage.data(), kPage.size(), "text/html; charset=utf-8");
  });
}

}  // namespace foretoken
