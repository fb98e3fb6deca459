#include "kernels/threads/control_group.h"

#include <algorithm>
#include <fstream>
#include <sstream>

namespace foretoken {

namespace {

struct Mount {
  std::string root;   // the group that the mount point shows; not "/" in a container
  std::string point;  // where
  bool is_v2 = false;
};

bool lists(std::string_view comma_separated, std::string_view word) {
  while (!comma_separated.empty()) {
    const size_t comma = comma_separated.find(',');
    if (comma_separated.substr(0, comma) == word) return true;
    if (comma == std::string_view::npos) return false;
    comma_separated.remove_prefix(comma + 1);
  }
  return false;
}

// proc_pid_mountinfo(5): id parent major:minor root point options [tags ...] - type source super_options
std::vector<Mount> find_mounts(std::string_view controller, const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string skipped, type, source, options;
    Mount mount;
    words >> skipped >> skipped >> skipped >> mount.root >> mount.point;
    while (words >> skipped && skipped != "-") {
    }
    words >> type >> source >> options;
    mount.is_v2 = type == "cgroup2";
    if (mount.is_v2 || (type == "cgroup" && lists(options, controller))) mounts.push_back(mount);
  }
  return mounts;
}

// cgroups(7), lines of /proc/self/cgroup: id:controllers:path, no controllers for version 2.
std::string find_group(std::string_view controller, bool is_v2, const std::string& root) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string_view controllers = std::string_view(line).substr(first + 1, second - first - 1);
    if (is_v2 ? controllers.empty() : lists(controllers, controller)) return line.substr(second + 1);
  }
  return "/";
}

}  // namespace

std::vector<ControlGroupFolder> control_group_folders(std::string_view controller, const std::string& root) {
  std::vector<ControlGroupFolder> folders;
  for (const Mount& mount : find_mounts(controller, root)) {
    std::string group = find_group(controller, mount.is_v2, root);
    // The path inside the mount. A group outside of what the mount shows ("/../x" in a namespace) leaves the mount
    // point itself.
    if (mount.root != "/") group = group.starts_with(mount.root) ? group.substr(mount.root.size()) : "";
    if (group.starts_with("/..")) group.clear();
    while (!group.empty() && group.back() == '/') group.pop_back();
    for (;;) {
      folders.push_back({root + mount.point + group, mount.is_v2});
      if (group.empty()) break;
      group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
    }
  }
  return folders;
}

std::string read_first_line(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

}  // namespace foretoken
