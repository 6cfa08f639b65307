"""Measure the cost of answer options, and check that trees write the text of plain decoding.

    python benchmarks/options.py engines/smollm2-135m-instruct-int4 --prompts mt_bench.jsonl \\
        --out benchmarks/results/options.json

There are three parts:

- sampled text of the engine's trees, compared with AR's token by token, with its own and a random
  adapter
- answers under a JSON schema, checked by `jsonschema` (pip install jsonschema) and compared with
  AR's
- milliseconds per step compared with plain greedy decoding, all options interleaved
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bita.calibration.latency import describe_device
from bita.calibration.verify import verify
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import evenly, read_prompts, read_questions
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar
from bita.tree import Tree

Options = Mapping[str, Any]
SETTINGS: dict[str, Options] = {
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "min-p 0.05": {"temperature": 1.2, "min_p": 0.05},
    "repetition penalty 1.1": {"temperature": 0.7, "repetition_penalty": 1.1},
    "presence and frequency penalties": {
        **{"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.3}
    },
    "greedy, repetition penalty 1.2": {"repetition_penalty": 1.2},
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": 160},
        "topics": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
        "difficulty": {"enum": ["low", "middle", "high"]},
        "confidence": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["answer", "topics", "difficulty", "confidence"],
    "additionalProperties": False,
}
COSTS: dict[str, Options] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "temperature, top-k 40": {"temperature": 0.7, "top_k": 40},
    "temperature, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "temperature, min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "repetition penalty": {"repetition_penalty": 1.1},
    "presence and frequency penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.3},
    "logit bias of 1 token": {"logit_bias": {5: 1.0}},
    "logprobs, 5 alternatives": {"logprobs": 5},
    "stop string": {"stop": ["\x00"]},
    "JSON schema": {"grammar": Grammar.json_schema(SCHEMA)},
    "regular expression": {"grammar": Grammar.regex("[A-Za-z ,.]+")},
}


def equality(session: Session, prompts: Sequence[Any], max_new_tokens: int, show: Any) -> Any:
    """Count, for each setting, the texts equal to AR's, with the own and a random adapter."""
    report = {}
    for number, (name, options) in enumerate(SETTINGS.items()):
        seed = 1000 * number
        show("sampled text", number, len(SETTINGS))
        comparisons = verify(session, prompts, max_new_tokens, sampling={**options, "seed": seed})
        report[name] = {
            "seeds": [seed, seed + len(prompts) - 1],
            **{
                each.name: {
                    "identical": each.num_identical,
                    "prompts": each.num_prompts,
                    "tokens": each.num_tokens,
                    "tokens_per_step": round(each.tokens_per_step, 4),
                }
                for each in comparisons
            },
        }
    return report


def structured(session: Session, prompts: Sequence[Any], show: Any) -> Any:
    """Count the answers under the schema that are valid, and those that are equal to AR's."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(SCHEMA)
    plain = session.using(tree=Tree.root_only())
    options: Options = {"grammar": Grammar.json_schema(SCHEMA), "max_new_tokens": 1000}
    valid = identical = num_tokens = 0
    session.reset_stats()
    for number, prompt in enumerate(prompts):
        show("under a schema", number, len(prompts))
        given = {**options, "temperature": 0.7 * (number % 2), "seed": number}
        session.forget()
        expected = plain.generate(prompt, **given)
        session.forget()
        found = session.generate(prompt, **given)
        valid += _is_valid(validator, found.text)
        identical += found.token_ids == expected.token_ids
        num_tokens += len(found.token_ids)
    return {
        "schema": SCHEMA,
        "prompts": len(prompts),
        "valid": valid,
        "identical_to_ar": identical,
        "tokens": num_tokens,
        "tokens_per_step": round(session.stats.tokens_per_step, 4),
        "tokens_per_second": round(session.stats.tokens_per_second, 2),
        "ar_tokens_per_second": round(plain.stats.tokens_per_second, 2),
    }


def _is_valid(validator: Any, text: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text)))
    except ValueError:
        return False


def costs(session: Session, prompts: Sequence[Any], max_new_tokens: int, show: Any) -> Any:
    """Measure median ms of a plain step in one row: the whole step, and outside the backend."""
    plain = session.using(tree=Tree.root_only(), min_rows=1)
    step: dict[str, list[float]] = {name: [] for name in COSTS}
    host: dict[str, list[float]] = {name: [] for name in COSTS}
    for number, prompt in enumerate(prompts):
        show("costs", number, len(prompts))
        for name, options in COSTS.items():
            session.forget()
            plain.reset_stats()
            given = {"ignore_eos": "grammar" not in options, "seed": number, **options}
            plain.generate(prompt, max_new_tokens, **given)
            stats = plain.stats
            step[name] += stats.step_ms
            host[name] += [a - b for a, b in zip(stats.step_ms, stats.backend_ms, strict=True)]
    greedy = statistics.median(host["greedy"])
    return {
        name: {
            "step_ms": round(statistics.median(step[name]), 3),
            "host_ms": round(statistics.median(host[name]), 4),
            "more_than_greedy_ms": round(statistics.median(host[name]) - greedy, 4),
            "steps": len(step[name]),
        }
        for name in COSTS
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--prompts", type=Path, required=True, help="questions in MT-Bench format")
    parser.add_argument("--limit", type=int, default=40, help="prompts for each setting")
    parser.add_argument("--structured", type=int, default=100, help="prompts under a schema")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    questions = [question.messages for question in read_questions(args.prompts)]
    several = evenly([*questions, *read_prompts()], args.structured)
    report: dict[str, Any] = {}
    for path in args.engines:
        session = Session.open(path, num_threads=args.threads)
        with progress_bars() as show:
            report[path.name] = {
                "mode": session.mode,
                "tree": str(session.tree),
                "equality": equality(
                    session, evenly(questions, args.limit), args.max_new_tokens, show
                ),
                "structured": structured(session, several, show),
                "costs": costs(session, evenly(questions, 6), args.max_new_tokens, show),
            }
        device = describe_device(args.threads)
        text = json.dumps({"device": device, "engines": report}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")
        _print(path.name, report[path.name])
    return int(not all(_passes(each) for each in report.values()))


def _passes(report: Mapping[str, Any]) -> bool:
    texts = [
        each
        for setting in report["equality"].values()
        for each in setting.values()
        if isinstance(each, dict)
    ]
    shaped = report["structured"]
    return all(each["identical"] == each["prompts"] for each in texts) and (
        shaped["valid"] == shaped["identical_to_ar"] == shaped["prompts"]
    )


def _print(name: str, report: Mapping[str, Any]) -> None:
    print(name, report["mode"], report["tree"])
    for setting, figures in report["equality"].items():
        counts = [
            f"{which} {each['identical']} of {each['prompts']}"
            for which, each in figures.items()
            if isinstance(each, dict)
        ]
        print(f"  {setting}: {', '.join(counts)}")
    print("  under a schema:", {k: v for k, v in report["structured"].items() if k != "schema"})
    for option, figures in report["costs"].items():
        print(f"  {option}: {figures}")


if __name__ == "__main__":
    sys.exit(main())
