# The CUDA backend. FORETOKEN_CUDA = OFF | ON (an error without a toolkit) | AUTO (built where a toolkit is found). The kernels' sources are also
# compiled by the host compiler, against an emulation, for the tests: that needs no toolkit.
#
# FORETOKEN_CUDA_ARCHITECTURES: compute capabilities to compile for; empty: this machine's own GPU, or 90 where there is none. Of several, the
# last also goes in as PTX, which newer GPUs compile for themselves.
set(FORETOKEN_CUDA_ARCHITECTURES "" CACHE STRING "GPU architectures, e.g. 80;86;89;90;100;120 (empty: this machine's, else 90)")
set_property(CACHE FORETOKEN_CUDA PROPERTY STRINGS OFF ON AUTO)
if(NOT FORETOKEN_CUDA MATCHES "^(OFF|ON|AUTO)$")
  message(FATAL_ERROR "FORETOKEN_CUDA is ${FORETOKEN_CUDA}: it can be OFF, ON or AUTO")
endif()

set(FORETOKEN_HAVE_CUDA OFF)
if(NOT FORETOKEN_CUDA STREQUAL "OFF")
  find_program(FORETOKEN_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH PATHS /usr/local/cuda/bin /opt/cuda/bin PATH_SUFFIXES bin)
  if(FORETOKEN_NVCC)
    if(FORETOKEN_CUDA_ARCHITECTURES)
      set(architectures ${FORETOKEN_CUDA_ARCHITECTURES})
      list(LENGTH architectures count)
      if(count GREATER 1)
        list(POP_BACK architectures newest)
        list(TRANSFORM architectures APPEND "-real")
        list(APPEND architectures ${newest})
      endif()
    else()
      execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE no_gpu OUTPUT_QUIET ERROR_QUIET)
      if(no_gpu STREQUAL "0")
        set(architectures native)
      else()
        set(architectures 90)
        message(STATUS "No GPU here: kernels for capability 9.0, and PTX for newer ones. For others: -DFORETOKEN_CUDA_ARCHITECTURES, "
                       "or the preset release-all-gpus")
      endif()
    endif()
    set(CMAKE_CUDA_ARCHITECTURES ${architectures})
    set(CMAKE_CUDA_COMPILER ${FORETOKEN_NVCC})
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25.1 does not know that nvcc 12 and later have C++20
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit 12.8 REQUIRED)
    if(NOT TARGET CUDA::cublas)
      message(FATAL_ERROR "The CUDA toolkit at ${CUDAToolkit_LIBRARY_ROOT} has no cuBLAS: install it (package libcublas-dev), "
                          "or configure with -DFORETOKEN_CUDA=OFF")
    endif()
    set(FORETOKEN_HAVE_CUDA ON)
    message(STATUS "CUDA ${CUDAToolkit_VERSION} for ${architectures}")
  elseif(FORETOKEN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FORETOKEN_CUDA is ON and no nvcc was found: install the CUDA toolkit (12.8 or newer), put nvcc on the PATH, "
                        "or configure with -DFORETOKEN_CUDA=OFF")
  endif()
endif()

# Files of kernels/ that are not part of the CPU program. What names no device goes into both builds.
file(GLOB_RECURSE FORETOKEN_CUDA_KERNELS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*.cu)
set(FORETOKEN_CUDA_COMMON ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_bandwidth.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_faults.cpp
  ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_matrix.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_rows.cpp
  ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_runtime_common.cpp)

# foretoken_cuda: the GPU backend, or, in a build without CUDA, only the answer that there is none (cuda_device.h).
function(foretoken_cuda_library)
  add_library(foretoken_cuda STATIC ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_device.cpp)
  foretoken_warnings(foretoken_cuda)
  target_link_libraries(foretoken_cuda PUBLIC foretoken_kernels)
  if(FORETOKEN_HAVE_CUDA)
    target_sources(foretoken_cuda PRIVATE ${FORETOKEN_CUDA_COMMON} ${FORETOKEN_CUDA_KERNELS}
      ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_blas.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_runtime_wrap.cpp)
    target_compile_definitions(foretoken_cuda PUBLIC FORETOKEN_HAVE_CUDA)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " built_for)
    set_source_files_properties(${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_device.cpp PROPERTIES
      COMPILE_DEFINITIONS "FORETOKEN_CUDA_BUILT_FOR=\"${built_for}\"")
    # cuBLAS is loaded when a run asks for it (cuda_blas.cpp): the build takes its header alone.
    set_source_files_properties(${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_blas.cpp PROPERTIES
      COMPILE_DEFINITIONS "FORETOKEN_CUDA_LIBRARY_DIR=\"${CUDAToolkit_LIBRARY_DIR}\"")
    # The contract: no contraction, IEEE division and square root, denormals kept (nvcc's defaults but for the first).
    target_compile_options(foretoken_cuda PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --prec-div=true --prec-sqrt=true --ftz=false -Xcompiler=-Wall -Werror=all-warnings>)
    target_link_libraries(foretoken_cuda PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
  endif()
endfunction()

# foretoken_cuda_engine: sessions on the GPU (engine/cuda/cuda_*.cpp). A build without CUDA has none.
function(foretoken_cuda_engine_library)
  if(FORETOKEN_HAVE_CUDA)
    foretoken_cuda_engine_of(foretoken_cuda_engine foretoken_cuda)
  endif()
endfunction()

# The same sources over the runtime of one library: cudart, or the emulation.
function(foretoken_cuda_engine_of name runtime)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/engine/cuda/cuda_*.cpp)
  add_library(${name} STATIC ${sources})
  foretoken_warnings(${name})
  target_link_libraries(${name} PUBLIC foretoken_engine ${runtime})
endfunction()

# Sources whose loads and stores the emulation looks at; -g1 so that it can name their lines.
function(foretoken_check_accesses)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-fsanitize=thread;-g1")
endfunction()

# The tests cuda_*_test.cpp below tests/kernels/, twice: against the emulation, on every machine, and against the GPU, where they report *skipped*
# without one. Called from tests/, where the .cu files are C++ sources.
function(foretoken_cuda_tests)
  file(GLOB_RECURSE tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/kernels/cuda_*_test.cpp)
  list(FILTER tests EXCLUDE REGEX "/cuda_(emulation|checks)_test\\.cpp$")
  file(GLOB_RECURSE session_tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/mtp/cuda_*_test.cpp)
  add_library(foretoken_cuda_test_main STATIC ${CMAKE_SOURCE_DIR}/tests/kernels/cuda/cuda_test_main.cpp)
  foretoken_test_options(foretoken_cuda_test_main)
  target_include_directories(foretoken_cuda_test_main PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(foretoken_cuda_test_main PUBLIC Catch2::Catch2)

  find_package(Boost 1.74 QUIET COMPONENTS context)
  if(TARGET Boost::context)
    add_library(foretoken_cuda_emulation STATIC ${FORETOKEN_CUDA_COMMON} ${FORETOKEN_CUDA_KERNELS}
      ${CMAKE_SOURCE_DIR}/kernels/cuda/emulation/cuda_emulation.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/emulation/cuda_emulated_blas.cpp
      ${CMAKE_SOURCE_DIR}/kernels/cuda/emulation/cuda_emulated_runtime.cpp)
    set_source_files_properties(${FORETOKEN_CUDA_KERNELS} PROPERTIES LANGUAGE CXX)
    foretoken_warnings(foretoken_cuda_emulation)
    target_compile_options(foretoken_cuda_emulation PRIVATE -O1)  # half the time to compile
    target_compile_definitions(foretoken_cuda_emulation PUBLIC FORETOKEN_CUDA_EMULATION
      PRIVATE FORETOKEN_KERNEL_TABLE="${CMAKE_SOURCE_DIR}/docs/cuda-kernels.tsv")
    target_link_libraries(foretoken_cuda_emulation PUBLIC foretoken_kernels PRIVATE Boost::context)
    if(NOT FORETOKEN_SANITIZE)
      # Every load and store of the kernels calls access_checker.cpp. The sanitizers' own builds look at memory themselves.
      target_sources(foretoken_cuda_emulation PRIVATE ${CMAKE_SOURCE_DIR}/kernels/cuda/emulation/access_checker.cpp
        ${CMAKE_SOURCE_DIR}/kernels/cuda/emulation/emulated_memory.cpp ${CMAKE_SOURCE_DIR}/kernels/cuda/emulation/warp_traffic.cpp)
      target_compile_definitions(foretoken_cuda_emulation PUBLIC FORETOKEN_ACCESS_CHECKS)
      foretoken_check_accesses(${FORETOKEN_CUDA_KERNELS})
    endif()
    add_executable(test_cuda_emulation ${tests} ${CMAKE_SOURCE_DIR}/tests/kernels/cuda/cuda_emulation_test.cpp)
    if(NOT FORETOKEN_SANITIZE)
      target_sources(test_cuda_emulation PRIVATE ${CMAKE_SOURCE_DIR}/tests/kernels/cuda/cuda_checks_test.cpp)
      foretoken_check_accesses(${CMAKE_SOURCE_DIR}/tests/kernels/cuda/cuda_checks_test.cpp)
    endif()
    # At -O1 functions of <string> would not be inlined, and the instrumented ones of cuda_checks_test.cpp be linked for all.
    foretoken_warnings(test_cuda_emulation)
    target_link_libraries(test_cuda_emulation PRIVATE foretoken_cuda_test_main foretoken_cuda_emulation foretoken_engine)
    catch_discover_tests(test_cuda_emulation TEST_PREFIX "cuda emulation: " PROPERTIES TIMEOUT 1200)
    foretoken_cuda_engine_of(foretoken_cuda_emulation_engine foretoken_cuda_emulation)
    add_executable(test_cuda_session_emulation ${session_tests})
    foretoken_test_options(test_cuda_session_emulation)
    target_compile_definitions(test_cuda_session_emulation PRIVATE FORETOKEN_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    target_link_libraries(test_cuda_session_emulation PRIVATE
      foretoken_cuda_test_main foretoken_reference foretoken_mtp foretoken_cuda_emulation_engine)
    catch_discover_tests(test_cuda_session_emulation TEST_PREFIX "cuda session emulation: " PROPERTIES TIMEOUT 1200)
  else()
    message(WARNING "Boost.Context was not found: the CUDA kernels stay untested (install libboost-context-dev)")
  endif()

  if(FORETOKEN_HAVE_CUDA)
    add_executable(test_cuda ${tests})
    foretoken_test_options(test_cuda)
    target_link_libraries(test_cuda PRIVATE foretoken_cuda_test_main foretoken_cuda foretoken_engine)
    catch_discover_tests(test_cuda TEST_PREFIX "cuda: " PROPERTIES TIMEOUT 1200 SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu)
    add_executable(test_cuda_session ${session_tests})
    foretoken_test_options(test_cuda_session)
    target_link_libraries(test_cuda_session PRIVATE foretoken_cuda_test_main foretoken_reference foretoken_mtp foretoken_cuda_engine)
    catch_discover_tests(test_cuda_session TEST_PREFIX "cuda session: "
      PROPERTIES TIMEOUT 1200 SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu)
  endif()
endfunction()
