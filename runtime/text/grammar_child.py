"""Compiles one grammar in a process that the kernel ends if it takes too much; `grammar_trial`
starts it, by its path and apart from the rest of the package.

Reads an order as JSON: packages (where llguidance lies), grammar, limits, tokens (hexadecimal, by
row), num_rows, eos_ids, seconds (of the processor) and num_bytes (of memory). Writes the bytes of
memory that the grammar takes. One that does not compile is not a failure here.
"""

import json
import resource
import signal
import sys
from typing import Any

_STACK_BYTES = 1 << 20  # half of what threads have at least where the grammar is used
_NUM_STEPS = 8


class _Tokens:
    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, order: dict[str, Any]) -> None:
        self.tokens = [b""] * order["num_rows"]
        for token, data in order["tokens"].items():
            self.tokens[int(token)] = bytes.fromhex(data)
        self.eos_token_id = order["eos_ids"][0] if order["eos_ids"] else None
        self._by_byte = {data[0]: i for i, data in enumerate(self.tokens) if len(data) == 1}

    def __call__(self, text: str) -> list[int]:
        return [self._by_byte[byte] for byte in text.encode()]


def main() -> None:
    order = json.load(sys.stdin)
    sys.path.append(order["packages"])
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    eos_ids = order["eos_ids"] or None
    wrapper: Any = _Tokens(order)
    tokens = LLTokenizer(wrapper, eos_token=eos_ids, slices=[])
    mapped, resident = _memory()
    _limit(resource.RLIMIT_AS, mapped + order["num_bytes"])
    _limit(resource.RLIMIT_STACK, _STACK_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, order["seconds"])  # in its own code, not the kernel's
    limits = LLParserLimits(**order["limits"])
    matcher = LLMatcher(tokens, order["grammar"], log_level=0, limits=limits)
    print(_memory()[1] - resident)
    _follow(matcher)


def _follow(matcher: Any) -> None:
    """Take some tokens, from both ends of those that are allowed."""
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
    """Bytes of this process: of addresses, and in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped, resident = file.read().split()[:2]
    return int(mapped) * resource.getpagesize(), int(resident) * resource.getpagesize()


if __name__ == "__main__":
    main()
