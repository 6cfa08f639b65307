// Functions of newer glibcs that the libraries and g++'s C++ library use, for older ones.
// The linker drops those that are unused.
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#define BITA_HIDDEN __attribute__((visibility("hidden")))

extern "C" {
// Whether the process has one thread, so that shared pointers need no atomic instructions (2.32).
// Zero is right for any number of threads.
BITA_HIDDEN char __libc_single_threaded = 0;

// <cstdlib> of 2.38 and later calls these for strtol and its relatives; they also read binary
// numbers.
long older_strtol(const char*, char**, int) __asm__("strtol");
unsigned long older_strtoul(const char*, char**, int) __asm__("strtoul");
long long older_strtoll(const char*, char**, int) __asm__("strtoll");
unsigned long long older_strtoull(const char*, char**, int) __asm__("strtoull");

BITA_HIDDEN long __isoc23_strtol(const char* text, char** end, int base) {
  return older_strtol(text, end, base);
}
BITA_HIDDEN unsigned long __isoc23_strtoul(const char* text, char** end, int base) {
  return older_strtoul(text, end, base);
}
BITA_HIDDEN long long __isoc23_strtoll(const char* text, char** end, int base) {
  return older_strtoll(text, end, base);
}
BITA_HIDDEN unsigned long long __isoc23_strtoull(const char* text, char** end, int base) {
  return older_strtoull(text, end, base);
}

// std::random_device calls this if g++ was built with 2.36 or later. Kernels before 3.17 have no
// getentropy; seeds need not be secret, so the clock is the last resort.
BITA_HIDDEN unsigned older_arc4random() __asm__("arc4random");
unsigned older_arc4random() {
  unsigned number = 0;
  if (getentropy(&number, sizeof number) == 0) return number;
  if (FILE* file = fopen("/dev/urandom", "rb")) {
    const bool is_read = fread(&number, sizeof number, 1, file) == 1;
    fclose(file);
    if (is_read) return number;
  }
  timespec now = {};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<unsigned>(now.tv_nsec ^ now.tv_sec << 16);
}

// std::condition_variable::wait_until calls this for a steady clock (2.30). If glibc lacks it, the
// time is converted once, as g++'s C++ library did on such systems.
using ClockWait = int (*)(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*);

BITA_HIDDEN int older_clockwait(pthread_cond_t*, pthread_mutex_t*, clockid_t,
                                const timespec*) __asm__("pthread_cond_clockwait");
int older_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                    const timespec* until) {
  static const auto newer =
      reinterpret_cast<ClockWait>(dlsym(RTLD_DEFAULT, "pthread_cond_clockwait"));
  if (newer) return newer(condition, mutex, clock, until);
  constexpr long kSecond = 1000000000;
  timespec given, real;
  clock_gettime(clock, &given);
  clock_gettime(CLOCK_REALTIME, &real);
  real.tv_sec += until->tv_sec - given.tv_sec;
  real.tv_nsec += until->tv_nsec - given.tv_nsec;
  if (real.tv_nsec < 0) {
    real.tv_nsec += kSecond;
    --real.tv_sec;
  } else if (real.tv_nsec >= kSecond) {
    real.tv_nsec -= kSecond;
    ++real.tv_sec;
  }
  return pthread_cond_timedwait(condition, mutex, &real);
}
}
