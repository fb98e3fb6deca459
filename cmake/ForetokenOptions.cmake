# Helpers of the build: warnings and the arithmetic's flags for every target, per-instruction-set flags by file name.

function(foretoken_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -ffp-contract=off -fno-math-errno>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 sees overlapping copies in std::string's operator+ where there are none (GCC bug 105651).
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
  endif()
  if(FORETOKEN_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${FORETOKEN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1>)
    target_link_options(${target} PRIVATE -fsanitize=${FORETOKEN_SANITIZE})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # With instrumentation GCC 12 loses track of values inside <regex> and fmt and warns of what cannot happen.
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized -Wno-stringop-overflow>)
    endif()
  endif()
endfunction()

# What a test compiles is short-lived: half the compiler's time. What it tests is optimised as always.
function(foretoken_test_options target)
  foretoken_warnings(${target})
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# Without -fno-tree-ter GCC moves a chain of vector additions to where its sum is used and keeps every term of every row in memory until then: a
# third of a kernel's time. -fno-tree-slp-vectorize: it would gather the rows' pointers into vectors and take them apart again.
set(FORETOKEN_FLAGS_avx2 -fno-tree-ter -fno-tree-slp-vectorize -mavx2 -mfma -mf16c -mbmi2)
if(FORETOKEN_SANITIZE)
  # Instrumented, the unrolled kernels take g++ minutes each at -O2.
  list(APPEND FORETOKEN_FLAGS_avx2 -O1)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Half of the rest goes to the choice of registers, whose quality nobody needs here: 200 s a file become 80.
    list(APPEND FORETOKEN_FLAGS_avx2 -fira-algorithm=priority -fira-region=one)
  endif()
endif()
set(FORETOKEN_FLAGS_avx2vnni ${FORETOKEN_FLAGS_avx2} -mavxvnni)
set(FORETOKEN_FLAGS_avx512 ${FORETOKEN_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
set(FORETOKEN_FLAGS_avx512vnni ${FORETOKEN_FLAGS_avx512} -mavx512vnni)

# foretoken_library(folder [folder it may call]): the static library of one folder with its rooms. A file that ends in _avx2.cpp, _avx2vnni.cpp,
# _avx512.cpp or _avx512vnni.cpp is compiled for that instruction set and run only where the processor has it.
function(foretoken_library name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${name}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/(main|cuda_[^/]*|mpi_[^/]*)\\.cpp$")  # see ForetokenCuda.cmake, ForetokenMpi.cmake
  add_library(foretoken_${name} STATIC ${sources})
  target_include_directories(foretoken_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  foretoken_warnings(foretoken_${name})
  foreach(isa avx2 avx2vnni avx512 avx512vnni)
    set(files ${sources})
    list(FILTER files INCLUDE REGEX "_${isa}\\.cpp$")
    if(files)
      set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${FORETOKEN_FLAGS_${isa}}")
    endif()
  endforeach()
  if(ARGN)
    target_link_libraries(foretoken_${name} PUBLIC foretoken_${ARGN})
  endif()
endfunction()

# Puts the server's page into the target, as page.cpp.in has it.
function(foretoken_embed_page target)
  set(page ${CMAKE_SOURCE_DIR}/tools/serve/page.html)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${page})
  file(READ ${page} FORETOKEN_PAGE)
  configure_file(${CMAKE_SOURCE_DIR}/cmake/page.cpp.in ${CMAKE_BINARY_DIR}/page.cpp @ONLY)
  target_sources(${target} PRIVATE ${CMAKE_BINARY_DIR}/page.cpp)
endfunction()

# Writes version.cpp.in with version and commit into the target.
function(foretoken_embed_commit target)
  execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} rev-parse --short=12 HEAD
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT commit)
    set(commit "unknown")
  endif()
  set(FORETOKEN_COMMIT ${commit})
  configure_file(${CMAKE_SOURCE_DIR}/cmake/version.cpp.in ${CMAKE_BINARY_DIR}/version.cpp @ONLY)
  target_sources(${target} PRIVATE ${CMAKE_BINARY_DIR}/version.cpp)
endfunction()
