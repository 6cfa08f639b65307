"""Find words that this project avoids in its prose: python docs/words.py [--count] [PATH...].

Exit status 1 if one is found. Without paths all tracked files of the repository are read.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = {".c", ".cpp", ".css", ".h", ".hpp", ".html", ".js", ".md", ".py", ".toml", ".txt", ".yml"}
NAMES = {"Dockerfile", "Makefile", "run"}
SKIPPED = (
    "docs/words.py",
    "bita/data/",
    "tests/data/",
    "benchmarks/results/",
    "runtime/native/fuzz/seeds/",
)

# A pattern, and what a reader expects instead.
RULES = (
    (r"behind(?! (a|the|your) (reverse )?prox(y|ies)\b)", "after, or following"),
    (r"anew", "again"),
    (r"(go|goes|going|gone|went) on(?! (a|the|to)\b)", "continue"),
    (r"so many", "this many, or the number"),
    (r"told|tells?|telling", "say, report, or distinguish"),
    (r"beside", "next to, alongside, or compared with"),
    (r"(?<!there )(is|are|was|were) no(?! (longer|more)\b)", "is not a"),
    (r"at the (most|least)", "at most, at least"),
    (r"by turns", "in turn, or alternately"),
    (r"for want of", "without, or because there is no"),
    (r"lie|lies|lay", "is, or is stored"),
    (r"roads?", "path, or instruction set"),
    (r"stands?(?! (for|in|out|still|up)\b)(?!-)", "is, or is written"),
)
SUBJECT = "a sentence with a subject, or a verb"
CASED = (
    (r"\b_?(MOST|LEAST)_", "MAX_, MIN_"),
    (r'("""|// |# )(Of|Those|The same|Have|Its) ', SUBJECT),
    (r'"""(That|As|In|From|By|With|For|To|On|Where|When|If|Not|No) ', SUBJECT),
)


def found_in(text: str, is_code: bool) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the word and the advice for everything that `text` should not have."""
    cased = CASED if is_code else ()  # in Markdown # is a heading
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, advice in RULES:
            for match in re.finditer(rf"(?<![\w.-])({pattern})(?![\w-])", line, re.IGNORECASE):
                yield number, match[1].lower(), advice
        for pattern, advice in cased:
            for match in re.finditer(pattern, line):
                yield number, match[0].strip(), advice


def prose_files() -> list[Path]:
    """Return the repository's files that hold prose, as paths from the root of the repository."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return [
        path
        for path in paths
        if (path.suffix in KINDS or path.name in NAMES)
        and not str(path).startswith(SKIPPED)
        and (ROOT / path).is_file()
    ]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Find words that this project avoids.")
    parser.add_argument("paths", nargs="*", type=Path, help="files to read (default: all)")
    parser.add_argument("--count", action="store_true", help="print how often each word is found")
    args = parser.parse_args(argv)
    counts: Counter[str] = Counter()
    for path in args.paths or [ROOT / path for path in prose_files()]:
        text = path.read_text(encoding="utf-8")
        for number, word, advice in found_in(text, path.suffix != ".md"):
            counts[word] += 1
            if not args.count:
                print(f'{path}:{number}: "{word}": {advice}')
    if args.count:
        for word, count in counts.most_common():
            print(f"{count:6} {word}")
    if counts:
        print(f"{counts.total()} words to replace", file=sys.stderr)
    return int(bool(counts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
