"""What takes the tokens of an answer, by its options."""

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
    """The chooser of one answer.

    eos_ids: tokens that end it. choice: its number among several to a prompt. Raises PromptError
    for a grammar that answers cannot follow.
    """
    if not options.needs_logits and options.calls is None:
        return GREEDY
    grammar = options.grammar
    matcher = None if grammar is None else loaded.grammars.compile(grammar)
    ends = {*eos_ids, *options.stop_token_ids}
    switch = None if options.calls is None else _call_switch(loaded, options)
    return Chooser(options, prompt_ids, ends, seed, choice, matcher, switch)


def check_token_ids(options: Options, vocab_size: int) -> None:
    """Raise PromptError for ids of tokens that the model does not have."""
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
