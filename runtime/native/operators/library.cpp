// The library's exports: registration with ONNX Runtime, and some C functions.
#include <string>

#include "../decoding/guesses.h"
#include "../decoding/sampling.h"
#include "../kernels/isa.h"
#include "add_norm.h"
#include "attention_sublayer.h"
#include "embed.h"
#include "head.h"
#include "mlp_sublayer.h"

#if defined(_WIN32)
#define BITA_EXPORT extern "C" __declspec(dllexport)
#else
#define BITA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace bita {
namespace {

constexpr int kVersion = 5;  // version of the C functions and of the operators

void add_operators(OrtCustomOpDomain* domain) {
  static const Operator<Embed> embed;
  static const Operator<Sights> sights;
  static const Operator<AttentionSublayer> attention_sublayer;
  static const Operator<MlpSublayer> mlp_sublayer;
  static const Operator<AddNorm> add_norm;
  static const Operator<Head> head;
  // The parts of the sublayers, for graphs that arrange them differently.
  static const Operator<Linear> linear;
  static const Operator<GatedLinear> gated_linear;
  static const Operator<Attention> attention;
  for (const OrtCustomOp* op : std::initializer_list<const OrtCustomOp*>{
           &embed, &sights, &attention_sublayer, &mlp_sublayer, &add_norm, &head, &linear,
           &gated_linear, &attention})
    check(ort().CustomOpDomain_Add(domain, op));
}

void register_all(OrtSessionOptions* options) {
  // Sessions use the domain until the process ends.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain("bita", &made));
    add_operators(made);
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

// The condition's value; false if it throws, for example when out of memory.
template <class Condition>
bool holds(const Condition& condition) {
  try {
    return condition();
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace
}  // namespace bita

BITA_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(BITA_ORT_API_VERSION);
  if (!api) return nullptr;  // ONNX Runtime has reported that it is too old
  bita::set_ort(api);
  try {
    bita::register_all(options);
    return nullptr;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

BITA_EXPORT int bita_operators_version(void) { return bita::kVersion; }

BITA_EXPORT const char* bita_operators_isa(void) { return bita::kernels().name; }

BITA_EXPORT const char* bita_operators_isas(void) {
  static const std::string names = [] {
    std::string all;
    for (const bita::Kernels* isa : bita::isas())
      all += (all.empty() ? "" : " ") + std::string(isa->name);
    return all;
  }();
  return names.c_str();
}

// Begin to read from their file the weights of the session that this thread creates next. Returns
// 0, or -1 if they are better left mapped.
BITA_EXPORT int bita_operators_read_weights(const char* path) {
  return bita::holds([&] { return path && bita::read_session_weights(path); }) ? 0 : -1;
}

// Hand the weights that were read to the session created since. Returns 0, or -1 if some of its
// weights stay mapped. The session must not run before this call.
BITA_EXPORT int bita_operators_take_weights(void) {
  return bita::holds(bita::take_session_weights) ? 0 : -1;
}

BITA_EXPORT int bita_operators_use_isa(const char* name) {
  return name && bita::use_isa(name) ? 0 : -1;
}

// Create guesses of what follows a text. The caller drops them; only one thread may use them at a
// time. Null if sources are out of range or memory runs out.
BITA_EXPORT bita::Guesses* bita_operators_make_guesses(const bita::GuessSources* sources) {
  bita::Guesses* made = nullptr;
  bita::holds([&] {
    if (sources) made = new bita::Guesses(*sources);
    return true;
  });
  return made;
}

BITA_EXPORT void bita_operators_drop_guesses(bita::Guesses* guesses) { delete guesses; }

// Forget the text if `forget` is not 0, then add tokens to it. Returns 0, or -1 if memory runs out,
// after which the guesses must be dropped.
BITA_EXPORT int bita_operators_extend_guesses(bita::Guesses* guesses, int forget,
                                              const int64_t* token_ids, int64_t count) {
  return bita::holds([&] {
    if (forget) guesses->start();
    guesses->extend(token_ids, count);
    return true;
  })
             ? 0
             : -1;
}

// Calls `Guesses::look`; also returns -1 if memory runs out.
BITA_EXPORT int bita_operators_look_guesses(bita::Guesses* guesses, int64_t num_masks,
                                            int64_t count, bita::GuessesFound* found) {
  return bita::holds([&] { return guesses->look(num_masks, count, *found) == 0; }) ? 0 : -1;
}

// Calls `draw` of decoding/sampling.h; also returns -1 if memory runs out.
BITA_EXPORT int bita_operators_draw(bita::DrawTask* task) {
  return bita::holds([&] { return task && bita::draw(*task) == 0; }) ? 0 : -1;
}
