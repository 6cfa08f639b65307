"""The start of an answer: from a prompt and options to a `Generation`."""

from collections.abc import Callable, Sequence
from time import monotonic

from bita.runtime.choosing import check_token_ids, chooser_for
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.generation import Generation
from bita.runtime.loaded_engine import LoadedEngine
from bita.runtime.options import Options, new_seed
from bita.runtime.text.codec import IncrementalText
from bita.runtime.text.prompt_encoder import Prompt
from bita.runtime.text.stopping import StopRule


def start_generation(
    loaded: LoadedEngine,
    decoder: TreeDecoder,
    prompt: Prompt,
    options: Options,
    seed: int | None,
    choice: int,
    is_kept: bool | None,
    on_end: Callable[[Generation], None],
    eos_ids: Sequence[int] | None,
    drafts: bool,
    continues: bool | None,
) -> Generation:
    """Start an answer; `Session.start` describes the parameters."""
    began = monotonic()
    prompt_ids = loaded.encoder.encode(prompt)
    decoder.check_prompt(prompt_ids)
    check_token_ids(options, loaded.engine.manifest.vocab_size)
    if eos_ids is None:
        eos_ids = loaded.encoder.eos_ids(prompt)
    if options.ignore_eos:
        eos_ids = ()
    if seed is None:
        seed = options.seed if options.seed is not None else new_seed()
    chooser = chooser_for(loaded, options, prompt_ids, eos_ids, seed, choice)
    if continues is None:  # a grammar has matched each space
        continues = isinstance(prompt, str) or options.grammar is not None
    text = IncrementalText(loaded.encoder.codec, continues, options.shown_token_ids)
    rule = StopRule(text, eos_ids, options.max_new_tokens, options.stops, options.stop_token_ids)
    sequence = decoder.begin(prompt_ids, chooser)
    sequence.is_plain = not drafts
    return Generation(
        loaded.turns,
        decoder,
        sequence,
        rule,
        seed,
        None if options.timeout_s is None else options.timeout_s - (monotonic() - began),
        loaded.keep_answers if is_kept is None else is_kept,
        on_end,
    )
