# cmake -DREADME=... -DEXAMPLE=... -P ReadmeShows.cmake: fails unless README's C++ block is the example, to the letter.
file(READ ${README} readme)
file(READ ${EXAMPLE} example)
string(FIND "${readme}" "```cpp\n${example}```\n" place)
if(place EQUAL -1)
  message(FATAL_ERROR "${README} does not show ${EXAMPLE} as it is: copy the file between ```cpp and ```")
endif()
