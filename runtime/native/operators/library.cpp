// What the library exports: registration for ONNX Runtime, and a few C functions about itself.
#include <string>

#include "../decoding/guesses.h"
#include "../decoding/sampling.h"
#include "../kernels/roads.h"
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

constexpr int kVersion = 5;  // of the C functions and of the operators

void add_operators(OrtCustomOpDomain* domain) {
  static const Operator<Embed> embed;
  static const Operator<Sights> sights;
  static const Operator<AttentionSublayer> attention_sublayer;
  static const Operator<MlpSublayer> mlp_sublayer;
  static const Operator<AddNorm> add_norm;
  static const Operator<Head> head;
  // What sublayers are made of, for graphs that arrange it otherwise.
  static const Operator<Linear> linear;
  static const Operator<GatedLinear> gated_linear;
  static const Operator<Attention> attention;
  for (const OrtCustomOp* op : std::initializer_list<const OrtCustomOp*>{
           &embed, &sights, &attention_sublayer, &mlp_sublayer, &add_norm, &head, &linear,
           &gated_linear, &attention})
    check(ort().CustomOpDomain_Add(domain, op));
}

void register_all(OrtSessionOptions* options) {
  // Sessions use the domain as long as the process lives.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain("bita", &made));
    add_operators(made);
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

// The condition's value; false if it raises an exception, such as for lack of memory.
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
  if (!api) return nullptr;  // ONNX Runtime has said that it is too old
  bita::set_ort(api);
  try {
    bita::register_all(options);
    return nullptr;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

BITA_EXPORT int bita_operators_version(void) { return bita::kVersion; }

BITA_EXPORT const char* bita_operators_road(void) { return bita::kernels().name; }

BITA_EXPORT const char* bita_operators_roads(void) {
  static const std::string names = [] {
    std::string all;
    for (const bita::Kernels* road : bita::roads())
      all += (all.empty() ? "" : " ") + std::string(road->name);
    return all;
  }();
  return names.c_str();
}

// Begin to read the weights of the session that this thread makes next from their file. Returns 0,
// or -1 where they are better left mapped.
BITA_EXPORT int bita_operators_read_weights(const char* path) {
  return bita::holds([&] { return path && bita::read_session_weights(path); }) ? 0 : -1;
}

// Give what was read to the session that was made since. Returns 0, or -1 if some of its weights
// stay mapped. The session must not run before this call.
BITA_EXPORT int bita_operators_take_weights(void) {
  return bita::holds(bita::take_session_weights) ? 0 : -1;
}

BITA_EXPORT int bita_operators_use_road(const char* name) {
  return name && bita::use_road(name) ? 0 : -1;
}

// Guesses of what follows a text. Whoever makes them drops them; one thread at a time uses them.
// Null for sources that are out of range, or for lack of memory.
BITA_EXPORT bita::Guesses* bita_operators_make_guesses(const bita::GuessSources* sources) {
  bita::Guesses* made = nullptr;
  bita::holds([&] {
    if (sources) made = new bita::Guesses(*sources);
    return true;
  });
  return made;
}

BITA_EXPORT void bita_operators_drop_guesses(bita::Guesses* guesses) { delete guesses; }

// Forget the text, if `forget` is not 0, and add tokens to it. Returns 0, or -1 for lack of memory,
// after which the guesses are to be dropped.
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

// As `Guesses::look` has it; -1 for lack of memory too.
BITA_EXPORT int bita_operators_look_guesses(bita::Guesses* guesses, int64_t num_masks,
                                            int64_t count, bita::GuessesFound* found) {
  return bita::holds([&] { return guesses->look(num_masks, count, *found) == 0; }) ? 0 : -1;
}

// As `draw` of decoding/sampling.h has it; -1 for lack of memory too.
BITA_EXPORT int bita_operators_draw(bita::DrawTask* task) {
  return bita::holds([&] { return task && bita::draw(*task) == 0; }) ? 0 : -1;
}
