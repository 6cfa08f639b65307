"""Child process that compiles one grammar, and that the kernel ends if it uses too much.

`grammar_trial` runs this file as a script, without the rest of the package. It reads a request as
JSON: packages (folder of llguidance), grammar, limits, tokens (hexadecimal, by row), num_rows,
eos_ids, seconds (of CPU time) and num_bytes (of memory). It prints the bytes of memory that the
grammar takes. A grammar that does not compile is not a failure here.
"""

import json
import resource
import signal
import sys
from typing import Any

_STACK_BYTES = 1 << 20  # half of the smallest thread stack where grammars are used
_NUM_STEPS = 8


class _Tokens:
    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, request: dict[str, Any]) -> None:
        self.tokens = [b""] * request["num_rows"]
        for token, data in request["tokens"].items():
            self.tokens[int(token)] = bytes.fromhex(data)
        self.eos_token_id = request["eos_ids"][0] if request["eos_ids"] else None
        self._by_byte = {data[0]: i for i, data in enumerate(self.tokens) if len(data) == 1}

    def __call__(self, text: str) -> list[int]:
        return [self._by_byte[byte] for byte in text.encode()]


def main() -> None:
    request = json.load(sys.stdin)
    sys.path.append(request["packages"])
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    eos_ids = request["eos_ids"] or None
    wrapper: Any = _Tokens(request)
    tokens = LLTokenizer(wrapper, eos_token=eos_ids, slices=[])
    mapped, resident = _memory()
    _limit(resource.RLIMIT_AS, mapped + request["num_bytes"])
    _limit(resource.RLIMIT_STACK, _STACK_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"])  # user time, without the kernel's
    limits = LLParserLimits(**request["limits"])
    matcher = LLMatcher(tokens, request["grammar"], log_level=0, limits=limits)
    print(_memory()[1] - resident)
    _follow(matcher)


def _follow(matcher: Any) -> None:
    """Consume a few tokens, alternately the lowest and the highest allowed id."""
    for step in range(_NUM_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error() or matcher.is_stopped() or not mask:
            return
        lowest, highest = (mask & -mask).bit_length() - 1, mask.bit_length() - 1
        matcher.consume_token(highest if step % 2 else lowest)
        matcher.compute_ff_tokens()


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (soft, hard))


def _memory() -> tuple[int, int]:
    """Return this process's bytes of address space and of resident memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped, resident = file.read().split()[:2]
    return int(mapped) * resource.getpagesize(), int(resident) * resource.getpagesize()


if __name__ == "__main__":
    main()
