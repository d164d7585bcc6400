// Runs a measurement in a process of its own and reads what it tells.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

/// The numbers that a measurement told, by name.
class findings {
 public:
  void add(const std::string& name, double value) { values_[name] = value; }
  bool has(const std::string& name) const { return values_.count(name) != 0; }
  double operator[](const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::runtime_error("a measurement did not tell its " + name);
    return found->second;
  }

 private:
  std::map<std::string, double> values_;
};

[[noreturn]] inline void become(const std::vector<std::string>& command, int output) {
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  dup2(output, STDOUT_FILENO);
  execvp(arguments[0], arguments.data());
  std::perror(arguments[0]);
  _exit(127);
}

inline findings read_findings(std::FILE* lines) {
  findings result;
  char name[64];
  double value = 0;
  while (std::fscanf(lines, "%63s %lf", name, &value) == 2) result.add(name, value);
  return result;
}

/// Throws when the process does not end well; it has then said why on its standard error.
inline findings run_child(const std::vector<std::string>& command) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("no pipe for a measurement");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("no process for a measurement");
  if (child == 0) {
    close(ends[0]);
    become(command, ends[1]);
  }
  close(ends[1]);
  std::FILE* const lines = fdopen(ends[0], "r");
  const findings result = read_findings(lines);
  std::fclose(lines);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) throw std::runtime_error("a measurement was ended by a signal (not enough memory?)");
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw std::runtime_error("a measurement failed");
  return result;
}

}  // namespace demo
