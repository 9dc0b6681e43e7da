# Flags that every target shares. They are part of the numerics: see docs/numerics.md.

# Rule 8 of docs/numerics.md: the compiler may not contract a*b+c; where a fused operation is meant, it is written.
add_compile_options(-ffp-contract=off -fno-math-errno)
add_compile_options(-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wcast-align -Wunused)
# GoogleTest's macros under an if are fine; Highway's templates pass vectors wider than the baseline by value, always inlined.
add_compile_options(-Wno-psabi -Wno-dangling-else)
if(CHORALE_WERROR)
  add_compile_options(-Werror)
endif()

# GCC 12 takes sums of strings for overflows, depending on how long a path is and on what was read before.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(CHORALE_FALSE_WARNINGS -Wno-array-bounds -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread)
endif()
# For what computes nothing itself: the command line and tests.
set(CHORALE_LIGHT_OPTIONS $<$<CONFIG:RelWithDebInfo>:-O1> ${CHORALE_FALSE_WARNINGS})

if(CHORALE_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(CHORALE_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(CHORALE_SANITIZE STREQUAL "fuzz")
  # For libFuzzer, which is Clang's: everything reports which branches it takes. fuzz/CMakeLists.txt links the fuzzer.
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(NOT CHORALE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "CHORALE_SANITIZE is '${CHORALE_SANITIZE}': must be empty, address, thread or fuzz")
endif()

find_program(CHORALE_CCACHE ccache)
if(CHORALE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CHORALE_CCACHE})
endif()
