// For tests that run on several OpenMP threads: LLVM's runtime keeps what it allocates for its threads, which is no leak
// of ours. LeakSanitizer asks for this by its name, so it is a definition; one file of a program includes it.
#pragma once

extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libomp"; }
