# Compiler options of all files and of each instruction set's (ISA's) files, and linker options.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

# The compiler must not fuse or reorder arithmetic by itself, so that all ISAs give the same bits.
# Windows: /fp:precise keeps the order and fuses nothing (since Visual Studio 2022).
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
  # -g1: line numbers are enough for reports. -O0 minimizes the time to build and run the tests.
  list(APPEND BITA_COMPILE_OPTIONS -fsanitize=${BITA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O0)
endif()

# Options of an ISA's files. A file belongs to an ISA if its name equals the ISA's or ends with it: avx2.cpp,
# attention_avx2.cpp. The first match in BITA_ISAS counts. Files without an ISA run everywhere.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx_vnni ${avx2} -mavxvnni)
  set(avx512_vnni ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++'s own header contains `__m512 y = y` on purpose (GCC bug 105593)
    list(APPEND avx512_vnni -Wno-uninitialized -Wno-maybe-uninitialized)
    # otherwise g++ delays the sums of products until registers run out
    list(APPEND avx2 -fno-tree-ter)
    list(APPEND avx_vnni -fno-tree-ter)
  endif()
  if(MSVC)
    set(avx2 /arch:AVX2)
    set(avx_vnni /arch:AVX2)
    set(avx512_vnni /arch:AVX512)
  endif()
  set(our_isas avx2 avx_vnni avx512_vnni)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang") # the one in the package ziglang rejects -march
    set(neon -mcpu=generic)
    set(neon_dotprod -mcpu=generic+dotprod)
    set(neon_i8mm -mcpu=generic+dotprod+i8mm)
  else()
    # otherwise g++ runs out of registers: it hoists loads and delays sums
    set(neon -march=armv8-a -fno-schedule-insns -fno-tree-ter)
    set(neon_dotprod -march=armv8.2-a+dotprod -fno-schedule-insns -fno-tree-ter)
    set(neon_i8mm -march=armv8.2-a+dotprod+i8mm -fno-schedule-insns -fno-tree-ter)
  endif()
  set(our_isas neon neon_dotprod neon_i8mm)
else()
  set(our_isas "")
endif()
set(BITA_ISAS avx512_vnni avx_vnni avx2 neon_dotprod neon_i8mm neon)

# Set `result` to the ISA of a file, or to an empty name.
function(bita_isa_of file result)
  get_filename_component(stem ${file} NAME_WE)
  set(${result} "" PARENT_SCOPE)
  foreach(isa IN LISTS BITA_ISAS)
    if(stem MATCHES "(^|_)${isa}$")
      set(${result} ${isa} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# Give the files in the list named `files` the options of their ISAs, remove files for other processors or that
# the compiler does not support, and set `result` to the remaining ISAs, in upper case.
function(bita_choose_isas files result)
  set(kept "")
  set(isas "")
  foreach(file IN LISTS ${files})
    bita_isa_of(${file} isa)
    if(isa)
      if(NOT isa IN_LIST our_isas)
        continue()
      endif()
      string(REPLACE ";" " " flags "${${isa}}")
      check_cxx_compiler_flag("${flags}" BITA_COMPILES_${isa})
      if(NOT BITA_COMPILES_${isa})
        continue()
      endif()
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${${isa}}")
      string(TOUPPER ${isa} name)
      list(APPEND isas ${name})
    endif()
    list(APPEND kept ${file})
  endforeach()
  list(REMOVE_DUPLICATES isas)
  set(${files} ${kept} PARENT_SCOPE)
  set(${result} ${isas} PARENT_SCOPE)
endfunction()

# Hide the symbols of our C++ library from other libraries in the process, and theirs from ours.
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

# Let the linker remove unused functions.
function(bita_divide_into_sections target)
  if(NOT MSVC AND NOT APPLE AND NOT BITA_SANITIZE)
    target_compile_options(${target} PRIVATE -ffunction-sections -fdata-sections)
  endif()
endfunction()

# Link the C++ library statically: the device may not have the compiler's.
function(bita_link_compiler_library target)
  bita_divide_into_sections(${target})
  if(MSVC)
    set_target_properties(${target} PROPERTIES MSVC_RUNTIME_LIBRARY MultiThreaded)
  elseif(NOT APPLE AND NOT BITA_SANITIZE)
    # symbol names stay, for perf
    target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc -Wl,--gc-sections
                        -Wl,--no-undefined $<$<CONFIG:Release>:-Wl,--strip-debug>)
  endif()
endfunction()
