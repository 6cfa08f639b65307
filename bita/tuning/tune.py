"""From a model to a tuned adapter: data, then training, each continued where it was killed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bita.adapter import Adapter
from bita.data.dataset import Dataset
from bita.data.endpoint import EndpointGenerator, EndpointOptions
from bita.data.generate_data import DataLimits, FilePrompts, PromptSource, generate_data
from bita.data.generators import EngineGenerator, Generator, TransformersGenerator
from bita.data.model_texts import ModelTexts
from bita.data.samplers import TransformersSampler
from bita.data.self_prompts import SelfPromptOptions, SelfPrompts
from bita.errors import TuningError
from bita.export.checkpoint import Checkpoint
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tuning.evaluation import DraftQuality, evaluate
from bita.tuning.lean_base import load_tuning_base
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.pair_training import tune_pairs
from bita.tuning.processes import Processes
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter
from bita.tuning.trainer import StepReport, Trainer, origin_of
from bita.tuning.training_texts import TrainingText, cut_text, split_held_out, usable

MAX_PROMPT_TOKENS = 1024  # longer prompts are left out of the data


@dataclass(frozen=True)
class DataOptions:
    """Where conversations come from.

    data: a directory of conversations that are there already; nothing else counts then.
    prompts: a prompt file; None lets the model write its prompts itself.
    generator: "transformers", an engine directory, or the URL of an OpenAI-compatible endpoint,
    which serves the model as `served_name`.
    """

    data: Path | None = None
    prompts: Path | None = None
    num_conversations: int = 500
    max_new_tokens: int = 256
    generator: str = "transformers"
    served_name: str = ""
    api_key: str | None = None
    num_held_out: int = 40


@dataclass(frozen=True)
class Tuned:
    """What a run gave: the adapter file, and the quality of its drafts on held-out text."""

    adapter: Path
    before: DraftQuality
    after: DraftQuality


@dataclass(frozen=True)
class Watcher:
    """Callbacks for progress. on_data: stage, done, total. on_step: after each training step."""

    on_data: Callable[[str, int, int], None] = lambda stage, done, total: None
    on_step: Callable[[StepReport, float], None] = lambda report, progress: None


def tune(
    checkpoint: Checkpoint,
    directory: Path,
    options: DataOptions,
    settings: TuneSettings,
    out: Path,
    *,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    processes: Processes | None = None,
    start: Adapter | None = None,
    evaluate_every: int = 0,
    watcher: Watcher | None = None,
) -> Tuned:
    """Tune an adapter for `checkpoint` and write it to `out`; `directory` keeps data and run.

    start: an adapter to go on from, of the settings' sizes. dtype, load_in_4bit: of the base model;
    the adapter is float32. processes: None for this one alone, on the CPU; each of several calls
    this with the same arguments. Called again with the same ones it goes on where it was killed;
    pair scores, a matter of minutes, are learned anew. Raises TuningError, AdapterError,
    ModelError, PromptError or MissingExtraError.
    """
    watcher, processes = watcher or Watcher(), processes or Processes("cpu")
    base = load_tuning_base(checkpoint, dtype, processes, load_in_4bit)
    dataset = _dataset(checkpoint, base, directory / "data", options, watcher, processes)
    texts = [cut_text(c.prompt_ids, c.response_ids, settings.max_tokens) for c in dataset]
    train, held_out = split_held_out(usable(texts), options.num_held_out, settings.seed)
    if not held_out:
        raise TuningError(f"{len(texts)} conversations leave none to evaluate on; give at least 5")
    model = MaskModel(base)
    adapter = starting_adapter(checkpoint, model, train, settings, start)
    parameters = AdapterParameters(replace(adapter, pairs={}))
    before = evaluate(model, parameters.to(model.device), held_out)
    run = directory / "run"
    tuned_on = _described(dataset, train, settings)
    trainer = Trainer(
        model, parameters, train, settings, run, tuned_on, processes, origin_of(train, start)
    )
    trainer.run(
        lambda report: watcher.on_step(report, trainer.progress),
        evaluate=lambda: evaluate(model, parameters, held_out).report(),
        evaluate_every=evaluate_every,
    )
    if settings.pair_rank:
        parameters.pairs = tune_pairs(
            model,
            parameters,
            train[: settings.pair_texts],
            settings.pair_rank,
            settings.seed,
            lambda done, total: watcher.on_data("pair scores", done, total),
        )
    if processes.is_main:
        parameters.to_adapter(tuned_on).save(out)
    return Tuned(out, before, evaluate(model, parameters, held_out))


def _dataset(
    checkpoint: Checkpoint,
    base: Any,
    directory: Path,
    options: DataOptions,
    watcher: Watcher,
    processes: Processes,
) -> Dataset:
    texts = ModelTexts.of(checkpoint)
    if options.data is None:
        processes.main_first(lambda: _generate(texts, base, directory, options, watcher), base)
    return Dataset.load(options.data or directory, texts.identity, texts.tokenizer_sha256)


def _generate(
    texts: ModelTexts, base: Any, directory: Path, options: DataOptions, watcher: Watcher
) -> None:
    generator = _generator(base, texts, options)
    prompts: PromptSource
    if options.prompts is not None:
        prompts = FilePrompts(options.prompts)
    else:
        sampler = TransformersSampler(base)
        answers = SelfPromptOptions(max_answer_tokens=options.max_new_tokens)
        prompts = SelfPrompts(texts, sampler, generator, answers)
    new_tokens = options.max_new_tokens
    longest = _longest_prompt(generator, new_tokens)
    limits = DataLimits(options.num_conversations, new_tokens, longest)
    generate_data(texts, prompts, generator, directory, limits, watcher.on_data)


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


def _generator(base: Any, texts: ModelTexts, options: DataOptions) -> Generator:
    name = options.generator
    if name == "transformers":
        return TransformersGenerator(base, texts.eos_ids)
    if name.startswith(("http://", "https://")):
        return EndpointGenerator(EndpointOptions(name, options.served_name, options.api_key), texts)
    return EngineGenerator(Session.open(name, tree=Tree.root_only()), texts.identity)


def _described(dataset: Dataset, train: list[TrainingText], settings: TuneSettings) -> str:
    """The adapter's own note of what it was tuned on."""
    prompts = dataset.info.options.get("prompts", "conversations")
    return f"{len(train)} conversations ({prompts}), loss {settings.loss}, seed {settings.seed}"
