# Every third-party library, found once. Debian packages: packages.txt. Reasons: docs/dependencies.md.
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)  # src/base/threads.cpp only
find_package(fmt REQUIRED)                    # message formatting
find_package(yaml-cpp REQUIRED)               # roles and run configurations
find_package(nlohmann_json REQUIRED)          # config.json, safetensors headers, --json
find_package(CLI11 REQUIRED)                  # command line
find_package(MPI REQUIRED COMPONENTS CXX)     # src/parallel only
find_package(PkgConfig REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)  # SIMD, src/simd and src/implementations/cpu

# How tests start ranks: this, their number, the program. Open MPI asks root to say twice that it means it. Its plug-ins
# are gone when leaks are looked for, so only deep stacks show that a leak is MPI's own.
set(CHORALE_MPIEXEC ${MPIEXEC_EXECUTABLE} --oversubscribe ${MPIEXEC_NUMPROC_FLAG})
set(CHORALE_MPI_ENVIRONMENT
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  ASAN_OPTIONS=fast_unwind_on_malloc=0
  LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/cmake/sanitizers/leaks.txt:print_suppressions=0
  TSAN_OPTIONS=ignore_noninstrumented_modules=1)
