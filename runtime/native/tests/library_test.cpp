// What the library registers and says about itself.
#include "../kernels/roads.h"
#include "check.h"
#include "host.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
extern "C" int bita_operators_version(void);
extern "C" const char* bita_operators_road(void);
extern "C" const char* bita_operators_roads(void);
extern "C" int bita_operators_use_road(const char* name);

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
  expect(!RegisterCustomOps(nullptr, api_base(true)), "a library that is too new says nothing");
});

const Adds about_roads("The library names its roads and takes those that are there", [] {
  expect(bita_operators_version() == 5, "the version");
  const std::string names = bita_operators_roads();
  for (const Kernels* road : roads()) {
    expect(names.find(road->name) != std::string::npos, "a road is named");
    expect(bita_operators_use_road(road->name) == 0, "a road is taken");
    expect(bita_operators_road() == std::string(road->name), "the road in use");
  }
  expect(bita_operators_use_road("none") == -1 && bita_operators_use_road(nullptr) == -1 &&
             bita_operators_use_road("") == -1,
         "roads that are not there");
  expect(bita_operators_use_road(roads().front()->name) == 0, "the best road");
});

}  // namespace
}  // namespace bita::tests
