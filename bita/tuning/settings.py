"""Settings of a tuning run, which are checked once and stored in its checkpoint."""

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
    """Settings of a tuning run; equal settings and data give an equal adapter.

    Raises TuningError that lists every value out of range.
    """

    num_masks: int = 3  # M
    prefix_length: int = 16  # P; 0 tunes only the mask embeddings
    mask_start: str = "mean"  # mean embedding, or "normal": random, 0.02, as BiTA's authors
    prefix_start: str = "activations"  # those of a training text, or "normal": random, 0.02
    lora_rank: int = 0  # rank r of LoRA on mask rows; 0 for none
    pair_rank: int = 32  # rank of the pair scores; 0 for none
    pairs: str = "joint"  # trained together with the masks; "after": after the masks
    pair_rate: float = 3e-3  # initial learning rate of joint pair scores
    pair_dropout: float = 0.2  # share of rows that are trained without joint pair scores
    pair_texts: int = 400  # maximum conversations for pair scores after the masks
    num_continuations: int = 360_000  # maximum entries of the table of continuations; 0: none
    loss: str = "kl"  # from the base's logits; "ce": from its argmax tokens; "mix": half of each
    decay: float = 0.8  # weight of mask k is decay**k
    # Further factor of a row's weight, by whether the drafts before it are right. "confidence": the
    # probability that they give to the true tokens; "match": 1 up to and including the first wrong
    # draft, then 0; "decay": no further factor.
    weights: str = "confidence"
    anchors: str = "random"  # random places in the response; "consecutive": one window of it
    num_anchors: int = 40  # groups per conversation and step
    keep_far: float = 1.0  # share of the groups with mask k that keep mask k + 1 too
    dropout: float = 0.0  # dropout of the prefix's elements
    batch_size: int = 4  # conversations per step
    context_gb: float = 4.0  # host memory per process for texts already read; 0: keep none
    max_tokens: int = 1024  # length of prompt and response at which a text is cut
    mask_rate: float = 3e-2  # initial learning rate of the mask embeddings
    prefix_rate: float = 3e-2  # initial learning rate of the prefix
    lora_rate: float = 3e-3  # initial learning rate of LoRA
    warmup_steps: int = 20  # first steps, in which the rates increase from 0
    clip: float = 1.0  # norm at which the gradient is clipped; 0 for no clipping
    num_steps: int = 1000  # length of the cosine schedule; 0 without max_minutes: pair scores only
    max_minutes: float = 0.0  # duration of the schedule, instead of num_steps; 0 for none
    seed: int = 0

    def __post_init__(self) -> None:
        raise_faults(TuningError, "tuning settings", self._faults())

    @property
    def trains(self) -> bool:
        """Whether there are training steps; otherwise only pair scores are learned."""
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
