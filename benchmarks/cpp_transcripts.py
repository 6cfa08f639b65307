"""Check that libbita writes the same tokens as Python, on an engine and a prompt file.

    python benchmarks/cpp_transcripts.py ENGINE --prompts mt_bench.jsonl \
        --out benchmarks/results/cpp_transcripts.json

Each part makes answers in a different way: greedy, sampled, conversations of two turns, forks,
plain decoding, tables of random trees, and random adapters. Both sides get the same prompts; their
token ids, texts and finish reasons are compared. The results of several engines are kept in one
file.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from answer_tool import AnswerTool, tool_command
from peer_report import describe_machine

from bita.adapter import random_adapter
from bita.cli.shared.progress import progress_bars
from bita.data.prompts import evenly, read_questions
from bita.errors import BitaError
from bita.runtime.generation import Generation
from bita.runtime.session import Session
from bita.tree import MAX_LEVEL, Tree
from bita.tree_table import TreeTable

SAMPLINGS: Sequence[dict[str, Any]] = (
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.1},
    {"temperature": 1.2, "min_p": 0.05, "presence_penalty": 0.3, "frequency_penalty": 0.2},
)


@dataclass
class Part:
    """Result of a part."""

    answers: int = 0  # made by both sides
    tokens: int = 0  # of all answers
    different: int = 0  # answers that differ between the sides
    # of libbita and of Python, if counted; they differ by a few if pair scores of drafts are nearly
    # equal, since each side sums them in its own order
    steps: list[int] = field(default_factory=lambda: [0, 0])
    digest: Any = field(default_factory=hashlib.sha256)

    def compare(self, found: dict[str, Any], wanted: Generation) -> None:
        self.answers += 1
        self.tokens += len(wanted.token_ids)
        ours = (found["token_ids"], found["text"], found["finish"])
        self.different += ours != (wanted.token_ids, wanted.text, wanted.finish_reason)
        self.digest.update(json.dumps(found["token_ids"]).encode())

    def described(self) -> dict[str, Any]:
        return {
            **{"answers": self.answers, "tokens": self.tokens, "different": self.different},
            **({"steps": self.steps} if any(self.steps) else {}),
            "sha256_of_token_ids": self.digest.hexdigest(),
        }


class Transcripts:
    """Both sides with one engine."""

    def __init__(self, args: argparse.Namespace, tool: AnswerTool, folder: Path) -> None:
        self.session = Session.open(args.engine, num_threads=args.threads)
        questions = evenly(read_questions(args.prompts), args.limit)
        self.questions = questions
        # messages, or the text of the last one for a model without a chat template
        self.prompts = [self.session.as_prompt(question.messages) for question in questions]
        self.max_new_tokens = args.max_new_tokens
        self._tool = tool
        self._folder = folder

    def ask(self, session: str, prompt: Any, **more: Any) -> dict[str, Any]:
        """Ask libbita for an answer to a prompt, which is a list of messages or a text."""
        options = {"max_new_tokens": self.max_new_tokens, **more.pop("options", {})}
        kind = "text" if isinstance(prompt, str) else "messages"
        return self._tool.answer(session=session, options=options, **{kind: prompt}, **more)

    def greedy(self) -> Iterator[Part]:
        part = Part()
        for prompt in self.prompts:
            found = self.ask("greedy", prompt, clear=True)
            part.compare(found, self.session.generate(prompt, self.max_new_tokens))
            yield part

    def plain(self) -> Iterator[Part]:
        """Decode without drafts in C++, and with trees in Python."""
        part = Part()
        for prompt in self.prompts[:10]:
            found = self.ask("plain", prompt, clear=True, options={"drafts": 2})
            part.compare(found, self.session.generate(prompt, self.max_new_tokens))
            yield part

    def sampled(self) -> Iterator[Part]:
        part = Part()
        for seed, prompt in enumerate(self.prompts[:40]):
            options = {**SAMPLINGS[seed % len(SAMPLINGS)], "seed": seed}
            found = self.ask("sampled", prompt, clear=True, options=options)
            wanted = self.session.generate(prompt, self.max_new_tokens, **options)
            part.compare(found, wanted)
            yield part

    def two_turns(self) -> Iterator[Part]:
        """Hold conversations of two turns, and fork each after its first answer."""
        part = Part()
        if not self.session.has_chat_template:
            return
        for number, question in enumerate(self.questions[:20]):
            talk = self.session.conversation()
            name = f"talk {number}"
            content = question.messages[-1]["content"]
            first = talk.send(content, max_new_tokens=self.max_new_tokens).run()
            part.compare(self.ask(name, [{"role": "user", "content": content}]), first)
            fork = talk.fork()
            self._tool.ask(session=f"fork {number}", fork=name)
            for side, content in ((talk, "Say it in other words."), (fork, "Why is that so?")):
                place = name if side is talk else f"fork {number}"
                wanted = side.send(content, max_new_tokens=self.max_new_tokens).run()
                part.compare(self.ask(place, [{"role": "user", "content": content}]), wanted)
            for place in (name, f"fork {number}"):
                self._tool.ask(session=place, free=True)
            yield part

    def trees(self) -> Iterator[Part]:
        """Decode with tables of random trees, and count steps too."""
        part = Part()
        for number in range(5):
            table = random_table(number, self.session)
            path = self._folder / f"tree{number}.json"
            path.write_text(table.to_json(), encoding="utf-8")
            side, steps = self.session.using(tree=table), (0, 0)
            for prompt in self.prompts[number::20]:
                found = self.ask(f"tree {number}", prompt, clear=True, tree=str(path))
                part.compare(found, side.generate(prompt, self.max_new_tokens))
                steps = found["stats"]["num_steps"], side.stats.num_steps
            part.steps = [a + b for a, b in zip(part.steps, steps, strict=True)]
            yield part

    def adapters(self) -> Iterator[Part]:
        """Decode with adapters of random numbers, whose drafts are garbage."""
        part = Part()
        identity = self.session.adapter.identity
        for seed in range(3):
            path = self._folder / f"adapter{seed}.safetensors"
            random_adapter(identity, 1 + seed, 8 * seed, scale=3.0, seed=seed).save(path)
            tree = self._folder / f"chain{seed}.json"
            tree.write_text(Tree.chain(1 + seed).to_json(), encoding="utf-8")
            for prompt in self.prompts[seed::20]:
                found = self.ask(
                    f"adapter {seed}",
                    prompt,
                    **{"clear": True, "adapter": str(path), "tree": str(tree)},
                    options={"drafts": 1},
                )
                part.compare(found, self.session.generate(prompt, self.max_new_tokens))
            yield part


def random_table(seed: int, session: Session) -> TreeTable:
    """Return four random trees by state with at most twelve rows; every second table has costs."""
    rng = random.Random(seed)
    num_masks = session.adapter.num_masks
    trees = []
    for _ in range(4):
        paths: list[tuple[int, ...]] = [()]
        for _ in range(rng.randint(1, 5)):
            parent = rng.choice(paths)
            paths.append((*parent, 1 + sum(path[:-1] == parent != path for path in paths)))
        masks = {path: rng.randint(0, min(num_masks, 2)) for path in paths[:3]}
        trees.append(Tree.from_paths(paths, masks).with_guesses(rng.randint(0, 3)))
    levels = (0, *sorted(rng.sample(range(1, MAX_LEVEL), 2)))
    by_state = tuple(tuple(rng.randrange(4) for _ in levels) for _ in range(3))
    table = TreeTable(tuple(trees), levels, by_state)
    return table.with_costs([1 + row / 20 for row in range(table.num_rows)]) if seed % 2 else table


PARTS: dict[str, Callable[[Transcripts], Iterator[Part]]] = {
    "greedy": Transcripts.greedy,
    "without drafts": Transcripts.plain,
    "sampled": Transcripts.sampled,
    "two turns and forks": Transcripts.two_turns,
    "tables of trees": Transcripts.trees,
    "random adapters": Transcripts.adapters,
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    program = args.program.split() if args.program else None
    command = tool_command(args.engine, {"num_threads": args.threads}, program, args.library)
    results: dict[str, Any] = {
        **describe_machine(args.threads),
        **{"prompts": args.prompts.name, "max_new_tokens": args.max_new_tokens},
        "libbita": args.described,
    }
    with tempfile.TemporaryDirectory() as folder, AnswerTool(command) as tool:
        transcripts = Transcripts(args, tool, Path(folder))
        with progress_bars() as show:
            for name in args.parts:
                began = time.monotonic()
                part = None
                for done, so_far in enumerate(PARTS[name](transcripts), 1):
                    part = so_far
                    show(name, done, done + 1)
                if part is None:
                    print(f"{name}: not applicable to this model", file=sys.stderr)
                    continue
                results[name] = {**part.described(), "seconds": round(time.monotonic() - began, 1)}
                print(f"{name}: {results[name]}", file=sys.stderr)
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="prompt file (JSON lines)")
    parser.add_argument("--limit", type=int, help="prompts, spread evenly over the file")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--program", help="command of another answer_tool, such as an emulator's")
    parser.add_argument("--library", type=Path, help="ONNX Runtime library for --program")
    parser.add_argument("--described", default="here", help="where libbita runs, for the result")
    parser.add_argument("--name", help="name of the result; default: the engine's")
    parser.add_argument("--out", type=Path, help="JSON file; other engines' results are kept")
    return parser.parse_args(arguments)


def main() -> int:
    args = parse()
    try:
        results = measure(args)
    except BitaError as error:
        print(error, file=sys.stderr)
        return 1
    if args.out:
        kept = json.loads(args.out.read_text()) if args.out.exists() else {}
        kept[args.name or args.engine.name] = results
        args.out.write_text(json.dumps(kept, indent=2) + "\n")
    return int(any(part["different"] for part in results.values() if isinstance(part, dict)))


if __name__ == "__main__":
    sys.exit(main())
