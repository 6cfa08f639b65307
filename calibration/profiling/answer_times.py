"""Time the answers of several sessions to the same prompts, interleaved."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bita.calibration.profiling.figures import Answer, CategoryFigures, Decoding, Percentiles
from bita.calibration.profiling.time_bound import ANSWERS_END, TimeBound
from bita.data.prompts import Question
from bita.errors import PromptError
from bita.progress import OnCount
from bita.runtime.session import Session


@dataclass(frozen=True)
class TimedAnswer:
    """An answer with the times of its n decode steps."""

    answer: Answer
    step_ms: list[float]  # [n]
    backend_ms: list[float]  # [n], time of each step inside the backend


def time_answers(
    sessions: Sequence[Session],
    questions: Sequence[Question],
    max_new_tokens: int,
    seconds: Callable[[], float],
    on_progress: OnCount,
    bound: TimeBound,
) -> list[Decoding]:
    """Answer each question with every session, beginning with a different one each time.

    Args:
        sessions: Sessions to compare.
        questions: Questions to answer.
        max_new_tokens: Limit of each answer.
        seconds: Returns the seconds since the start of the profile.
        on_progress: Called with (done, total) before each question.
        bound: Ends the answers before a question that is not expected to fit; the first one is
            always answered.

    Returns:
        The figures of each session.

    Raises:
        PromptError: if no answer of a session has a decode step.
    """
    answers: list[list[TimedAnswer]] = [[] for _ in sessions]
    began = seconds()
    for number, question in enumerate(questions):
        if number and (seconds() - began) / number > bound.left(ANSWERS_END):
            break
        on_progress(number, len(questions))
        for turn in range(len(sessions)):
            place = (number + turn) % len(sessions)
            answers[place].append(_answer(sessions[place], question, max_new_tokens, seconds()))
    return [_sum_up(timed) for timed in answers]


def _answer(session: Session, question: Question, limit: int, seconds: float) -> TimedAnswer:
    session.forget()
    session.reset_stats()
    generated = session.generate(session.as_prompt(question.messages), limit)
    stats = session.stats
    answer = Answer(
        category=question.category,
        seconds=round(seconds, 3),
        prompt_tokens=len(generated.prompt_ids),
        tokens=stats.num_tokens,
        steps=stats.num_steps,
        guarded_steps=stats.num_guarded_steps,
        from_masks=stats.num_from_masks,
        from_guesses=stats.num_from_text,
        tokens_per_second=round(stats.tokens_per_second, 2),
        first_token_ms=round(stats.prefill_ms, 3),
    )
    step_ms = [round(ms, 4) for ms in stats.step_ms]
    return TimedAnswer(answer, step_ms, [round(ms, 4) for ms in stats.backend_ms])


def _sum_up(timed: Sequence[TimedAnswer]) -> Decoding:
    answers = [each.answer for each in timed]
    steps = [ms for each in timed for ms in each.step_ms]
    backend_ms = sum(ms for each in timed for ms in each.backend_ms)
    tokens = sum(answer.tokens for answer in answers)
    if not steps:
        raise PromptError("every answer ended with its first token; give other prompts")
    return Decoding(
        tokens=tokens,
        steps=len(steps),
        tokens_per_step=round(tokens / len(steps), 4),
        masks_per_step=round(sum(answer.from_masks for answer in answers) / len(steps), 4),
        guesses_per_step=round(sum(answer.from_guesses for answer in answers) / len(steps), 4),
        guarded_share=round(sum(answer.guarded_steps for answer in answers) / len(steps), 4),
        tokens_per_second=round(1000 * tokens / sum(steps), 2),
        step_ms=Percentiles.of(steps),
        first_token_ms=Percentiles.of([answer.first_token_ms for answer in answers]),
        host_ms_per_step=round((sum(steps) - backend_ms) / len(steps), 4),
        backend_ms_per_step=round(backend_ms / len(steps), 4),
        drift=_drift([answer.tokens_per_second for answer in answers if answer.steps]),
        by_category=_by_category(timed),
        answers=answers,
    )


def _drift(speeds: Sequence[float]) -> float:
    """Return the median speed of the last quarter divided by that of the first."""
    quarter = max(len(speeds) // 4, 1)
    return round(statistics.median(speeds[-quarter:]) / statistics.median(speeds[:quarter]), 4)


def _by_category(timed: Sequence[TimedAnswer]) -> dict[str, CategoryFigures]:
    groups: dict[str, list[TimedAnswer]] = defaultdict(list)
    for each in timed:
        groups[each.answer.category].append(each)
    return {name: _category(group) for name, group in groups.items()}


def _category(timed: Sequence[TimedAnswer]) -> CategoryFigures:
    tokens = sum(each.answer.tokens for each in timed)
    steps = sum(each.answer.steps for each in timed)
    milliseconds = sum(sum(each.step_ms) for each in timed)
    return CategoryFigures(
        answers=len(timed),
        tokens_per_step=round(tokens / max(steps, 1), 4),
        tokens_per_second=round(1000 * tokens / max(milliseconds, 1e-9), 2),
    )
