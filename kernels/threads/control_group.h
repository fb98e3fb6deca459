#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

/// A folder of the control group that this process is in, or of a group around it: all their limits hold.
struct ControlGroupFolder {
  std::string path;
  bool is_v2 = false;  // the two versions name their files differently
};

/// The folders that bound this process for `controller` ("cpu", "memory"), innermost first; empty where control groups
/// are not mounted. `root` stands before every path that is read ("" outside tests).
/// https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/
[[nodiscard]] std::vector<ControlGroupFolder> control_group_folders(std::string_view controller,
                                                                    const std::string& root = "");

/// The file's first line, or "" if it cannot be read.
[[nodiscard]] std::string read_first_line(const std::string& path);

}  // namespace foretoken
