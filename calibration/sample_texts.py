"""Sample texts to calibrate a build on and judge it by: a model's answers to prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bita.data.dataset import Conversation
from bita.data.generate_data import DataLimits, FilePrompts, generate_data
from bita.data.generators import EngineGenerator
from bita.data.model_texts import ModelTexts
from bita.data.prompts import BUNDLED_PROMPTS, CALIBRATION_PROMPTS
from bita.engine import Engine
from bita.errors import PromptError
from bita.progress import OnCount
from bita.runtime.session import Session
from bita.tree import Tree

HELD_OUT = 4  # every fourth of a user's prompts is for judging; the others are for calibrating


@dataclass(frozen=True)
class SampleTexts:
    """Conversations with the model."""

    train: Sequence[Conversation]  # to calibrate on
    held_out: Sequence[Conversation]  # to judge by


def prompt_files(user_prompts: Path | None) -> list[Path]:
    """Return a file to calibrate on and one to judge by; a user's file serves as both."""
    return [user_prompts] if user_prompts else [CALIBRATION_PROMPTS, BUNDLED_PROMPTS]


def answer_prompts(
    reference: Engine,
    texts: ModelTexts,
    user_prompts: Path | None,
    folder: Path,
    max_new_tokens: int,
    on_progress: OnCount,
) -> SampleTexts:
    """Answer the prompts with the float32 engine.

    A model without a chat template gets only those bundled prompts that have one message.

    Args:
        reference: Float32 engine.
        texts: Tokenizer and chat template of the model.
        user_prompts: The user's prompt file; None for the bundled prompts.
        folder: Directory of the answers; those already there are reused.
        max_new_tokens: Limit of each answer.
        on_progress: Called with (done, total).

    Raises:
        EngineError: if the engine cannot be used.
        PromptError: if too few prompts are usable.
    """
    with_chats = texts.template is not None or user_prompts is not None
    files = [FilePrompts(path, with_chats) for path in prompt_files(user_prompts)]
    answered = _answer(reference, texts, files, folder, max_new_tokens, on_progress)
    return SampleTexts(*answered) if len(answered) == 2 else _split(answered[0], user_prompts)


def answer_to_judge(
    engine: Engine,
    texts: ModelTexts,
    user_prompts: Path | None,
    folder: Path,
    max_new_tokens: int,
    on_progress: OnCount,
) -> Sequence[Conversation]:
    """Answer the prompts that judge an engine whose weights are not calibrated.

    These are all of a user's prompts, or the bundled ones to judge by. `engine` is that engine
    itself or the float32 engine; the other arguments are those of `answer_prompts`.
    """
    with_chats = texts.template is not None or user_prompts is not None
    files = [FilePrompts(user_prompts or BUNDLED_PROMPTS, with_chats)]
    return _answer(engine, texts, files, folder, max_new_tokens, on_progress)[0]


def _answer(
    engine: Engine,
    texts: ModelTexts,
    files: Sequence[FilePrompts],
    folder: Path,
    max_new_tokens: int,
    on_progress: OnCount,
) -> list[list[Conversation]]:
    """Return the conversations of each file, decoded plainly and batched where possible."""
    session = Session.open(engine.path, tree=Tree.root_only(), min_rows=1)
    generator = EngineGenerator(session, texts.identity)
    limits = DataLimits(None, max_new_tokens, generator.longest_prompt(max_new_tokens))
    return [
        list(
            generate_data(
                texts,
                prompts,
                generator,
                folder / f"answers-{Path(prompts.options['prompts']).stem}",
                limits,
                lambda _, done, total: on_progress(done, total),
            )
        )
        for prompts in files
    ]


def _split(texts: Sequence[Conversation], user_prompts: Path | None) -> SampleTexts:
    if len(texts) < HELD_OUT:
        raise PromptError(
            f"{user_prompts} has {len(texts)} usable prompts; give at least {HELD_OUT}"
        )
    train = [text for number, text in enumerate(texts) if number % HELD_OUT]
    return SampleTexts(train, texts[::HELD_OUT])
