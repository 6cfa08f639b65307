"""Cycles of the native kernels on board processors, computed by benchmarks/cycle_model.py."""

from bita.calibration.kernel_cycles import KernelCycles

CORTEX_A76 = KernelCycles(
    processor="cortex-a76",
    linear={
        "int4": (51.7, 78.2, 106.3, 152.3, 166.7, 193.7, 223.3, 252.7),
        "int4 with minima": (54.2, 80.2, 110.3, 151.3, 172.6, 199.0, 224.6, 252.6),
        "int8": (48.1, 62.1, 94.3, 113.3, 152.6, 176.6, 200.7, 224.7),
        "int8 with minima": (53.1, 72.2, 108.3, 140.4, 176.6, 200.6, 228.7, 258.0),
    },
    scores=(8.36, 9.04, 12.05, 14.05, 16.05, 18.05),
    values=(8.35, 9.04, 12.05, 14.05, 16.06, 18.06),
    weigh=69.0,
    mean=7.1,
    turn=23.1,
    add=10.1,
    squares=4.1,
    rank=5.1,
    scale=60.0,
    quantize=48.1,
    gate=200.2,
)

CORTEX_A78 = KernelCycles(
    processor="cortex-a78",
    linear={
        "int4": (50.2, 78.2, 106.3, 145.3, 162.7, 190.5, 218.6, 246.7),
        "int4 with minima": (52.2, 80.2, 108.3, 141.5, 164.6, 192.5, 220.6, 248.7),
        "int8": (35.9, 57.1, 84.8, 110.1, 137.6, 161.7, 187.1, 212.7),
        "int8 with minima": (42.7, 66.2, 98.4, 130.3, 153.7, 180.7, 207.2, 235.8),
    },
    scores=(8.36, 9.04, 12.05, 14.05, 16.05, 18.05),
    values=(8.35, 9.03, 12.05, 14.05, 16.05, 18.05),
    weigh=69.0,
    mean=6.6,
    turn=16.1,
    add=6.1,
    squares=4.0,
    rank=4.6,
    scale=57.5,
    quantize=46.4,
    gate=213.2,
)
