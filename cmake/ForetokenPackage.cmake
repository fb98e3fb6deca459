# Installation (cmake --install) and the Debian package (cpack): the program, its man page and completions, the documentation.
#
# Man page and completions are made from the program's own --help, by a program of ours that is built for it alone.
include(GNUInstallDirs)

file(GLOB help_pages_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/help_pages/*.cpp)
add_executable(foretoken_help_pages ${help_pages_sources})
foretoken_warnings(foretoken_help_pages)
target_link_libraries(foretoken_help_pages PRIVATE fmt::fmt)

set(pages ${CMAKE_BINARY_DIR}/pages)
add_custom_command(OUTPUT ${pages}/foretoken.1 ${pages}/foretoken.bash ${pages}/_foretoken
  COMMAND foretoken_help_pages $<TARGET_FILE:foretoken> ${FORETOKEN_VERSION} ${pages}
  DEPENDS foretoken foretoken_help_pages VERBATIM COMMENT "Writing man page and completions from --help")

# The first part of a name and mail address that is known: what Debian's tools take, what git has, else the account's.
function(foretoken_person result)
  set(name "$ENV{DEBFULLNAME}")
  set(mail "$ENV{DEBEMAIL}")
  if(NOT name)
    execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} config user.name
      OUTPUT_VARIABLE name OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT mail)
    execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} config user.email
      OUTPUT_VARIABLE mail OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT name)
    set(name "unknown")
  endif()
  if(NOT mail)
    cmake_host_system_information(RESULT host QUERY HOSTNAME)
    set(mail "root@${host}")
  endif()
  set(${result} "${name} <${mail}>" PARENT_SCOPE)
endfunction()

# Debian's changelog: one entry, with the commits since the tag before this commit.
function(foretoken_write_changelog path person)
  execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} log -1 --format=%cD
    OUTPUT_VARIABLE date OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} describe --tags --abbrev=0 HEAD^
    OUTPUT_VARIABLE before OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(range HEAD)
  if(before)
    set(range ${before}..HEAD)
  endif()
  execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} log ${range} --no-merges "--format=  * %s"
    OUTPUT_VARIABLE changes OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(NOT date OR NOT changes)  # a source without its history
    string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
    set(changes "  * Version ${FORETOKEN_VERSION}.")
  endif()
  file(WRITE ${path} "foretoken (${FORETOKEN_VERSION}) unstable; urgency=medium\n\n${changes}\n\n -- ${person}  ${date}\n")
endfunction()

# Debian's copyright file: our licence, where the source has one, and those of the libraries that are compiled in from their headers.
function(foretoken_write_copyright path)
  file(GLOB licences ${CMAKE_SOURCE_DIR}/LICEN[CS]E* ${CMAKE_SOURCE_DIR}/COPYING*)
  set(text "Foretoken\n=========\n\n")
  foreach(licence ${licences})
    file(READ ${licence} content)
    string(APPEND text "${content}\n")
  endforeach()
  if(NOT licences)
    string(APPEND text "The source from which this package was built has no licence file.\n\n")
  endif()
  foreach(library nlohmann-json3-dev libfmt-dev)
    if(EXISTS /usr/share/doc/${library}/copyright)
      file(READ /usr/share/doc/${library}/copyright content)
      string(APPEND text "Compiled in from headers: ${library}\n====================================\n\n${content}\n")
    endif()
  endforeach()
  file(WRITE ${path} "${text}")
endfunction()

foretoken_person(person)
file(MAKE_DIRECTORY ${pages})
foretoken_write_changelog(${pages}/changelog ${person})
foretoken_write_copyright(${pages}/copyright)

# Debian has man page and changelog compressed; without a name and a time in them, equal builds give equal files.
find_program(FORETOKEN_GZIP gzip)
set(man_page ${pages}/foretoken.1)
set(changelog ${pages}/changelog)
if(FORETOKEN_GZIP)
  foreach(file man_page changelog)
    add_custom_command(OUTPUT ${${file}}.gz COMMAND ${FORETOKEN_GZIP} -9nkf ${${file}} DEPENDS ${${file}} VERBATIM)
    string(APPEND ${file} .gz)
  endforeach()
endif()
add_custom_target(foretoken_pages ALL DEPENDS ${man_page} ${changelog} ${pages}/foretoken.bash ${pages}/_foretoken)

# Where zsh looks: a distribution's packages have a folder of their own in Debian.
set(zsh_folder ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(zsh_folder ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions)
endif()

file(GLOB documentation CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/docs/*.md)
install(TARGETS foretoken)
install(FILES ${man_page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${pages}/foretoken.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME foretoken)
install(FILES ${pages}/_foretoken DESTINATION ${zsh_folder})
# The service starts where somebody has enabled it and named a model.
install(FILES ${CMAKE_SOURCE_DIR}/cmake/foretoken.service DESTINATION lib/systemd/system)
install(FILES ${documentation} ${changelog} ${pages}/copyright DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME foretoken)
set(CPACK_PACKAGE_VERSION ${FORETOKEN_VERSION})
set(CPACK_PACKAGE_CONTACT ${person})
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "exact and fast decoding of Mixture-of-Experts language models")
set(CPACK_PACKAGE_DESCRIPTION "Decodes Mixture-of-Experts language models from GGUF files by multi-token prediction:
the model's own MTP layer drafts, one pass of the trunk verifies all drafts, and
every logit has the same bits as without drafting.")
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS  # whatever umask the build ran under
  OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
include(CPack)
