# Installs attend into an empty folder and builds, links and runs a program of another project against it.
# Given: BUILD (attend's build tree), PROGRAM (source folder), WORK (scratch), EXPECTED (what it prints), PROCESSOR, and
# of a cross build TOOLCHAIN and EMULATOR.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${ARGN} failed:\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)

run(${CMAKE_COMMAND} -S ${PROGRAM} -B ${WORK}/build -DCMAKE_PREFIX_PATH=${WORK}/prefix -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS} -DCMAKE_TOOLCHAIN_FILE=${TOOLCHAIN})
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${EMULATOR} ${WORK}/build/program)
string(STRIP "${out}" out)
if(NOT out STREQUAL EXPECTED)
  message(FATAL_ERROR "printed \"${out}\", expected \"${EXPECTED}\"")
endif()

# A hook is vectorised in the file that defines it, whatever that file is compiled for.
set(vectors_x86_64 "v[a-z0-9]+ps [^\n]*zmm")
set(vectors_aarch64 "f[a-z]+[ \t]+v[0-9]+\\.4s")
if(PROGRAM MATCHES "/hook$" AND vectors_${PROCESSOR} AND OBJDUMP AND NOT FLAGS MATCHES "sanitize")
  run(${OBJDUMP} -d --no-show-raw-insn ${WORK}/build/CMakeFiles/program.dir/main.cpp.o)
  if(NOT out MATCHES "${vectors_${PROCESSOR}}")
    message(FATAL_ERROR "the hook's loop is not vectorised: are -fno-trapping-math and -fopenmp-simd exported?")
  endif()
endif()
