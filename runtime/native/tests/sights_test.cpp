// Sights as an operator: how long it keeps results, and for which nodes and threads.
#include "../operators/sights.h"

#include <thread>

#include "sublayers.h"

namespace bita::tests {
namespace {

const Adds true_bytes("Any byte but 0 is true", [] {
  Random random(54);
  const Step step = random_step(random, {}, {{20, 5}, {4, 6}, 10});
  Node sights = step.sights_node(), node = step.node();
  for (const char* name : {"sees", "sees_prefix"})
    for (uint8_t& byte : sights[name].bytes) byte = static_cast<uint8_t>(byte * 200);
  const std::vector<Value> wanted = run(node);
  node["past"] = step.past;
  node["sights"] = run(sights)[0];
  expect_same_values(run(node), wanted, "true is 200");
});

const Adds many_steps("A thread keeps 16 steps, each with what its rows see", [] {
  Random random(74);
  std::vector<Step> steps;
  std::vector<std::vector<Value>> wanted;
  for (int64_t i = 0; i < 16; ++i) {
    Shape shape;
    shape.window = i % 3 * 8;
    steps.push_back(random_step(random, shape, {{5 * i, i}, {i % 4 + 1, 16 - i}, i % 2 * 20}));
    Node node = steps.back().node();
    wanted.push_back(run(node));
  }
  std::vector<Node> nodes;
  nodes.reserve(steps.size());
  for (const Step& step : steps) nodes.push_back(step.node());
  for (size_t i = nodes.size(); i-- > 0;)
    expect_same_values(run(nodes[i], {2, 1}), wanted[i], "step " + std::to_string(i) + " of 16");
});

const Adds after_a_fault("Sights that failed leave those of other steps unchanged", [] {
  Random random(75);
  const Step step = random_step(random, {}, {{20, 5}, {2, 2}});
  Node node = step.node();
  const auto fail = [&] {
    Node bad = step.sights_node();
    bad["sees"].set(3, uint8_t{1});  // row 0 sees row 3, of another text
    expect(!fault_of(bad).empty(), "sights of another text");
  };
  for (int i = 0; i < 15; ++i) fail();
  expect(fault_of(node).empty(), "sights before others that failed");
  fail();
  const std::string fault = fault_of(node);
  expect(fault.find("sights do not belong to a step") != std::string::npos,
         "sights that failed steps have overwritten report '" + fault + "'");
});

const Adds two_sessions("Two threads may run the same kernels", [] {
  Random random(55);
  const Shape shape;
  const SublayerForm form{40, {4, true, true}, {8, false, false}, true, 0.5f, 2, 3};
  const Step step = random_step(random, shape, {{70}, {6}, 5});
  const Value hidden = random_hidden(random, 6, form);
  const Sublayer first = attention_sublayer(random, form, shape);
  const Node attention = attention_node(first, step, hidden), single = step.node();
  const Node mlp = mlp_node(mlp_sublayer(random, form, 50), "silu", hidden);
  const HostKernel attention_kernel(attention), single_kernel(single), mlp_kernel(mlp);
  const auto work = [&](std::vector<Value>& found) {
    for (int round = 0; round < 3; ++round) {
      Node my_attention = attention, my_single = single, my_mlp = mlp;
      my_attention["sights"] = my_single["sights"] = step.sights();
      found = {attention_kernel.run(my_attention, {2, 1})[0],
               single_kernel.run(my_single, {2, 1})[0], mlp_kernel.run(my_mlp, {2, 1})[0]};
    }
  };
  std::vector<Value> wanted, mine, theirs;
  work(wanted);
  std::thread other(work, std::ref(theirs));
  work(mine);
  other.join();
  expect_same_values(mine, wanted, "this thread");
  expect_same_values(theirs, wanted, "another thread");
});

}  // namespace
}  // namespace bita::tests
