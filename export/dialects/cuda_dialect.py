"""The standard dialect for ONNX Runtime's CUDA provider."""

from bita.export.dialects.standard_dialect import StandardDialect


class CudaDialect(StandardDialect):
    """The standard dialect without operators that copy from the host in each run.

    A captured graph repeats such a copy from memory that is no longer valid: GatherND of the CUDA
    provider sends sizes over.
    """

    gathers_elements = True
