"""sparsezip: send fewer visual tokens to a vision-language model, and know what that costs and saves.

    import sparsezip

    method = sparsezip.methods.SparseZip()
    with sparsezip.compress(model, method) as trace:        # any transformers VLM of a supported family
        out = model.generate(**inputs, max_new_tokens=16)
    trace.images[0].kept, trace.tokens_per_layer

    sparsezip.load("testbed").ask("photo.png", "How many stars are there?", method="sparsezip")

Nothing is imported before it is used.
"""

from importlib import import_module
from typing import Any

_ROOMS = (
    "config",
    "errors",
    "images",
    "measure",
    "methods",
    "models",
    "ops",
    "pipeline",
    "plumbing",
    "tensors",
    "testbed",
)
_NAMES = {
    "Answer": "vlm",
    "Captures": "tensors",
    "Compressed": "tensors",
    "Kept": "tensors",
    "LayerView": "tensors",
    "Question": "tensors",
    "Trace": "trace",
    "VLM": "vlm",
    "attach": "pipeline",
    "compress": "pipeline",
    "compress_images": "pipeline",
    "detach": "pipeline",
    "load": "vlm",
    "load_clip": "models.load",
    "load_tower": "models.load",
    "method": "methods",
}
_LISTS = {
    "list_benchmarks": "measure.benchmarks",
    "list_methods": "methods",
    "list_models": "models",
}

__all__ = [*_ROOMS, *_NAMES, *_LISTS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    if name in _LISTS:
        return import_module(f".{_LISTS[name]}", __name__).registry.names
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
