#pragma once

#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "engine/part_file.h"

namespace foretoken {

/// Standard output for a command's result. A reader that goes away (`| head`) is not an error: write() returns false
/// from then on and the command ends quietly with exit 0. A full disk is one: InputError.
class ResultStream {
 public:
  /// Writes at once. False once the reader has gone, or was still busy when a signal asked the program to end. Throws
  /// InputError for any other failure.
  bool write(std::string_view text);
  [[nodiscard]] bool reader_gone() const { return reader_gone_; }

 private:
  bool reader_gone_ = false;
};

/// A file that a command writes at its end, opened at its start, so that a path that cannot be written is known before
/// the work and not after it. Until commit() the old file of that name, if any, is untouched (see PartFile).
class OutputFile {
 public:
  /// `path` empty: nothing is written; "-" or a path that leads to it (/dev/stdout): standard output. `flag` names the
  /// flag in errors. Throws InputError if the file cannot be created.
  OutputFile(std::string path, std::string_view flag);

  [[nodiscard]] bool wanted() const { return is_stdout_ || file_.has_value(); }
  [[nodiscard]] bool is_stdout() const { return is_stdout_; }
  void write(std::string_view bytes);  // throws InputError, e.g. for a full disk
  void commit();                       // closes and moves the file to its name

 private:
  const std::string flag_;
  bool is_stdout_ = false;
  std::optional<PartFile> file_;
};

/// Throws UsageError if standard output would get more than one of these.
void check_one_stdout(std::initializer_list<std::pair<std::string_view, bool>> flags);

/// One JSON object, indented, with a newline; bytes that are not UTF-8 become U+FFFD.
void write_json(OutputFile& file, const nlohmann::ordered_json& object);

}  // namespace foretoken
