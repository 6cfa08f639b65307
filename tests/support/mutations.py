"""Random changes of file contents, determined by a seed."""

import copy
import random
from typing import Any

LEAVES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**40, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e400),
    *(
        float("nan"),
        "",
        "x",
        "3",
        "a" * 5000,
        "../x",
        "\0",
        "\ud800",
        "9" * 5000,
        [],
        {},
        [[]],
        [1],
    ),
    *([0] * 5000, {"a": {}}, [{"path": [1], "masks": 10**9}], {"bytes": 0, "sha256": "0" * 64}),
]


def mutated_json(value: Any, rng: random.Random) -> Any:
    """Return a copy with one to three changes: other values or keys, parts doubled or removed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        value = _mutate(value, rng)
    return value


def _mutate(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return copy.deepcopy(rng.choice(LEAVES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, choice = rng.choice(keys), rng.random()
    if choice < 0.15:
        del value[key]
    elif choice < 0.25 and isinstance(value, dict):
        value[rng.choice(["x", "", "nodes", "__metadata__", "plan"])] = value.pop(key)
    elif choice < 0.3 and isinstance(value, list):
        value.extend(copy.deepcopy(value) * rng.randint(1, 3))
    else:
        value[key] = _mutate(value[key], rng)
    return value


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with bytes changed, removed, doubled or inserted, mostly near the start."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(min(len(changed), rng.choice([16, 400, 10**9])) or 1)
        choice = rng.random()
        if choice < 0.7:
            changed[place : place + 1] = bytes(
                [rng.choice([*b'0129{}[]",:-e', rng.randrange(256)])]
            )
        elif choice < 0.8:
            del changed[place : place + rng.randint(1, 50)]
        elif choice < 0.9:
            changed[place:place] = changed[place : place + rng.randint(1, 50)]
        else:
            changed[place:place] = rng.choice([b"[" * 3000, b"9" * 5000, b"\xff\xff", b"\0" * 8])
    return bytes(changed)
