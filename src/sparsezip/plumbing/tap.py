"""Listen to single attention layers of a vision tower while the whole tower runs on SDPA or FlashAttention.

transformers looks its attention function up by name in `config._attn_implementation`, at every call. A listener gives
one layer a copy of its config under another name; the function behind that name notes what is wanted of the queries and
keys, then calls the function the layer would have used. No other layer, no class and no weight is touched, and no
[head, row, row] attention matrix is ever made.
"""

import copy
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..errors import UnsupportedCallError

_NAME = "sparsezip_tap"
_CHUNK = 64  # queries whose attention is held at a time where every query is needed


def cls_row(
    query: Float[Tensor, "image head row head_dim"],
    key: Float[Tensor, "image head row head_dim"],
    scale: float,
    cls: int = 0,
) -> Float[Tensor, "image head patch"]:
    """The attention probabilities of the CLS row, the first one or the last (-1), over all others, in float32."""
    row = query[:, :, :1] if cls == 0 else query[:, :, -1:]
    return _patches(((row.float() @ key.float().mT) * scale).softmax(-1)[:, :, 0], cls)


def received(
    query: Float[Tensor, "image head row head_dim"],
    key: Float[Tensor, "image head row head_dim"],
    scale: float,
    cls: int | None = None,
) -> Float[Tensor, "image head patch"]:
    """The attention each patch receives, averaged over all queries, in float32 and a few queries at a time."""
    key = key.float().mT
    total = query.new_zeros(query.shape[:3], dtype=torch.float32)
    for queries in query.split(_CHUNK, dim=2):
        total += ((queries.float() @ key) * scale).softmax(-1).sum(2)
    return _patches(total / query.shape[2], cls)


def _patches(rows: Tensor, cls: int | None) -> Tensor:
    return rows if cls is None else rows[..., 1:] if cls == 0 else rows[..., :-1]


class Listener:
    """Between `start` and `stop`, hands the queries and keys of one attention module to `heard`.

    `heard(query, key, scale)` gets [batch, head, row, head_dim], after whatever the layer does to them, keys with as
    many heads as the layer has for them.
    """

    def __init__(self, attention: Any, heard: Callable[[Tensor, Tensor, float], None]) -> None:
        """Nothing is changed before `start`."""
        self.attention, self.heard = attention, heard

    def start(self) -> None:
        """Take the place of the module's attention function."""
        self._config = self.attention.config
        _listeners[self.attention] = self
        self.attention.config = copy.copy(self._config)
        self.attention.config._attn_implementation = _NAME

    def stop(self) -> None:
        """Leave the module as it was."""
        self.attention.config = self._config
        del _listeners[self.attention]

    def usual(self) -> Callable[..., Any]:
        """The attention function whose place was taken."""
        # Every model file of transformers holds its own eager function; the others are looked up by name.
        own = vars(sys.modules[type(self.attention).__module__])
        eager = own.get("vision_eager_attention_forward") or own["eager_attention_forward"]  # Llama 4's tower: its own
        return ALL_ATTENTION_FUNCTIONS.get_interface(self._config._attn_implementation, eager)


_listeners: WeakKeyDictionary[nn.Module, Listener] = WeakKeyDictionary()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> Any:
    listener = _listeners[module]
    scale = settings.get("scaling")
    listener.heard(query, key, query.shape[-1] ** -0.5 if scale is None else scale)
    return listener.usual()(module, query, key, value, attention_mask, **settings)


AttentionInterface.register(_NAME, _attend)

_tapped: set[nn.Module] = set()  # what some tap is at
_tapping = threading.Lock()  # while a tap looks whether another is at the same


class _Enough(Exception):  # noqa: N818 - no error
    """Ends a tower pass once everything that is wanted is there."""


class Tap:
    """While entered, notes what the wanted captures need of a tower pass; restores the tower on exit.

    Entering raises UnsupportedCallError where another tap, of another thread, is at the same layers.

    With a `layer`, whose output becomes `features`, a pass ends, and with it the block, as soon as everything is there:
    what lies behind it in the tower is not run (LLaVA does not read its tower's last layer).
    `heard` holds, under the names of Captures, what was wanted of the queries and keys, one tensor [image, ...] for
    every time that the attention ran: "cls_attention" and "low_attention": the CLS row per head, or the mean attention
    received; "keys": averaged over heads; "last_query": of CLS, or the mean over all rows; "last_keys": of all heads.
    """

    def __init__(
        self,
        layer: nn.Module | None,
        wanted: Mapping[str, nn.Module],
        *,
        cls: int | None,
        received: bool = False,
        lengths: Sequence[int] = (),
    ) -> None:
        """`wanted`: for each capture the attention module that it is heard from; several may share one.

        `cls`: the row that is CLS (0 or -1). Where there is none, or with `received`, all rows speak in its place.
        `lengths`: rows of each image, for towers that run several images as one sequence.
        """
        self.layer, self.wanted, self.cls, self.received = layer, wanted, cls, received or cls is None
        self.lengths = list(lengths)
        self._modules = {*wanted.values(), *([] if layer is None else [layer])}
        self.features: Any = None
        self.heard: dict[str, list[Tensor]] = {}
        self._listeners = [
            Listener(attention, partial(self._listen, [name for name in wanted if wanted[name] is attention]))
            for attention in dict.fromkeys(wanted.values())
        ]

    def __enter__(self) -> "Tap":
        with _tapping:
            if not _tapped.isdisjoint(self._modules):
                raise UnsupportedCallError(
                    "A second call came to a vision tower while it runs for another thread, but it serves one call "
                    "at a time. Put a lock around the calls, or give every thread a model of its own."
                )
            _tapped.update(self._modules)
        self._hook = self.layer.register_forward_hook(self._note_output) if self.layer is not None else None
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for listener in self._listeners:
            listener.stop()
        if self._hook is not None:
            self._hook.remove()
        _tapped.difference_update(self._modules)
        return kind is _Enough

    def _note_output(self, layer: nn.Module, args: Any, output: Any) -> None:
        self.features = output[0] if isinstance(output, tuple) else output
        self._end()

    def _end(self) -> None:
        if torch.compiler.is_compiling():  # whole graphs have no place for an exception
            return
        if self.features is not None and self.heard.keys() == self.wanted.keys():
            raise _Enough

    def _listen(
        self,
        names: list[str],
        query: Float[Tensor, "image head row head_dim"],
        key: Float[Tensor, "image head row head_dim"],
        scale: float,
    ) -> None:
        packed = len(query) == 1 and len(self.lengths) > 1 and query.shape[2] == sum(self.lengths)
        queries, keys = (its.split(self.lengths, 2) if packed else [its] for its in (query, key))
        for name in names:
            noted = self.heard.setdefault(name, [])
            noted += [self._noted(name, *pair, scale) for pair in zip(queries, keys, strict=True)]
        self._end()

    def _noted(self, name: str, query: Tensor, key: Tensor, scale: float) -> Tensor:
        if name in ("cls_attention", "low_attention"):
            if self.cls is None or self.received:
                return received(query, key, scale, self.cls)
            return cls_row(query, key, scale, self.cls)
        if name == "keys":
            return key.float().mean(1)
        if name == "last_query":
            return (query.mean(2) if self.received else query[:, :, self.cls]).flatten(1)
        return key.transpose(1, 2).flatten(2)  # last_keys
