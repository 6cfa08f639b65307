// A stand-in for the operators: an empty domain `bita`, and the functions of the library.
#include <cstring>

#include "onnxruntime_c_api.h"

#define BITA_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const char* const kRoad = "plain";

}  // namespace

BITA_EXPORT int bita_operators_version(void) { return 1; }

BITA_EXPORT const char* bita_operators_road(void) { return kRoad; }

BITA_EXPORT const char* bita_operators_roads(void) { return kRoad; }

BITA_EXPORT int bita_operators_use_road(const char* name) {
  return std::strcmp(name, kRoad) == 0 ? 0 : -1;
}

BITA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                      const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(BITA_ORT_API_VERSION);
  OrtCustomOpDomain* domain = nullptr;
  OrtStatus* status = api->CreateCustomOpDomain("bita", &domain);
  return status != nullptr ? status : api->AddCustomOpDomain(options, domain);
}
