"""`bita verify`: prove that an engine writes the same text with drafts as without."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.answers import add_sampling, sampling_of
from bita.cli.shared.flags import TREE_HELP, add_backend, add_command, add_threads, positive
from bita.cli.shared.output import add_json, json_report

if TYPE_CHECKING:
    from bita.calibration.transformers_reference import TransformersReference
    from bita.calibration.verify import Comparison, Divergence
    from bita.runtime.session import Prompt, Session


MAX_SHOWN = 10  # differences printed per comparison; --json has all of them


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "verify",
        "compare tree decoding with plain decoding on the same engine, token by token",
        "bita verify engines/smollm2-135m-instruct-int4 --prompts mt_bench.jsonl",
        stdout="a line for each comparison and its differences; progress goes to standard error",
        more=["The exit status is 1 if a text differs where it must not."],
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument(
        "--prompts", type=Path, help="JSONL file; default: the 20 prompts of bita-edge"
    )
    parser.add_argument("--limit", type=positive, help="use the first prompts only")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=128, help="length of each answer (default 128)"
    )
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: that of the engine")
    parser.add_argument("--mode", choices=("exact", "tree"), help="default: the mode of the engine")
    add_backend(parser)
    add_threads(parser)
    parser.add_argument(
        "--model",
        help="base model for comparing plain decoding in fp32 with transformers; default: the "
        "engine's, if transformers is installed; - to skip the comparison",
    )
    add_sampling(parser, default="greedy")
    add_json(parser, "all comparisons with every difference")
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
    with json_report(args.json) as report:
        print(f"{args.engine}: mode {session.mode}, tree: {tree}")
        with progress_bar("verifying") as bar:
            bar.start(3 * len(prompts))
            comparisons = verify(session, prompts, args.max_new_tokens, bar.add, sampling)
        if not sampling and (reference := _reference(args.model, session)):
            comparisons.append(
                _compare_with_transformers(session, reference, prompts, args.max_new_tokens)
            )
        for comparison in comparisons:
            _print(comparison)
        failed = any(comparison.forbidden for comparison in comparisons)
        report |= {
            "engine": str(args.engine),
            "mode": session.mode,
            "tree": str(tree),
            "passed": not failed,
            "comparisons": [comparison_facts(each) for each in comparisons],
        }
    return int(failed)


def _reference(model: str | None, session: "Session") -> "TransformersReference | None":
    """Load the base model in transformers, if it is available; one named by the user must be."""
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
        print(
            f"not compared with transformers, since the base model cannot be loaded: {error}",
            file=sys.stderr,
        )
        return None


def _compare_with_transformers(
    session: "Session",
    reference: "TransformersReference",
    prompts: "Sequence[Prompt]",
    max_new_tokens: int,
) -> "Comparison":
    from bita.calibration.verify import NEAR_TIE, Comparison, compare, margin_after
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
            compare(comparison, expected, found, margin_after(reference.margin, ids))
            bar.add(1)
    return comparison


def comparison_facts(comparison: "Comparison") -> dict[str, Any]:
    """Return a comparison for JSON; figures that were not measured are null."""
    return {
        "name": comparison.name,
        "passed": not comparison.forbidden,
        "prompts": comparison.num_prompts,
        "identical_prompts": comparison.num_identical,
        "tokens": comparison.num_tokens,
        "tokens_per_step": comparison.tokens_per_step or None,
        "tokens_per_second": comparison.tokens_per_second or None,
        "plain_tokens_per_second": comparison.ar_tokens_per_second or None,
        "differences": [_difference_facts(each, comparison) for each in comparison.divergences],
    }


def _difference_facts(difference: "Divergence", comparison: "Comparison") -> dict[str, Any]:
    return {
        "prompt": difference.prompt_index,
        "new_token": difference.position,
        "expected_token_id": difference.expected,
        "found_token_id": difference.found,
        "logit_margin": difference.margin,
        "allowed": difference not in comparison.forbidden,
    }


def _print(comparison: "Comparison") -> None:
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
    for item in comparison.divergences[:MAX_SHOWN]:
        margin = "" if item.margin is None else f", top-2 margin {item.margin:.2g}"
        print(
            f"  prompt {item.prompt_index}, new token {item.position}: {item.found} instead of "
            f"{item.expected}{margin}"
        )
    if len(comparison.divergences) > MAX_SHOWN:
        print(f"  and {len(comparison.divergences) - MAX_SHOWN} more; --json lists all")
