"""The settings of a tuning run, checked once and kept in its checkpoint."""

from dataclasses import dataclass

from bita.errors import TuningError, raise_faults

LOSSES = ("kl", "ce", "mix")
ANCHORS = ("random", "consecutive")
WEIGHTS = ("decay", "confidence", "match")
PAIRS = ("joint", "after")
PREFIX_STARTS = ("activations", "normal")
MASK_STARTS = ("mean", "normal")


@dataclass(frozen=True)
class TuneSettings:
    """A tuning run; the same settings, data and seed give the same adapter.

    Raises TuningError that lists every value out of range.
    """

    num_masks: int = 3  # M
    prefix_length: int = 16  # P; 0 tunes the mask embeddings only
    mask_start: str = "mean"  # of the embedding table, or "normal": random, 0.02, as BiTA's authors
    prefix_start: str = "activations"  # of a training text, or "normal": random, 0.02
    lora_rank: int = 0  # r of LoRA on mask rows; 0 for none
    pair_rank: int = 32  # of the pair scores; 0 for none
    pairs: str = "joint"  # learned with the masks; "after": when these are tuned
    pair_rate: float = 3e-3  # learning rate of joint ones at the start
    pair_dropout: float = 0.2  # share of rows that are trained without joint pair scores
    pair_texts: int = 400  # training conversations whose drafts they are learned from, at most
    num_continuations: int = 360_000  # runs of tokens in the table of what follows them; 0 for none
    loss: str = "kl"  # to the base's logits; "ce": its argmax tokens; "mix": half of each
    decay: float = 0.8  # weight of mask k is decay**k
    # times, for a row, how likely the drafts before it are right: "confidence", by what they think;
    # "match": 1 until the first that is wrong, then 0; "decay": not at all
    weights: str = "confidence"
    anchors: str = "random"  # over the whole response; "consecutive": one window of it
    num_anchors: int = 40  # groups per conversation and step
    keep_far: float = 1.0  # share of groups whose mask k + 1 is kept, of those that keep mask k
    dropout: float = 0.0  # of the prefix, element by element
    batch_size: int = 4  # conversations per step
    context_gb: float = 4.0  # host memory a process, for texts that were read; 0: read in batches
    max_tokens: int = 1024  # of prompt and response; what is longer is cut at the end
    mask_rate: float = 3e-2  # learning rate of the mask embeddings at the start
    prefix_rate: float = 3e-2  # learning rate of the prefix at the start
    lora_rate: float = 3e-3  # learning rate of LoRA at the start
    warmup_steps: int = 20  # the first steps, in which the rates grow from 0
    clip: float = 1.0  # norm of the gradient; 0 for no clipping
    num_steps: int = 1000  # length of the cosine schedule, if max_minutes is 0; 0: pair scores only
    max_minutes: float = 0.0  # length of the schedule by the clock instead
    seed: int = 0

    def __post_init__(self) -> None:
        raise_faults(TuningError, "tuning settings", self._faults())

    @property
    def trains(self) -> bool:
        """Whether there are steps; else pair scores alone are learned."""
        return self.num_steps > 0 or self.max_minutes > 0

    def _faults(self) -> list[str]:
        least = {
            **dict.fromkeys(("num_masks", "num_anchors", "batch_size"), 1),
            **dict.fromkeys(("prefix_length", "lora_rank", "pair_rank"), 0),
            "num_continuations": 0,
            **dict.fromkeys(("clip", "num_steps", "max_minutes", "context_gb", "seed"), 0),
            "max_tokens": 8,
            "warmup_steps": 0,
            "pair_texts": 2,
        }
        faults = [
            f"{name} is {getattr(self, name)}, below {low}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        names = ("mask_rate", "prefix_rate", "lora_rate", "pair_rate")
        rates = {name: getattr(self, name) for name in names}
        faults += [f"{name} is {rate}, not above 0" for name, rate in rates.items() if not rate > 0]
        shares = {name: getattr(self, name) for name in ("decay", "keep_far")}
        faults += [
            f"{n} is {share}, not in (0, 1]" for n, share in shares.items() if not 0 < share <= 1
        ]
        dropouts = {name: getattr(self, name) for name in ("dropout", "pair_dropout")}
        faults += [
            f"{n} is {share}, not in [0, 1)" for n, share in dropouts.items() if not 0 <= share < 1
        ]
        named = {
            "loss": LOSSES,
            "weights": WEIGHTS,
            "pairs": PAIRS,
            "anchors": ANCHORS,
            "mask_start": MASK_STARTS,
            "prefix_start": PREFIX_STARTS,
        }
        faults += [
            f"{name} is {getattr(self, name)!r}, not one of {', '.join(known)}"
            for name, known in named.items()
            if getattr(self, name) not in known
        ]
        return faults
