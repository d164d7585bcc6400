// Compiled with -march=x86-64-v4.
#define RUN run_b
#include "unit.hpp"
