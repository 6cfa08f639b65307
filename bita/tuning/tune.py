"""Tuning from a model to an adapter: data, then training, both of which continue after a kill."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bita.adapter import Adapter
from bita.continuations import Continuations, best_continuations, count_continuations
from bita.data.dataset import LOCK_FILE, Dataset
from bita.data.endpoint import EndpointGenerator, EndpointOptions
from bita.data.generate_data import DataLimits, FilePrompts, PromptSource, generate_data
from bita.data.generators import EngineGenerator, Generator, TransformersGenerator
from bita.data.model_texts import ModelTexts
from bita.data.prompts import CALIBRATION_PROMPTS, read_prompts
from bita.data.samplers import EngineSampler, Sampler, TransformersSampler
from bita.data.self_prompts import (
    BUNDLED_OPENINGS,
    SelfPromptOptions,
    SelfPrompts,
    read_openings,
)
from bita.errors import TuningError
from bita.export.checkpoint import Checkpoint
from bita.progress import OnProgress, ignore_progress
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tuning.bonus_fit import fit_bonuses
from bita.tuning.data_engine import DATA_ENGINE, build_data_engine
from bita.tuning.evaluation import DraftQuality, evaluate
from bita.tuning.mask_model import MaskModel
from bita.tuning.pair_training import tune_pairs
from bita.tuning.processes import Processes
from bita.tuning.run_files import RunFiles, fingerprint
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter, starting_parameters
from bita.tuning.trainer import StepReport, Trainer
from bita.tuning.training_texts import MIN_RESPONSE, TrainingText, cut_text, split_held_out, usable
from bita.tuning.tuning_base import load_tuning_base
from bita.writer_lock import sole_writer

MAX_PROMPT_TOKENS = 1024  # longer prompts are left out of the data
NO_OPENINGS = "none"
TABLE_NOTE = "; table of "  # separator in an adapter's description of its tuning
BONUS_TOKENS = 96  # length of each answer that bonuses are fitted on


@dataclass(frozen=True)
class DataOptions:
    """Source of the conversations."""

    data: tuple[Path, ...] = ()  # directories of existing data; empty: generate conversations
    prompts: Path | None = None  # a prompt file; None: the model writes its prompts itself
    # File of words that self-written prompts begin with. None: the bundled file, in English;
    # "none": no given words.
    openings: Path | str | None = None
    prompt_seed: int = 0  # seed of self-written prompts
    num_conversations: int = 500
    max_new_tokens: int = 256  # length of each response
    # Generator of responses: "transformers"; "engine", which is built for the purpose; an engine
    # directory; or the URL of an OpenAI-compatible endpoint.
    generator: str = "transformers"
    served_name: str = ""  # the model's name at the endpoint
    api_key: str | None = None  # for the endpoint; None for none
    num_held_out: int = 40  # conversations to evaluate on, from all data


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that its checkpoint does not store."""

    directory: Path  # directory of generated data and run files, which a later call continues
    out: Path  # the adapter file to write
    start: Adapter | None = None  # adapter of the settings' sizes to continue from; None: untuned
    dtype: str = "float32"  # type of the base model; the adapter is float32
    load_in_4bit: bool = False  # whether the decoder's weights are quantized to 4 bits
    evaluate_every: int = 0  # steps between two evaluations; 0: only at the end


@dataclass(frozen=True)
class TuneResult:
    """The adapter file that a run wrote, and the quality of its drafts on held-out text."""

    adapter: Path
    before: DraftQuality
    after: DraftQuality


@dataclass(frozen=True)
class Watcher:
    """Callbacks for progress."""

    on_data: OnProgress = ignore_progress
    # called after each training step, with the completed share of the schedule, 0 to 1
    on_step: Callable[[StepReport, float], None] = lambda report, progress: None


def tune(
    checkpoint: Checkpoint,
    data: DataOptions,
    settings: TuneSettings,
    options: RunOptions,
    processes: Processes | None = None,
    watcher: Watcher | None = None,
) -> TuneResult:
    """Tune an adapter for `checkpoint` and write it to `options.out`.

    A call with the same arguments as a killed one continues it; only pair scores and bonuses, which
    take minutes, are learned again. A run waits for another one in the same directory.

    Args:
        checkpoint: The model.
        data: Source of the conversations.
        settings: Settings of the training.
        options: Directories and further options.
        processes: The processes of the run, each of which calls this with the same arguments. None
            is this process alone, on the CPU.
        watcher: Callbacks for progress.

    Raises:
        TuningError, AdapterError, ModelError, PromptError, MissingExtraError: if the run cannot
            start or continue.
    """
    watcher, processes = watcher or Watcher(), processes or Processes("cpu")
    with ExitStack() as stack:
        processes.main_first(lambda: stack.enter_context(_sole_run(options.directory)), None)
        return _tune(checkpoint, data, settings, options, processes, watcher)


def _sole_run(directory: Path) -> AbstractContextManager[object]:
    directory.mkdir(parents=True, exist_ok=True)
    return sole_writer(directory / LOCK_FILE, str(directory))


def _tune(
    checkpoint: Checkpoint,
    data: DataOptions,
    settings: TuneSettings,
    options: RunOptions,
    processes: Processes,
    watcher: Watcher,
) -> TuneResult:
    base = load_tuning_base(checkpoint, options.dtype, processes, options.load_in_4bit)
    datasets = _datasets(checkpoint, base, options.directory / "data", data, watcher, processes)
    texts = [
        cut_text(c.prompt_ids, c.response_ids, settings.max_tokens)
        for dataset in datasets
        for c in dataset
    ]
    train, held_out = split_held_out(usable(texts), data.num_held_out, settings.seed)
    if not held_out:
        raise TuningError(f"{len(texts)} conversations leave none to evaluate on; give at least 5")
    model = MaskModel(base)
    adapter = starting_adapter(checkpoint, model, train, settings, options.start)
    parameters = starting_parameters(model, adapter, settings)
    before = evaluate(model, parameters.to(model.device), held_out)
    tuned_on = _describe(datasets, train, settings, options.start)
    files = RunFiles(options.directory / "run", tuned_on, fingerprint(train, options.start))
    trainer = Trainer(model, parameters, train, settings, files, processes)
    trainer.run(
        lambda report: watcher.on_step(report, trainer.progress),
        evaluate=lambda: evaluate(model, parameters, held_out).report(),
        evaluate_every=options.evaluate_every,
    )
    if settings.pair_rank and parameters.joint_pairs is None:
        pair_texts = train[: settings.pair_texts]
        parameters.pairs = tune_pairs(
            model, parameters, pair_texts, settings.pair_rank, settings.seed, watcher.on_data
        )
    continuations = _continuations(train, held_out, settings, options.start)
    # in all processes, because they must all run a sharded base
    texts = _generate_bonus_texts(checkpoint, base, settings.max_tokens, watcher)
    bonuses = fit_bonuses(model, parameters, continuations, texts)
    if processes.is_main:
        tuned = parameters.to_adapter(tuned_on)
        replace(tuned, continuations=continuations, bonuses=bonuses).save(options.out, np.float16)
    return TuneResult(options.out, before, evaluate(model, parameters, held_out))


def _continuations(
    train: Sequence[TrainingText],
    held_out: Sequence[TrainingText],
    settings: TuneSettings,
    start: Adapter | None,
) -> Continuations | None:
    """Return the table counted in the texts, or that of the initial adapter if it guesses better.

    The initial adapter's table may have been counted in many more conversations. Held-out text
    decides.
    """
    if not settings.num_continuations:
        return None
    counted = ((text.token_ids, text.num_prompt) for text in train)
    own = count_continuations(counted, settings.num_continuations)
    judged = [(text.token_ids, text.num_prompt) for text in held_out]
    before = start.continuations if start is not None else None
    return best_continuations((own, before), judged)


def _generate_bonus_texts(
    checkpoint: Checkpoint, base: Any, max_tokens: int, watcher: Watcher
) -> list[TrainingText]:
    """Generate the base's answers to bundled prompts that are never part of the data."""
    texts = ModelTexts.of(checkpoint)
    prompts = [texts.encode(messages) for messages in read_prompts(CALIBRATION_PROMPTS)]
    generator = TransformersGenerator(base, texts.eos_ids)
    found: list[TrainingText] = []
    for start in range(0, len(prompts), generator.batch_size):
        watcher.on_data("bonuses", start, len(prompts))
        batch = prompts[start : start + generator.batch_size]
        for ids, (response, _) in zip(batch, generator.complete(batch, BONUS_TOKENS), strict=True):
            found.append(cut_text(ids, response, max_tokens))
    watcher.on_data("bonuses", len(prompts), len(prompts))
    return [text for text in found if len(text.token_ids) - text.num_prompt >= MIN_RESPONSE]


def _datasets(
    checkpoint: Checkpoint,
    base: Any,
    directory: Path,
    options: DataOptions,
    watcher: Watcher,
    processes: Processes,
) -> list[Dataset]:
    texts = ModelTexts.of(checkpoint)
    if not options.data:
        processes.main_first(
            lambda: _generate(checkpoint, texts, base, directory, options, watcher), base
        )
    return [
        Dataset.load(each, texts.identity, texts.tokenizer_sha256)
        for each in options.data or (directory,)
    ]


def _generate(
    checkpoint: Checkpoint,
    texts: ModelTexts,
    base: Any,
    directory: Path,
    options: DataOptions,
    watcher: Watcher,
) -> None:
    if options.generator == DATA_ENGINE:
        built = build_data_engine(checkpoint, directory.parent, watcher.on_data)
        options = replace(options, generator=str(built))
    generator = _make_generator(base, texts, options)
    prompts: PromptSource
    if options.prompts is not None:
        if options.openings is not None:
            raise TuningError(
                f"openings ({options.openings}) are for prompts that the model writes, but prompts "
                f"({options.prompts}) are given: leave one of them out"
            )
        prompts = FilePrompts(options.prompts)
    else:
        sampler = _make_sampler(base, generator)
        prompts = SelfPrompts(texts, sampler, generator, self_prompt_options(texts, options))
    new_tokens = options.max_new_tokens
    longest = _longest_prompt(generator, new_tokens)
    limits = DataLimits(options.num_conversations, new_tokens, longest)
    generate_data(texts, prompts, generator, directory, limits, watcher.on_data)


def self_prompt_options(texts: ModelTexts, options: DataOptions) -> SelfPromptOptions:
    """Return the options of self-written prompts; the default openings need a chat template."""
    openings: tuple[str, ...] = ()
    if options.openings is None:
        openings = read_openings(BUNDLED_OPENINGS) if texts.template is not None else ()
    elif options.openings != NO_OPENINGS:
        openings = read_openings(Path(options.openings))
    return SelfPromptOptions(
        options.prompt_seed, max_answer_tokens=options.max_new_tokens, openings=openings
    )


def _longest_prompt(generator: Generator, max_new_tokens: int) -> int:
    if not isinstance(generator, EngineGenerator):
        return MAX_PROMPT_TOKENS
    longest = generator.longest_prompt(max_new_tokens)
    if longest < 1:
        raise TuningError(
            f"the engine's cache has no room for a prompt and {max_new_tokens} new tokens; give a "
            "smaller max_new_tokens, or an engine with a larger CAPACITY"
        )
    return min(longest, MAX_PROMPT_TOKENS)


def _make_generator(base: Any, texts: ModelTexts, options: DataOptions) -> Generator:
    name = options.generator
    if name == "transformers":
        return TransformersGenerator(base, texts.eos_ids)
    if name.startswith(("http://", "https://")):
        return EndpointGenerator(EndpointOptions(name, options.served_name, options.api_key), texts)
    return EngineGenerator(Session.open(name, tree=Tree.root_only()), texts.identity)


def _make_sampler(base: Any, generator: Generator) -> Sampler:
    """Return the sampler of users' turns: the generator's engine if it runs texts in bulk."""
    session = generator.bulk_session if isinstance(generator, EngineGenerator) else None
    return TransformersSampler(base) if session is None else EngineSampler(session)


def _describe(
    datasets: Sequence[Dataset],
    train: list[TrainingText],
    settings: TuneSettings,
    start: Adapter | None,
) -> str:
    """Return the adapter's description of its tuning data."""
    kinds = dict.fromkeys(each.info.options.get("prompts", "conversations") for each in datasets)
    prompts = ", ".join(kinds)
    if start is not None and not settings.trains:
        masks = start.tuned_on.split(TABLE_NOTE)[0]
        return f"{masks}{TABLE_NOTE}{len(train)} conversations ({prompts})"
    return f"{len(train)} conversations ({prompts}), loss {settings.loss}, seed {settings.seed}"
