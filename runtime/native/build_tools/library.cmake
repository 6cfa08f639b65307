# libbita: the runtime in C and C++, including the operators.
#
#   cmake --install build --prefix /usr/local
#
# BITA_PACKAGES  prefix of PCRE2, utf8proc and nlohmann-json; by default packages.py finds or downloads them
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
find_package(Threads REQUIRED)

set(BITA_PACKAGES "" CACHE PATH "Prefix of PCRE2, utf8proc and nlohmann-json")
if(NOT BITA_PACKAGES)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/build_tools/packages.py
    OUTPUT_VARIABLE found_packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE reason RESULT_VARIABLE failed)
  if(failed)
    message(STATUS "${reason}")
    set(found_packages "/usr")  # the system may have them elsewhere
  endif()
  set(BITA_PACKAGES ${found_packages} CACHE PATH "" FORCE)
endif()

# Static libraries are preferred, since they need not be on the device.
set(places PATHS ${BITA_PACKAGES} PATH_SUFFIXES lib/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu lib64 lib)
find_path(BITA_PCRE2_INCLUDE pcre2.h PATHS ${BITA_PACKAGES}/include NO_DEFAULT_PATH)
find_path(BITA_PCRE2_INCLUDE pcre2.h REQUIRED)
find_library(BITA_PCRE2 NAMES libpcre2-8.a pcre2-8 ${places} NO_DEFAULT_PATH)
find_library(BITA_PCRE2 NAMES libpcre2-8.a pcre2-8 REQUIRED)
find_path(BITA_UTF8PROC_INCLUDE utf8proc.h PATHS ${BITA_PACKAGES}/include NO_DEFAULT_PATH)
find_path(BITA_UTF8PROC_INCLUDE utf8proc.h REQUIRED)
find_library(BITA_UTF8PROC NAMES libutf8proc.a utf8proc ${places} NO_DEFAULT_PATH)
find_library(BITA_UTF8PROC NAMES libutf8proc.a utf8proc REQUIRED)
find_path(BITA_NLOHMANN_INCLUDE nlohmann/json.hpp PATHS ${BITA_PACKAGES}/include NO_DEFAULT_PATH)
find_path(BITA_NLOHMANN_INCLUDE nlohmann/json.hpp REQUIRED)

file(GLOB runtime_sources CONFIGURE_DEPENDS base/*.cpp engine/*.cpp text/*.cpp session/*.cpp device/*.cpp)
file(GLOB api_sources CONFIGURE_DEPENDS api/*.cpp)

# The runtime without the C functions, compiled once for the library and its tests; it brings the operators
# along. In a cross build, this system's headers must not come before the compiler's own.
add_library(bita_runtime OBJECT ${runtime_sources})
set_target_properties(bita_runtime PROPERTIES UNITY_BUILD ${BITA_UNITY})
bita_target(bita_runtime)
bita_divide_into_sections(bita_runtime)
target_sources(bita_runtime INTERFACE ${operator_objects})
foreach(folder IN ITEMS ${BITA_NLOHMANN_INCLUDE} ${BITA_PCRE2_INCLUDE} ${BITA_UTF8PROC_INCLUDE})
  if(NOT folder STREQUAL "/usr/include")
    target_include_directories(bita_runtime SYSTEM PUBLIC ${folder})
  endif()
endforeach()
target_include_directories(bita_runtime PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/include)
target_link_libraries(bita_runtime PUBLIC ${BITA_PCRE2} ${BITA_UTF8PROC} Threads::Threads ${CMAKE_DL_LIBS})

add_library(bita SHARED ${api_sources})
add_library(bita::bita ALIAS bita)
bita_target(bita)
target_include_directories(bita PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
                                       $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(bita PRIVATE $<BUILD_INTERFACE:bita_runtime>)
bita_link_compiler_library(bita)
set(exports ${CMAKE_CURRENT_SOURCE_DIR}/build_tools/library_exports.map)
target_link_options(bita PRIVATE -Wl,--version-script=${exports} -Wl,--exclude-libs,ALL)
# Raise the soname when programs that were built with an older header could not run any more.
set_target_properties(bita PROPERTIES LINK_DEPENDS ${exports} SOVERSION 0 VERSION ${PROJECT_VERSION})

install(TARGETS bita EXPORT bitaTargets)
install(FILES include/bita/bita.h include/bita/bita.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/bita)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/bita)
install(EXPORT bitaTargets NAMESPACE bita:: DESTINATION ${package})
configure_package_config_file(build_tools/bitaConfig.cmake.in bitaConfig.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(bitaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
# relative, so that the prefix can be chosen at installation, and moved later
file(RELATIVE_PATH BITA_UP_FROM_PC /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(build_tools/bita.pc.in bita.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/bitaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/bitaConfigVersion.cmake
        DESTINATION ${package})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/bita.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES build_tools/third_party_licenses.txt DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(BITA_TESTS)
  file(GLOB library_tests CONFIGURE_DEPENDS library_tests/*.cpp)
  add_executable(library_tests ${library_tests} ${api_sources})
  bita_target(library_tests)
  target_link_libraries(library_tests PRIVATE bita_runtime)

  # Programs for tests: some use the library's public interface, others its parts.
  file(GLOB api_tools CONFIGURE_DEPENDS library_tests/api/*.cpp)
  foreach(tool IN LISTS api_tools)
    get_filename_component(name ${tool} NAME_WE)
    add_executable(${name} ${tool})
    target_compile_options(${name} PRIVATE ${BITA_COMPILE_OPTIONS})
    target_link_options(${name} PRIVATE ${BITA_SANITIZE_OPTIONS})
    if(NOT BITA_NLOHMANN_INCLUDE STREQUAL "/usr/include")
      target_include_directories(${name} SYSTEM PRIVATE ${BITA_NLOHMANN_INCLUDE})
    endif()
    target_link_libraries(${name} PRIVATE bita Threads::Threads)
  endforeach()

  file(GLOB tools CONFIGURE_DEPENDS library_tests/tools/*.cpp)
  foreach(tool IN LISTS tools)
    get_filename_component(name ${tool} NAME_WE)
    add_executable(${name} ${tool})
    bita_target(${name})
    target_link_libraries(${name} PRIVATE bita_runtime)
  endforeach()
endif()

if(BITA_TESTS)
  add_custom_target(library_programs DEPENDS bita library_tests)
  foreach(tool IN LISTS api_tools tools)
    get_filename_component(name ${tool} NAME_WE)
    add_dependencies(library_programs ${name})
  endforeach()
endif()

if(BITA_FUZZ)
  file(GLOB fuzzers CONFIGURE_DEPENDS fuzz/*.cpp)
  target_compile_options(bita_runtime PRIVATE -fsanitize=fuzzer-no-link)
  add_custom_target(fuzzers)
  foreach(fuzzer IN LISTS fuzzers)
    get_filename_component(name ${fuzzer} NAME_WE)
    add_executable(${name} ${fuzzer})
    bita_target(${name})
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${name} PRIVATE bita_runtime)
    add_dependencies(fuzzers ${name})
  endforeach()
endif()
