"""The testbed: a small VLM that ships with the package, its scenes and the benchmark sets made of them."""

from pathlib import Path


def checkpoint_path() -> Path:
    """The folder of the shipped checkpoint, in transformers' format."""
    return Path(__file__).parent / "checkpoint"
