# attend_room(name DEPENDS room.. PRIVATE library..): the static library attend_<name> of src/<name>/*.cpp.
add_library(attend_warnings INTERFACE)
target_compile_options(attend_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
                                                 -Werror $<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed>)

function(attend_room name)
  cmake_parse_arguments(ROOM "" "" "DEPENDS;PRIVATE" ${ARGN})
  set(target attend_${name})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cpp)
  if(NOT sources)
    set(sources ${PROJECT_SOURCE_DIR}/src/attend/empty.cpp)
  endif()
  add_library(${target} STATIC ${sources})
  add_library(attend::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(
    ${target}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE ${PROJECT_SOURCE_DIR}/src)
  # Score hooks are vectorised in the file that defines them: its users need these flags too. Without contraction one
  # expression has one result in every loop that the compiler makes of it.
  target_compile_options(${target} PUBLIC -fno-trapping-math -fopenmp-simd PRIVATE -ffp-contract=off -fno-math-errno)
  foreach(room IN LISTS ROOM_DEPENDS)
    target_link_libraries(${target} PUBLIC attend_${room})
  endforeach()
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:attend_warnings> OpenMP::OpenMP_CXX fmt::fmt ${ROOM_PRIVATE})
  set_property(GLOBAL APPEND PROPERTY ATTEND_ROOMS ${target})
endfunction()
