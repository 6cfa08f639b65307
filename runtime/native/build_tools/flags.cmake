# What the compiler is told: options of all files, options of each road's files, options of the link.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

# Only fusions that are written are made, and no arithmetic is reordered: all roads give the same bits.
# Windows: /fp:precise keeps the order and fuses nothing (Visual Studio 2022 on).
if(MSVC)
  set(BITA_COMPILE_OPTIONS /W4 /fp:precise /utf-8 $<$<BOOL:${BITA_WERROR}>:/WX>)
else()
  set(BITA_COMPILE_OPTIONS -Wall -Wextra -ffp-contract=off -fno-math-errno
      $<$<BOOL:${BITA_WERROR}>:-Werror>)
  string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")
endif()

set(BITA_SANITIZE_OPTIONS "")
if(BITA_SANITIZE)
  set(BITA_SANITIZE_OPTIONS -fsanitize=${BITA_SANITIZE})
  # -g1: lines are enough for a report. -O0 takes the shortest time to build and run the tests.
  list(APPEND BITA_COMPILE_OPTIONS -fsanitize=${BITA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O0)
endif()

# Options of the files of a road. A file belongs to the road that its name is, or ends with: avx2.cpp,
# attention_avx2.cpp. Of BITA_ROADS the longest name that fits counts. Files of no road run everywhere.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx_vnni ${avx2} -mavxvnni)
  set(avx512_vnni ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # its own header has `__m512 y = y`, on purpose (GCC bug 105593)
    list(APPEND avx512_vnni -Wno-uninitialized -Wno-maybe-uninitialized)
    # else g++ delays the sums of products until registers run out
    list(APPEND avx2 -fno-tree-ter)
    list(APPEND avx_vnni -fno-tree-ter)
  endif()
  if(MSVC)
    set(avx2 /arch:AVX2)
    set(avx_vnni /arch:AVX2)
    set(avx512_vnni /arch:AVX512)
  endif()
  set(our_roads avx2 avx_vnni avx512_vnni)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang") # that of the package ziglang does not know -march
    set(neon -mcpu=generic)
    set(neon_dotprod -mcpu=generic+dotprod)
    set(neon_i8mm -mcpu=generic+dotprod+i8mm)
  else()
    # else g++ runs out of registers: it moves loads ahead and delays sums
    set(neon -march=armv8-a -fno-schedule-insns -fno-tree-ter)
    set(neon_dotprod -march=armv8.2-a+dotprod -fno-schedule-insns -fno-tree-ter)
    set(neon_i8mm -march=armv8.2-a+dotprod+i8mm -fno-schedule-insns -fno-tree-ter)
  endif()
  set(our_roads neon neon_dotprod neon_i8mm)
else()
  set(our_roads "")
endif()
set(BITA_ROADS avx512_vnni avx_vnni avx2 neon_dotprod neon_i8mm neon)

# The road of a file, or an empty name.
function(bita_road_of file result)
  get_filename_component(stem ${file} NAME_WE)
  set(${result} "" PARENT_SCOPE)
  foreach(road IN LISTS BITA_ROADS)
    if(stem MATCHES "(^|_)${road}$")
      set(${result} ${road} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# Give the files of the list named by `files` the options of their roads, take those out that are for another
# processor or that the compiler does not know, and set `result` to the roads left, in capitals.
function(bita_choose_roads files result)
  set(kept "")
  set(roads "")
  foreach(file IN LISTS ${files})
    bita_road_of(${file} road)
    if(road)
      if(NOT road IN_LIST our_roads)
        continue()
      endif()
      string(REPLACE ";" " " flags "${${road}}")
      check_cxx_compiler_flag("${flags}" BITA_COMPILES_${road})
      if(NOT BITA_COMPILES_${road})
        continue()
      endif()
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${${road}}")
      string(TOUPPER ${road} name)
      list(APPEND roads ${name})
    endif()
    list(APPEND kept ${file})
  endforeach()
  list(REMOVE_DUPLICATES roads)
  set(${files} ${kept} PARENT_SCOPE)
  set(${result} ${roads} PARENT_SCOPE)
endfunction()

# Names of the C++ library must not be seen by other libraries of the process, nor theirs by ours.
function(bita_export_only_ours target)
  if(APPLE)
    target_link_options(${target} PRIVATE -Wl,-exported_symbol,_RegisterCustomOps
                        -Wl,-exported_symbol,_bita_operators_*)
  elseif(NOT MSVC)
    set(map ${CMAKE_CURRENT_SOURCE_DIR}/build_tools/exports.map)
    target_link_options(${target} PRIVATE -Wl,--version-script=${map})
    set_target_properties(${target} PROPERTIES LINK_DEPENDS ${map})
  endif()
endfunction()

# So that the linker leaves out what nobody calls.
function(bita_divide_into_sections target)
  if(NOT MSVC AND NOT APPLE AND NOT BITA_SANITIZE)
    target_compile_options(${target} PRIVATE -ffunction-sections -fdata-sections)
  endif()
endfunction()

# The C++ library is linked in: the device need not have the compiler's.
function(bita_link_compiler_library target)
  bita_divide_into_sections(${target})
  if(MSVC)
    set_target_properties(${target} PROPERTIES MSVC_RUNTIME_LIBRARY MultiThreaded)
  elseif(NOT APPLE AND NOT BITA_SANITIZE)
    # names stay, for perf
    target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc -Wl,--gc-sections
                        -Wl,--no-undefined $<$<CONFIG:Release>:-Wl,--strip-debug>)
  endif()
endfunction()
