// chorale: the command line.
#include "commands.h"

int main(int argc, char** argv) { return chorale::app::run(argc, argv); }
