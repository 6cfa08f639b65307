"""`verify` passes sound engines and catches unsound ones."""

from pathlib import Path

import pytest

from bita.adapter import Adapter
from bita.calibration.verify import Comparison, compare, first_difference, garbage, verify
from bita.data.prompts import read_prompts
from bita.errors import PromptError
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import Trees


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


PROMPTS = ["Hello tree", "A mask token", "The quick"]


@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_a_sound_engine_passes(session: Session, mode: str) -> None:
    comparisons = verify(session.using(mode=mode), PROMPTS, 40)
    assert [item.name for item in comparisons] == ["own adapter", "random adapter"]
    for comparison in comparisons:
        assert comparison.num_identical == comparison.num_prompts == 3
        assert comparison.forbidden == []
        assert comparison.tokens_per_step >= 1


class LooseSession(Session):
    """An unsound engine that changes the last token of each step, as a broken tree would."""

    def using(
        self,
        *,
        tree: Trees | None = None,
        adapter: Adapter | None = None,
        mode: str | None = None,
        min_rows: int | None = None,
    ) -> Session:
        session = super().using(tree=tree, adapter=adapter, mode=mode, min_rows=min_rows)
        assert isinstance(session.tree, Tree)
        if session.tree.num_nodes > 1:
            decoder = session.decoder
            step = decoder.step

            def broken(sequence: TokenSequence) -> list[int]:
                had_answer = sequence.has_answer
                tokens = step(sequence)
                return [*tokens[:-1], (tokens[-1] + 1) % 320] if had_answer else tokens

            pytest.MonkeyPatch().setattr(decoder, "step", broken)
        return session


def test_an_unsound_engine_is_caught(session: Session) -> None:
    loose = LooseSession.open(session.engine.path, num_threads=1)
    for comparison in verify(loose, PROMPTS, 20):
        assert comparison.num_identical == 0
        assert comparison.divergences[0].position == 1  # the first token comes from the prefill
        assert len(comparison.forbidden) > 0


@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_sampled_text_passes_too(session: Session, mode: str) -> None:
    for comparison in verify(session.using(mode=mode), PROMPTS, 40, sampling={"temperature": 0.9}):
        assert comparison.num_identical == 3


def test_near_ties_are_allowed_within_the_tolerance() -> None:
    for tolerance, num_forbidden in ((0.0, 1), (1e-3, 0)):
        comparison = Comparison("x", tolerance)
        compare(comparison, [1, 2, 3], [1, 2, 4], lambda ids: 1e-5 if ids == [1, 2] else 9.0)
        assert comparison.divergences[0].margin == 1e-5
        assert len(comparison.forbidden) == num_forbidden


@pytest.mark.parametrize(
    ("expected", "found", "position"),
    [([], [], None), ([1], [1], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1], 1)],
)
def test_the_first_difference_is_found(
    expected: list[int], found: list[int], position: int | None
) -> None:
    assert first_difference(expected, found) == position


def test_a_random_adapter_has_the_same_shape(session: Session) -> None:
    random = garbage(session.adapter)
    assert random.prefix_keys.shape == session.adapter.prefix_keys.shape
    assert random.mask_embeddings.std() > 2 * session.adapter.mask_embeddings.std()


def test_the_bundled_prompts_are_read() -> None:
    prompts = read_prompts()
    assert len(prompts) == 20
    assert prompts[10][0]["role"] == "system"
    assert len(read_prompts(limit=3)) == 3


def test_all_forms_of_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a"}\n\n{"turns": ["b", "c"], "category": "x"}\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "d"}]}\n'
    )
    user = [messages[-1]["content"] for messages in read_prompts(path)]
    assert user == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": ""}', "line 1: is not of the form"),
        (
            '{"prompt": "a"}\nnot json\n{"messages": [{"role": "user"}]}',
            "(?s)2 faults.*line 2.*line 3",
        ),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=message):
        read_prompts(path)


def test_ar_engines_have_nothing_to_compare(session: Session) -> None:
    comparisons = verify(session.using(tree=Tree.root_only()), PROMPTS[:1], 5)
    assert all(item.tokens_per_step == 1 for item in comparisons)


@pytest.mark.parametrize("model", ["here", "gone", "named"])
def test_fp32_engines_are_compared_with_transformers(
    model: str, tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from make_tiny_engine import write_plain_model

    from bita.cli.main import main
    from bita.export.build import BuildOptions, build_engine, check_build
    from bita.export.sources import open_checkpoint

    source = write_plain_model(tmp_path / "model")
    options = BuildOptions(precision="fp32", capacity=64)
    build_engine(check_build(open_checkpoint(str(source)), None, tmp_path / "engine", options))
    if model == "gone":
        (source / "config.json").unlink()
    args = ["verify", str(tmp_path / "engine"), "--limit", "1", "--max-new-tokens", "5"]
    named = ["--model", str(write_plain_model(tmp_path / "other", seed=1))]
    status = main(args + (named if model == "named" else []))
    out = "".join(capsys.readouterr())
    assert status == (1 if model == "named" else 0)  # another model generates another text
    expected = {
        "here": "AR against transformers: 1 of 1 prompts identical (5 tokens): ok",
        "gone": "not compared with transformers, since the base model cannot be loaded",
        "named": "AR against transformers: 0 of 1 prompts identical (5 tokens): FAILED",
    }
    assert expected[model] in out


def test_models_that_transformers_cannot_run_are_refused() -> None:
    pytest.importorskip("torch")
    from tiny_models import random_checkpoint

    from bita.errors import ModelError
    from bita.torch.base_model import load_base_model

    checkpoint = random_checkpoint(rope_parameters={"rope_type": "gguf_factors"})
    with pytest.raises(ModelError, match="rotary factors of its own"):
        load_base_model(checkpoint)
