"""`bita verify`: prove that an engine's text is that of plain decoding."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.answers import add_sampling, sampling_of
from bita.cli.shared.flags import TREE_HELP, add_backend, add_command, add_threads, positive

if TYPE_CHECKING:
    from bita.calibration.transformers_reference import TransformersReference
    from bita.calibration.verify import Comparison
    from bita.runtime.session import Prompt, Session


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "verify",
        "compare tree decoding with AR on the same engine, token by token",
        "bita verify engines/smollm2-135m-instruct-int4 --prompts mt_bench.jsonl",
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("--prompts", type=Path, help="JSONL file; default: bita-edge's own 20")
    parser.add_argument("--limit", type=positive, help="take the first prompts only")
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: the engine's own")
    parser.add_argument("--mode", choices=("exact", "tree"), help="default: the engine's own")
    add_backend(parser)
    add_threads(parser)
    parser.add_argument(
        "--model",
        help="the base model, to compare fp32 AR with transformers (default: the engine's, where "
        "transformers is installed; - for no such comparison)",
    )
    add_sampling(parser, default="greedy")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.calibration.verify import verify
    from bita.cli.shared.progress import progress_bar
    from bita.cli.shared.trees import read_tree
    from bita.data.prompts import read_prompts
    from bita.runtime.options import Options
    from bita.runtime.session import Session

    sampling = sampling_of(args)
    Options.of(**sampling)
    session = Session.open(
        args.engine, num_threads=args.threads, check_hashes=True, backend=args.backend
    )
    tree = read_tree(args.tree, session.adapter.num_masks) if args.tree else session.tree
    session = session.using(tree=tree, mode=args.mode)
    messages = read_prompts(args.prompts, args.limit)
    prompts = [session.as_prompt(item) for item in messages]
    print(f"{args.engine}: mode {session.mode}, tree: {tree}")
    with progress_bar("verifying") as bar:
        bar.start(3 * len(prompts))
        comparisons = verify(session, prompts, args.max_new_tokens, bar.add, sampling)
    for comparison in comparisons:
        _report(comparison)
    if not sampling and (reference := _reference(args.model, session)):
        comparison = _against_transformers(session, reference, prompts, args.max_new_tokens)
        comparisons.append(comparison)
        _report(comparison)
    return int(any(comparison.forbidden for comparison in comparisons))


def _reference(model: str | None, session: "Session") -> "TransformersReference | None":
    """The base model in transformers, if any; one that the user names must be there."""
    from bita.calibration.transformers_reference import TransformersReference
    from bita.errors import ModelError
    from bita.export.sources import open_checkpoint

    if model is not None:
        return None if model == "-" else TransformersReference(open_checkpoint(model))
    manifest = session.engine.manifest
    if manifest.precision != "fp32" or not (find_spec("torch") and find_spec("transformers")):
        return None
    try:
        return TransformersReference(open_checkpoint(manifest.model))
    except ModelError as error:
        print(f"not compared with transformers, since the base model cannot be loaded: {error}")
        return None


def _against_transformers(
    session: "Session",
    reference: "TransformersReference",
    prompts: "Sequence[Prompt]",
    max_new_tokens: int,
) -> "Comparison":
    from bita.calibration.verify import NEAR_TIE, Comparison, compare, margin_behind
    from bita.cli.shared.progress import progress_bar
    from bita.tree import Tree

    plain = session.using(tree=Tree.root_only())
    comparison = Comparison("AR against transformers", NEAR_TIE["fp32"])
    with progress_bar("transformers") as bar:
        bar.start(len(prompts))
        for prompt in prompts:
            ids = session.encode(prompt)
            expected = reference.greedy(ids, max_new_tokens, session.end_ids(prompt))
            found = plain.generate(prompt, max_new_tokens).token_ids
            compare(comparison, expected, found, margin_behind(reference.margin, ids))
            bar.add(1)
    return comparison


def _report(comparison: "Comparison") -> None:
    rate = ""
    if comparison.tokens_per_step:
        rate = (
            f", {comparison.tokens_per_step:.2f} tokens per step, "
            f"{comparison.tokens_per_second:.0f} tokens/s, AR {comparison.ar_tokens_per_second:.0f}"
        )
    verdict = "FAILED" if comparison.forbidden else "ok"
    print(
        f"{comparison.name}: {comparison.num_identical} of {comparison.num_prompts} prompts "
        f"identical ({comparison.num_tokens} tokens{rate}): {verdict}"
    )
    for item in comparison.divergences[:10]:
        out = sys.stderr if item in comparison.forbidden else sys.stdout
        margin = "" if item.margin is None else f", top-2 margin {item.margin:.2g}"
        print(
            f"  prompt {item.prompt_index}, new token {item.position}: {item.found} instead of "
            f"{item.expected}{margin}",
            file=out,
        )
