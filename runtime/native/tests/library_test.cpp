// The library's registration and its information about itself.
#include "../kernels/isa.h"
#include "check.h"
#include "host.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
extern "C" int bita_operators_version(void);
extern "C" const char* bita_operators_isa(void);
extern "C" const char* bita_operators_isas(void);
extern "C" int bita_operators_use_isa(const char* name);

namespace bita::tests {
namespace {

const Adds registration("The library registers its operators of the domain bita, once", [] {
  expect(domains().size() == 1 && domains().count("bita") == 1, "one domain");
  std::vector<std::string> names;
  for (const OrtCustomOp* op : domains().at("bita")) {
    names.emplace_back(op->GetName(op));
    expect(op->GetStartVersion(op) == 1 && op->GetEndVersion(op) == 1, names.back() + "'s version");
    expect(!op->GetExecutionProviderType(op), names.back() + " is for the processor");
  }
  const std::vector<std::string> wanted = {"Embed",       "Sights",      "AttentionSublayer",
                                           "MlpSublayer", "AddNorm",     "Head",
                                           "Linear",      "GatedLinear", "Attention"};
  expect(names == wanted, "the operators' names");
  expect(!RegisterCustomOps(nullptr, api_base(true)),
         "a library that is too new returns no status");
});

const Adds about_isas("The library lists its ISAs and selects those that it has", [] {
  expect(bita_operators_version() == 5, "the version");
  const std::string names = bita_operators_isas();
  for (const Kernels* isa : isas()) {
    expect(names.find(isa->name) != std::string::npos, "an ISA is listed");
    expect(bita_operators_use_isa(isa->name) == 0, "an ISA is selected");
    expect(bita_operators_isa() == std::string(isa->name), "the ISA in use");
  }
  expect(bita_operators_use_isa("none") == -1 && bita_operators_use_isa(nullptr) == -1 &&
             bita_operators_use_isa("") == -1,
         "unknown ISAs");
  expect(bita_operators_use_isa(isas().front()->name) == 0, "the best ISA");
});

}  // namespace
}  // namespace bita::tests
