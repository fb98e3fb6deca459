#include "tools/commands.h"

int main(int argc, char** argv) {
  return foretoken::run_program(argc, argv);
}
