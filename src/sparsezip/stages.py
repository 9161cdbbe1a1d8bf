"""What happens to the images of a call in front of the LLM: tower, tapped (capture), method (reduce), projector.

An image may be seen as several views (the whole and its tiles, the frames of a video), and images may have different
grids. Methods know neither: they are given batches of views of one grid, each view with its share of the budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import UnsupportedCallError, UnsupportedModelError
from .methods.base import Method
from .models.base import Adapter, Encoded, Seen, TowerPass
from .ops.budget import divided
from .plumbing.generate import Call
from .tensors import Question
from .trace import ImageTrace, Trace

Held = tuple[Int[Tensor, "_"], Int[Tensor, "_"]]  # kept patches, and the token that holds each patch


@dataclass(frozen=True, eq=False)
class Reduced:
    """What a method made of images, one entry per image in every list."""

    seen: list[Seen]
    features: list[Float[Tensor, "_ dim"]]
    held: list[Held]
    whole: list[bool]  # whether all patches are sent, as they are

    @property
    def tokens(self) -> list[int]:
        """Number of tokens of each image, the ends of lines not counted."""
        return [len(features) for features in self.features]


def wanted(adapter: Adapter, method: Method) -> frozenset[str]:
    """What is read of the tower and the question: all that the method needs, and what else it uses where offered."""
    outer = method.parts[0]
    return outer.needs | (outer.uses & offered(adapter, outer))


def offered(adapter: Adapter, method: Method) -> frozenset[str]:
    """What the adapter offers such a method."""
    return adapter.offers | (adapter.received if method.parts[0].saliency == "received" else frozenset())


def reduce(
    adapter: Adapter,
    method: Method,
    call: Call,
    seen: list[Seen],
    read: Callable[[], list[Question | None]] | None,
    trace: Trace,
    shown: Sequence[int] | None = None,
    per_row: Sequence[int] | None = None,
) -> tuple[Encoded, Reduced, Sequence[int]]:
    """What the tower makes of the images of a call, and the method in front of the LLM of that; noted in the trace.

    `read` gives the questions, if there are any, and is called if the method wants them. `shown`: which image each
    question is about; None: every image has its own. `per_row`: how many of these stand in each prompt. Returned is
    besides which entry of the result each of them gets: one per image where no question was read, else one per
    question.
    """
    outer = method.parts[0]
    shown = range(len(seen)) if shown is None else shown
    each = per_view(outer, [seen[image] for image in shown], per_row)
    mine = {image: each[place] for place, image in reversed([*enumerate(shown)])}  # of equals the first
    for image, one in enumerate(seen):
        for share, patches in zip(mine[image], one.sizes, strict=True):
            share.check(patches)
        if len(one.views) == 1:
            method.check(one.patches)
    whole = [
        all(share.sends_everything(patches) for share, patches in zip(mine[image], one.sizes, strict=True))
        for image, one in enumerate(seen)
    ]
    reads, grid, questions = frozenset[str](), None, None
    if not all(whole):
        reads = wanted(adapter, method)
        own = seen[0].grid
        smaller = outer.resized(own)
        if smaller != own:
            grid = smaller
            if not adapter.resizes:
                raise UnsupportedModelError(
                    f"{method.name} scales images down for the tower, which {adapter.name} models do not serve. "
                    "Choose another method."
                )
            if outer.keep_ratio is not None:  # it is a share of all patches, not of those that are left
                outer = replace(outer, budget=outer.asked(own[0] * own[1]), keep_ratio=None)
                each = [[outer]] * len(shown)
                mine = {image: [outer] for image in mine}
    with torch.no_grad():
        received = outer.saliency == "received"
        asked = TowerPass(captures=reads, low_layer=outer.low_layer, received=received, whole=whole, grid=grid)
        encoded = capture(adapter, call, seen, asked, trace)
        if read is not None and "question" in reads:
            with trace.timed("question"):
                questions = read()
        with trace.timed("compress"):
            if questions is not None and len(shown) > len(seen):
                encoded, mine = encoded.of(shown), dict(enumerate(each))
                seen, whole = [seen[image] for image in shown], [whole[image] for image in shown]
                shown = range(len(shown))
            reduced = _reduced(adapter, encoded, seen, mine, questions, whole)
    for number, (one, tokens) in enumerate(zip(seen, reduced.tokens, strict=True)):
        if not 1 <= tokens <= len(one.patch):
            raise UnsupportedCallError(
                f"{method.name} sends {tokens} tokens for image {number}, whose prompt has a place for 1 to "
                f"{len(one.patch)}. Choose settings that stay within that."
            )
    images = [
        ImageTrace.of(one.grid, one.grid if grid is None else grid, len(one.views), len(one.patch), tokens, *held)
        for one, tokens, held in zip(seen, reduced.tokens, reduced.held, strict=True)
    ]
    trace.images = [images[image] for image in shown]
    return encoded, reduced, shown


def tiled(method: Method) -> bool:
    """Whether a method is to be given the tiles of an image one by one: it deals out the budget itself, or as told."""
    outer = method.parts[0]
    return "tiles" in outer.uses or outer.budget_scope == "tile"


def per_view(method: Method, seen: Sequence[Seen], per_row: Sequence[int] | None = None) -> list[list[Method]]:
    """For each view of each image the method with the tokens that it may send.

    A budget is one for each view, for each image or for each prompt (`budget_scope`), dealt out by the number of
    patches. Settings without a budget hold for each view, as in the authors' code for tiled images.
    Raises BudgetError for a budget of fewer tokens than views.
    """
    if (method.budget is None and method.keep_ratio is None) or method.budget_scope == "tile":
        return [[method] * len(one.views) for one in seen]
    groups = [1] * len(seen) if method.budget_scope == "image" or per_row is None else list(per_row)
    shares, start = list[list[Method]](), 0
    for count in groups:
        group, start = seen[start : start + count], start + count
        sizes = [size for one in group for size in one.sizes]
        if len(sizes) == 1:
            shares.append([method])
            continue
        granted, shown = method.asked(sum(sizes)) or 1, sum(int((one.patch >= 0).sum()) for one in group)
        dealt = iter(sizes if granted >= shown else divided(granted, sizes))  # tiles may show padding besides
        for one in group:
            shares.append([replace(method, budget=next(dealt), keep_ratio=None) for _ in one.views])
    return shares


def _reduced(
    adapter: Adapter,
    encoded: Encoded,
    seen: list[Seen],
    methods: dict[int, list[Method]],
    questions: list[Question | None] | None,
    whole: list[bool],
) -> Reduced:
    """Every view compressed with others of its grid and method, and the views of an image side by side."""
    parts = dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]]()
    for batch in encoded.batches:
        todo = [(methods[image][view], row) for row, (image, view) in enumerate(batch.views)]
        while todo:
            method, image = todo[0][0], batch.views[todo[0][1]][0]
            frames = adapter.modality == "video" and "frames" in method.uses
            if frames or (seen[image].tiling is not None and "tiles" in method.uses):  # it deals out a budget itself
                rows = [row for _, row in todo if batch.views[row][0] == image]
                budgets = [its.budget for its in methods[image] if its.budget is not None]
                if budgets:
                    method = replace(method, budget=min(budgets))
                captures = replace(batch.captures.of(rows), total=sum(budgets) or None)
                captures = replace(captures, frames=len(rows)) if frames else captures
            else:
                rows = [row for its, row in todo if its == method]
                captures = batch.captures if len(rows) == len(batch.views) else batch.captures.of(rows)
            todo = [(its, row) for its, row in todo if row not in rows]
            asked = None if questions is None else [questions[batch.views[row][0]] for row in rows]
            made = method.compress(captures, asked)
            for row, *part in zip(rows, made.features, made.kept, made.source, strict=True):
                parts[batch.views[row]] = (part[0], part[1], part[2])
    features, held = list[Tensor](), list[Held]()
    for image, one in enumerate(seen):
        if whole[image] and encoded.tokens is not None:  # the ends of lines included
            features.append(encoded.tokens[image])
            own, holds = (its.to(encoded.tokens[image].device) for its in one.whole)
            held.append((own, holds))
            continue
        its = [parts[image, view] for view in range(len(one.views))]
        if len(its) == 1 and not adapter.interrupts:
            features.append(its[0][0])
            held.append((its[0][1], its[0][2]))
            continue
        kept, source, patches, tokens = list[Tensor](), list[Tensor](), 0, 0
        for sent, own, holds in its:
            kept.append(own + patches)
            source.append(torch.where(holds < 0, holds, holds + tokens))
            patches, tokens = patches + len(holds), tokens + len(sent)
        sent, own, holds = torch.cat([sent for sent, _, _ in its]), torch.cat(kept), torch.cat(source)
        if one.tiling is not None or adapter.interrupts:
            if adapter.interrupts:
                order = one.places(len(sent), own, holds).argsort(stable=True)
            else:
                order = _stitched(one, [len(part[0]) for part in its], own, holds)
            sent, holds = sent[order], torch.where(holds < 0, holds, order.argsort()[holds.clamp(min=0)])
        features.append(sent)
        held.append((own, holds))
    return Reduced(seen, features, held, whole)


def _stitched(
    one: Seen, sent: list[int], kept: Int[Tensor, "kept"], source: Int[Tensor, "patch"]
) -> Int[Tensor, "token"]:
    """The order in which VisionZip's authors send what is `sent` of each view, an image and its tiles.

    The whole image's tokens, patches line by line over all tiles, what each tile has in front of its patches (CLS), and
    what behind them (merged tokens).
    """
    (rows, cols), (_, across) = one.views[0], one.tiling or (1, 1)
    patch = torch.arange(len(source), device=source.device)
    tile, inside = patch // (rows * cols) - 1, patch % (rows * cols)
    line = (tile // across * rows + inside // cols) * across * cols + tile % across * cols + inside % cols
    ends = torch.tensor(sent, device=source.device).cumsum(0)
    token = torch.arange(sum(sent), device=source.device)
    view = torch.searchsorted(ends, token, right=True)
    first = torch.full((len(sent),), sum(sent), device=source.device)
    own = source[kept]
    first = first.scatter_reduce(0, view[own], own, "amin")
    rank = torch.where(token < first[view], 1, 2) * len(source)
    rank[own] = line[kept]
    rank[: sent[0]] = -len(source) + token[: sent[0]]
    return rank.argsort(stable=True)


def capture(
    adapter: Adapter,
    call: Call,
    seen: list[Seen],
    asked: TowerPass,
    trace: Trace,
) -> Encoded:
    """Run the tower once, and take patches to the spaces in which they are asked for besides."""
    with trace.timed("tower"):
        encoded = adapter.encode(call, seen, asked)
    if "projected" in asked.captures:
        with trace.timed("project"):
            encoded = encoded.with_all(lambda its: replace(its, projected=adapter.project(its.patch_features)))
    if "image_embeds" in asked.captures and adapter.clip is not None:
        with trace.timed("clip"):
            patches = adapter.clip.patches
            encoded = encoded.with_all(lambda its: replace(its, image_embeds=patches(its.patch_features)))
    return encoded


def project(adapter: Adapter, encoded: Encoded, reduced: Reduced) -> list[Float[Tensor, "_ width"]]:
    """What the LLM is sent of each image: of one that is sent whole what the unmodified model sends."""
    if encoded.tokens is None:
        return adapter.sent(reduced.features, encoded)
    fewer = [features for features, whole in zip(reduced.features, reduced.whole, strict=True) if not whole]
    sent = iter(adapter.sent(fewer, encoded) if fewer else [])
    return [own if whole else next(sent) for own, whole in zip(encoded.tokens, reduced.whole, strict=True)]
