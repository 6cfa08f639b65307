// What the library and g++'s C++ library look up in newer glibcs, for older ones.
// The linker leaves out what is not looked up.

#define BITA_HIDDEN __attribute__((visibility("hidden")))

extern "C" {
// Whether the process has one thread, so that shared pointers need no atomic instructions (2.32).
// Zero is right for any number of threads.
BITA_HIDDEN char __libc_single_threaded = 0;

// What <cstdlib> of 2.38 and later calls for strtol and its kin: they read binary numbers too.
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
}
