# attend/attend.h includes every public header but dlpack.h, which needs another library's.
file(GLOB headers RELATIVE ${PROJECT_SOURCE_DIR}/include CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/attend/*/*.h)
list(FILTER headers EXCLUDE REGEX "dlpack")
list(TRANSFORM headers REPLACE "(.+)" "#include \"\\1\"")
list(JOIN headers "\n" includes)
configure_file(cmake/attend.h.in ${PROJECT_BINARY_DIR}/include/attend/attend.h @ONLY)
target_include_directories(attend_all PUBLIC $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
                                             $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

# find_package(attend) for other projects: attend::attend with the flags that score hooks need.
get_property(rooms GLOBAL PROPERTY ATTEND_ROOMS)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/attend)

install(TARGETS ${rooms} attend_all EXPORT attendTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}/attend)
install(EXPORT attendTargets NAMESPACE attend:: DESTINATION ${package_folder})
install(DIRECTORY include/attend ${PROJECT_BINARY_DIR}/include/attend DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/attend)

configure_package_config_file(cmake/attendConfig.cmake.in ${PROJECT_BINARY_DIR}/attendConfig.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/attendConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/attendConfig.cmake ${PROJECT_BINARY_DIR}/attendConfigVersion.cmake
        DESTINATION ${package_folder})
