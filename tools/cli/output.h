#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace foretoken {

/// Standard output for a command's result. A reader that goes away (`| head`) is not an error: write() returns false
/// from then on and the command ends quietly with exit 0. A full disk is one: InputError.
class ResultStream {
 public:
  /// Writes and flushes. False once the reader has gone. Throws InputError for any other failure.
  bool write(std::string_view text);
  [[nodiscard]] bool reader_gone() const { return reader_gone_; }

 private:
  bool reader_gone_ = false;
};

/// A file that a command writes at its end, opened at its start, so that a path that cannot be written is known before
/// the work and not after it. Until commit() the old file of that name, if any, is untouched.
class OutputFile {
 public:
  /// `path` empty: nothing is written; "-": standard output. `flag` names the flag in errors.
  /// Throws InputError if the file cannot be created.
  OutputFile(std::string path, std::string_view flag);
  ~OutputFile();  // without commit(): removes what was begun
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  [[nodiscard]] bool wanted() const { return !path_.empty(); }
  [[nodiscard]] bool is_stdout() const { return path_ == "-"; }
  void write(std::string_view bytes);  // throws InputError, e.g. for a full disk
  void commit();                       // flushes, closes and moves the file to its name

 private:
  [[noreturn]] void fail(std::string_view doing) const;
  std::string path_, flag_, part_path_;
  std::FILE* file_ = nullptr;
};

/// One JSON object, indented, with a newline; bytes that are not UTF-8 become U+FFFD.
void write_json(OutputFile& file, const nlohmann::ordered_json& object);

}  // namespace foretoken
