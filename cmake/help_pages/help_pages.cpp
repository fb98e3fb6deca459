// Writes man page and shell completion of the program from its own --help texts.
//   help_pages PROGRAM VERSION FOLDER     (writes FOLDER/foretoken.1, foretoken.bash, _foretoken)
#include <fmt/format.h>

#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "pages.h"

namespace {

void write(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be written", path.string()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: help_pages PROGRAM VERSION FOLDER\n");
    return 2;
  }
  try {
    using namespace foretoken::help_pages;
    const ProgramHelp help = read_help(argv[1]);
    const std::filesystem::path folder = argv[3];
    std::filesystem::create_directories(folder);
    write(folder / "foretoken.1", man_page(help, argv[2]));
    write(folder / "foretoken.bash", bash_completion(help));
    write(folder / "_foretoken", zsh_completion(help));
  } catch (const std::exception& error) {
    fmt::print(stderr, "help_pages: {}\n", error.what());
    return 1;
  }
  return 0;
}
