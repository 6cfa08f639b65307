#include "../operators/ort.h"
#include "nodes.h"

int main(int count, char** arguments) {
  bita::tests::domains();  // gives the library its API before there are threads
  bita::use_processors(bita::tests::kProcessors);
  return bita::tests::run_cases(count, arguments);
}
