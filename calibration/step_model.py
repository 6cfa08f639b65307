"""Model T(q) of an engine with native operators on a processor that is not available.

Weights are loaded from memory while they are multiplied; norms, attention and the rest add up:

    T(q) = overlapped(bytes of weights / bandwidth, cycles of linear layers / (cores * clock))
         + cycles of all other kernels / (cores * clock) + overheads of nodes and phases

Cycles are those of `kernel_cycles`, times factors fitted on x86. The model leaves out LoRA, clocks
that drop when a device gets warm, and cores that wait for each other longer than OVERHEAD_CYCLES.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bita.calibration.kernel_cycles import KernelCycles, row_groups
from bita.dialect_spec import NATIVE
from bita.engine import GRAPH_FILE, Engine
from bita.errors import EngineError

TILE, BLOCK, PAGE, CHUNK, MAX_QUERIES = 16, 32, 16, 64, 12  # as in kernels.h
LOOKUPS = ("Embed", "Gather")  # nodes that read only a few rows of a weight


@dataclass(frozen=True)
class Product:
    """A linear layer or the output layer."""

    tiles: int  # number of tiles of 16 outputs
    blocks: int  # number of blocks of 32 inputs
    bits: int  # of a weight
    has_minima: bool

    @property
    def kind(self) -> str:
        return f"int{self.bits}{' with minima' if self.has_minima else ''}"

    @property
    def num_bytes(self) -> int:
        """Bytes of the values, and of a float16 scale and minimum for each output of a block."""
        return self.tiles * self.blocks * (64 * self.bits + 2 * TILE * (1 + self.has_minima))


@dataclass(frozen=True)
class StepShape:
    """Dimensions of the work in a step."""

    products: tuple[Product, ...]
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    inner_size: int  # of an MLP
    vocab_size: int

    @property
    def weight_bytes(self) -> int:
        return sum(product.num_bytes for product in self.products)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a token's float16 keys and values in all layers."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Processor:
    """Cores that run a step together."""

    cycles: KernelCycles
    cores: int
    gigahertz: float
    gigabytes: float  # per second, that all cores together read from memory


# Fitted to T(q) measured on x86 (benchmarks/results/cycle_model.json), and assumed to be the same
# elsewhere.
ARITHMETIC = 1.5  # ratio of a kernel's cycles to those of llvm-mca
ATTENTION = 1.3  # the same ratio for attention
TILE_CYCLES = 50.0  # per tile and group of rows: the call, and the first and last block
OVERHEAD_CYCLES = 3000.0  # per graph node: ONNX Runtime's loop and the barriers of phases
OVERLAP = 2.0  # exponent: 1 adds the times of memory and arithmetic, infinity takes the longer


def step_shape(engine: Engine) -> StepShape:
    """Read the shape of a step from the graph.

    Raises EngineError if the engine does not have native operators.
    """
    manifest = engine.manifest
    if manifest.dialect != NATIVE.name:
        raise EngineError(
            f"{engine.path} has the dialect {manifest.dialect!r}, but processors are modelled only "
            "for the native operators of int4 and int8 engines; build one with PRECISION=int4"
        )
    import onnx_ir as ir

    graph = ir.load(engine.file(GRAPH_FILE)).graph
    shapes = {name: tuple(value.shape or ()) for name, value in graph.initializers.items()}
    products: list[Product] = []
    sizes: dict[str, int] = {}
    for node in graph:
        names = [value.name for value in node.inputs if value is not None and value.name]
        if node.op_type not in LOOKUPS:
            products += [
                _product(shapes[name], f"{name.removesuffix('values')}minima" in names)
                for name in names
                if name.endswith(".values")
            ]
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.INT:
                sizes[name] = max(sizes.get(name, 0), attribute.as_int())
    return StepShape(
        products=tuple(products),
        num_layers=manifest.num_layers,
        num_heads=sizes["num_heads"],
        num_kv_heads=manifest.num_kv_heads,
        head_dim=manifest.head_dim,
        hidden_size=manifest.hidden_size,
        inner_size=sizes.get("intermediate_size", 0),
        vocab_size=manifest.vocab_size,
    )


def _product(shape: Sequence[object], has_minima: bool) -> Product:
    tiles, blocks, num_bytes = (int(str(size)) for size in shape)
    return Product(tiles, blocks, num_bytes // 64, has_minima)


def step_ms(shape: StepShape, processor: Processor, num_rows: int, length: int) -> float:
    """Return the ms of a step after `length` tokens of text in which every row gives a token."""
    cycles = processor.cycles
    cores_hertz = processor.cores * processor.gigahertz * 1e9
    multiplied = ARITHMETIC * linear_cycles(shape, cycles, num_rows) / cores_hertz
    attended = ATTENTION * attention_cycles(shape, cycles, num_rows, length) / cores_hertz
    other = ARITHMETIC * num_rows * row_cycles(shape, cycles) / cores_hertz
    nodes = 2 * shape.num_layers + 4
    seconds = (
        overlapped(shape.weight_bytes / (1e9 * processor.gigabytes), multiplied)
        + overlapped(length * shape.slot_bytes / (1e9 * processor.gigabytes), attended)
        + other
        + nodes * OVERHEAD_CYCLES / (1e9 * processor.gigahertz)
    )
    return 1000 * seconds


def overlapped(memory: float, arithmetic: float) -> float:
    """Return the time of both together, which is between the longer one and their sum."""
    longer = max(memory, arithmetic)
    if longer == 0:
        return 0.0
    shares = (memory / longer) ** OVERLAP + (arithmetic / longer) ** OVERLAP
    return float(longer * shares ** (1 / OVERLAP))


def linear_cycles(shape: StepShape, cycles: KernelCycles, num_rows: int) -> float:
    total = 0.0
    for product in shape.products:
        groups = len(row_groups(num_rows, len(cycles.linear[product.kind])))
        blocks = product.blocks * cycles.block(product.kind, num_rows)
        total += product.tiles * (blocks + groups * TILE_CYCLES)
    return total


def attention_cycles(shape: StepShape, cycles: KernelCycles, num_rows: int, length: int) -> float:
    """Return the cycles of attention; MAX_QUERIES queries of a key-value head share all slots."""
    group = shape.num_heads // shape.num_kv_heads
    at_a_time = max(1, MAX_QUERIES // group)
    total = 0.0
    for start in range(0, num_rows, at_a_time):
        rows = min(at_a_time, num_rows - start)
        slots = length + start + rows
        total += _block_cycles(shape.head_dim, cycles, rows * group, slots)
    return shape.num_layers * shape.num_kv_heads * total


def _block_cycles(head_dim: int, cycles: KernelCycles, num_queries: int, slots: int) -> float:
    total = 0.0
    for start in range(0, num_queries, len(cycles.scores)):
        queries = min(len(cycles.scores), num_queries - start)
        pages = -(-slots // PAGE)
        total += pages * head_dim * cycles.scores[queries - 1]
        total += slots * head_dim / 16 * cycles.values[queries - 1]
    chunks = -(-slots // CHUNK)
    merged = chunks * head_dim / 16 * cycles.mean
    return total + num_queries * (-(-slots // 16) * cycles.weigh + merged)


def row_cycles(shape: StepShape, cycles: KernelCycles) -> float:
    """Return the cycles of a row outside linear layers and attention to the cache."""
    normed = shape.hidden_size / BLOCK * (cycles.scale + 2 * cycles.squares)
    added = shape.hidden_size / 16 * cycles.add
    heads = shape.num_heads * shape.head_dim
    turned = (shape.num_heads + shape.num_kv_heads) * shape.head_dim / 32 * cycles.turn
    layer = (
        2 * (normed + added)
        + turned
        + heads / BLOCK * cycles.quantize
        + shape.inner_size / BLOCK * cycles.gate
    )
    return shape.num_layers * layer + normed + shape.vocab_size / 16 * cycles.rank
