// Built with -fno-exceptions -fno-rtti and without GoogleTest, which needs them: exit status 0 is success. A refusal goes to
// the failure handler; when that returns the program aborts, so here it leaves by longjmp.
#include <lambda_attention/lambda_attention.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstring>

namespace la = lambda_attention;

namespace {

int num_failures = 0;
char refused_with[512];
std::jmp_buf after_refusal;

void keep_message(const char* message) {
  std::strncpy(refused_with, message, sizeof refused_with - 1);
  std::longjmp(after_refusal, 1);
}
void silent_handler(const char*) {}

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("not so: %s (the last refusal was \"%s\")\n", what, refused_with);
  ++num_failures;
}

template <class Call>
bool is_refused_with(const char* message, const Call& call) {
  refused_with[0] = '\0';
  if (setjmp(after_refusal) == 0) {
    call();
    return false;
  }
  return std::strcmp(refused_with, message) == 0;
}

// A program that refuses a call, run in a child of this one: whether it aborts, and what it has said on stderr.
bool aborts_saying(const char* message, la::failure_handler handler) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    if (handler != nullptr) la::set_failure_handler(handler);
    la::alibi unused(0);
    _exit(0);
  }
  close(ends[1]);
  char said[512] = {};
  for (std::size_t size = 0;;) {
    const ssize_t more = read(ends[0], said + size, sizeof said - 1 - size);
    if (more <= 0) break;
    size += static_cast<std::size_t>(more);
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && std::strcmp(said, message) == 0;
}

constexpr la::index_t n = 6, heads = 4, dim = 8;
float q[n * heads * dim], k[n * dim], v[n * dim], out[n * heads * dim];

// The mean of equal values is that value.
bool all_are(float value) {
  for (const float x : out)
    if (!(x > value - 1e-5f && x < value + 1e-5f)) return false;
  return true;
}

}  // namespace

int main() {
  for (float& x : q) x = 0.5f;
  for (float& x : k) x = 0.25f;
  for (float& x : v) x = 2;
  const auto queries = la::token_major(q, n, heads, dim), outputs = la::token_major(out, n, heads, dim);
  const auto keys = la::token_major(k, n, 1, dim), values = la::token_major(v, n, 1, dim);

  la::attend(queries, keys, values, la::lm_infinite(1, 3), la::rope(dim), outputs);
  expect(all_are(2), "a whole sequence is attended to");

  for (float& x : v) x = 3;
  la::kv_cache<la::f32, la::rope> cache(la::lm_infinite(1, 3), la::rope(dim), 1, dim, dim);
  for (la::index_t i = 0; i < n; ++i)
    la::attend(queries.slice(i, 1), keys.slice(i, 1), values.slice(i, 1), cache, outputs.slice(i, 1));
  expect(all_are(3) && cache.num_tokens() == n, "a stream is attended to");

  expect(aborts_saying("lambda_attention: alibi: expected 1 <= num_heads <= 2^30, got 0\n", nullptr),
         "a refusal is printed, and the program aborts");
  expect(aborts_saying("", silent_handler), "the program aborts when the handler returns");

  const la::failure_handler before = la::set_failure_handler(silent_handler);
  expect(before != nullptr, "there is a failure handler from the start");
  expect(la::set_failure_handler(keep_message) == silent_handler, "set_failure_handler returns the one before");

  expect(is_refused_with("attend: expected q.dim == k.dim, got 7 and 8",
                         [&] {
                           la::attend(la::token_major(q, n, heads, 7), keys, values, la::lm_infinite(1, 3), la::none(),
                                      outputs);
                         }),
         "a sequence is refused");
  expect(is_refused_with("attend: expected v.tokens == k.tokens, got 5 and 6",
                         [&] { la::attend(queries, keys, values.slice(0, 5), cache, outputs); }),
         "a stream is refused");
  expect(all_are(3) && cache.num_tokens() == n, "a refused call has written nothing");
  expect(is_refused_with("rope: expected 1 <= head_dim <= 512, got 0", [] { la::rope(0); }), "an encoding is refused");
  return num_failures == 0 ? 0 : 1;
}
