// Compiled for the baseline: must run on every x86-64 machine, whatever is linked beside it.
#define RUN run_a
#include "unit.hpp"
