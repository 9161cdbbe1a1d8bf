"""The VLM families: one file each, which describes where things are; `load.py` opens checkpoints."""

from ..registry import Registry

registry = Registry("sparsezip.models", "model family")
