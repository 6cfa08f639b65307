"""Random conversations with all kinds of content, for chat templates."""

import random
import re

_WORDS = (
    *("Hi", "there", "日本語", "é", "\U0001f600", "e\u0301", "42", "3.5", "'", '"', "\\", "{", "}"),
    *(
        "<",
        ">",
        "&",
        "\x00",
        "None",
        "HELLO",
        "{{ messages }}",
        "{% endfor %}",
        "{# a #}",
        "\ufeff",
    ),
    *("<|im_end|>", "<|im_start|>user\n", "</s>", "<s>", "[INST]", "[/INST]", "<end_of_turn>"),
    *("<think>", "</think>", "<think>\nhm\n</think>\n\n", "<tool_response>", "</tool_response>"),
    *("/no_think", "word " * 50, "\u200b"),
)
_SPACES = (
    " ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\xa0",
    "\u2003",
    "\u2028",
    "\x1c",
    "\x85",
    "\u3000",
    "",
)
_ROLES = ("system", "user", "assistant", "tool", "developer")


def random_conversation(rng: random.Random, source: str) -> list[dict[str, str]]:
    """Return one to twenty messages, in which user and assistant mostly alternate.

    Some contents have string literals of `source`, a template.
    """
    texts = re.findall(r"'([^']{1,40})'", source)
    roles = [rng.choice(("user", "assistant"))] if rng.random() < 0.1 else ["user"]
    length = rng.randint(1, 20 if rng.random() < 0.3 else 6)
    while len(roles) < length:
        roles.append("assistant" if roles[-1] == "user" else "user")
    if rng.random() < 0.4:
        roles.insert(0, rng.choice(("system", "developer")))
    if rng.random() < 0.3:
        roles[rng.randrange(len(roles))] = rng.choice(_ROLES)
    return [{"role": role, "content": _content(rng, texts)} for role in roles[:20]]


def _content(rng: random.Random, texts: list[str]) -> str:
    if rng.random() < 0.05:
        return "".join(rng.choices(_SPACES, k=rng.randint(0, 3)))
    words = [rng.choice(texts) if rng.random() < 0.1 else rng.choice(_WORDS) for _ in range(4)]
    some = [word + rng.choice(_SPACES) for word in words[: rng.randint(1, 4)]]
    return rng.choice(_SPACES) + rng.choice(_SPACES) + "".join(some) + rng.choice(_SPACES)
