#include <cstdio>

int run_a();
int run_b();

int main() {
  if (run_a() != 0) return std::puts("unit a: wrong result"), 1;
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4 && run_b() != 0) return std::puts("unit b: wrong result"), 1;
  std::puts(v4 ? "units a and b ran" : "unit a ran");
}
