#include "../tests/check.h"

int main(int count, char** arguments) { return bita::tests::run_cases(count, arguments); }
