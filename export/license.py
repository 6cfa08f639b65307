"""License names as model cards and GGUF files spell them."""

SPDX_IDS = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
}


def spdx_id(text: str) -> str:
    """Return the SPDX id of a license; names without one (`gemma`, `llama3.2`) stay as they are."""
    return SPDX_IDS.get(text.strip().lower(), text.strip())
