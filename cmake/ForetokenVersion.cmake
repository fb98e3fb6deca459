# The version: that of the git tag, or the project's where there is no tag.

# What `git describe --tags` says, as a version that orders as Debian orders it: v1.2.3 is 1.2.3, five commits later 1.2.3+5.g0123abc, and
# v1.3-rc1 is 1.3~rc1, before 1.3. Empty if it is no version.
function(foretoken_version_from_tag result described)
  set(${result} "" PARENT_SCOPE)
  set(since "")
  if(described MATCHES "^(.*)-([0-9]+)-g([0-9a-f]+)$")
    set(described "${CMAKE_MATCH_1}")
    set(since "+${CMAKE_MATCH_2}.g${CMAKE_MATCH_3}")
  endif()
  if(described MATCHES "^v?([0-9][0-9A-Za-z.+~-]*)$")
    string(REPLACE "-" "~" version "${CMAKE_MATCH_1}")
    set(${result} "${version}${since}" PARENT_SCOPE)
  endif()
endfunction()

function(foretoken_git_version result)
  execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} describe --tags --match "v[0-9]*" --match "[0-9]*"
    OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  foretoken_version_from_tag(version "${described}")
  if(NOT version)
    set(version ${PROJECT_VERSION})
  endif()
  set(${result} ${version} PARENT_SCOPE)
endfunction()
