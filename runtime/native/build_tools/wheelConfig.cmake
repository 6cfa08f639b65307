# find_package(bita) defines the target bita::bita: libbita of this Python package, and its headers.
# This file is bita/runtime/native/cmake/bitaConfig.cmake in a wheel.
if(NOT TARGET bita::bita)
  get_filename_component(bita_folder "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
  add_library(bita::bita SHARED IMPORTED)
  set_target_properties(bita::bita PROPERTIES
    IMPORTED_LOCATION "${bita_folder}/libbita.so.0"
    IMPORTED_SONAME libbita.so.0
    INTERFACE_INCLUDE_DIRECTORIES "${bita_folder}/include")
  unset(bita_folder)
endif()
