"""Create the chooser that an answer's options ask for."""

from collections.abc import Sequence

from bita.errors import PromptError
from bita.json_values import shown
from bita.runtime.decoding.chooser import GREEDY, AnyChooser, CallSwitch, Chooser
from bita.runtime.loaded_engine import LoadedEngine
from bita.runtime.options import Options
from bita.runtime.text.call_rule import CallWatch


def chooser_for(
    loaded: LoadedEngine,
    options: Options,
    prompt_ids: Sequence[int],
    eos_ids: Sequence[int],
    seed: int,
    choice: int = 0,
) -> AnyChooser:
    """Return the chooser of one answer.

    Args:
        loaded: Engine that decodes the answer.
        options: Options of the answer.
        prompt_ids: Tokens of its prompt.
        eos_ids: Tokens that end it.
        seed: Seed of its draws.
        choice: Number of the answer among several to one prompt.

    Raises:
        PromptError: if answers cannot follow the grammar.
    """
    if not options.needs_logits and options.calls is None:
        return GREEDY
    grammar = options.grammar
    matcher = None if grammar is None else loaded.grammars.compile(grammar)
    ends = {*eos_ids, *options.stop_token_ids}
    switch = None if options.calls is None else _call_switch(loaded, options)
    return Chooser(options, prompt_ids, ends, seed, choice, matcher, switch)


def check_token_ids(options: Options, vocab_size: int) -> None:
    """Raise PromptError if an option contains a token id that the model does not have."""
    for name, ids in (
        ("logit_bias", options.logit_bias),
        ("stop_token_ids", options.stop_token_ids),
    ):
        for token in ids:
            if not 0 <= token < vocab_size:
                raise PromptError(f"{name}: token id {shown(token)} is not in [0, {vocab_size})")


def _call_switch(loaded: LoadedEngine, options: Options) -> CallSwitch:
    rule, grammars = options.calls, loaded.grammars
    assert rule is not None
    watch = CallWatch(rule, loaded.encoder.codec, frozenset(options.shown_token_ids))
    return CallSwitch(watch, lambda: grammars.compile(rule.grammar))
