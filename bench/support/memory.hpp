// Resident memory of this process.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace bench {

/// The most that was ever resident, in bytes.
inline double peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return 1024.0 * static_cast<double>(usage.ru_maxrss);
}

/// What is resident now, in bytes; 0 where the system does not tell.
inline double resident_bytes() {
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  long size = 0, resident = 0;
  const bool told = std::fscanf(file, "%ld %ld", &size, &resident) == 2;
  std::fclose(file);
  return told ? static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) : 0;
}

/// What programs can still take, in bytes; infinite where the system does not tell.
inline double available_bytes() {
  double kibibytes = HUGE_VAL;
  std::FILE* const file = std::fopen("/proc/meminfo", "r");
  if (file == nullptr) return kibibytes;
  char line[128];
  while (std::fgets(line, sizeof line, file) != nullptr)
    if (std::sscanf(line, "MemAvailable: %lf", &kibibytes) == 1) break;
  std::fclose(file);
  return 1024 * kibibytes;
}

}  // namespace bench
