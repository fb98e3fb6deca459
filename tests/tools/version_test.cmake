# What `git describe --tags` says and the version that the program and its package get from it.
include(${CMAKE_CURRENT_LIST_DIR}/../../cmake/ForetokenVersion.cmake)

function(check described expected)
  foretoken_version_from_tag(version "${described}")
  if(NOT version STREQUAL expected)
    message(SEND_ERROR "'${described}' gave the version '${version}', not '${expected}'")
  endif()
endfunction()

check("v1.2.3" "1.2.3")
check("0.1" "0.1")
check("v1.2.3-5-g0123abcdef01" "1.2.3+5.g0123abcdef01")
check("v1.3-rc1" "1.3~rc1")
check("v1.3-rc1-12-gabc" "1.3~rc1+12.gabc")
check("nightly" "")
check("nightly-3-gabc" "")
check("v1/2" "")
check("" "")
