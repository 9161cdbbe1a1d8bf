"""What becomes of the patches that do not stay: groups of them are merged into contextual tokens.

A grouping is `labels`: the group of every patch that does not stay, -1 for those that do. No group is ever empty and no
patch without one, as long as there are at least as many such patches as groups.

Sources: VisionZip (Yang et al., CVPR 2025) for the strided targets, SparseZip (2025) for the clusters, SparseVLM (Zhang
et al., ICML 2025) for recycling, and through TCFormer (Zeng et al., CVPR 2022) for its density peaks.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import FailureError
from ..tensors import Captures, Compressed, Kept
from .score import RESOLUTION, cosine, pairs, unit
from .select import line_ends, top


def remaining(kept: list[Int[Tensor, "_"]], patches: int) -> Bool[Tensor, "image patch"]:
    """Which patches are not kept."""
    rest = torch.ones(len(kept), patches, dtype=torch.bool, device=kept[0].device)
    for row, indices in zip(rest, kept, strict=True):
        row[indices] = False
    return rest


def strided(
    features: Float[Tensor, "image patch dim"],
    keys: Float[Tensor, "image patch key"],
    rest: Bool[Tensor, "image patch"],
    count: int,
    *,
    add: bool,
) -> tuple[Int[Tensor, "image patch"], Float[Tensor, "image count dim"]]:
    """Group the remaining patches with `count` of them taken at an even stride, by cosine of the keys.

    Returns the labels and one token per group: the mean of all its members or, with `add`, the target PLUS the mean of
    the others, as VisionZip's code has it (twice the norm of a patch).
    """
    rank = rest.cumsum(-1) - 1
    step = rest.sum(-1, keepdim=True) // count
    targets = (rest & (rank % step == 0) & (rank // step < count)).nonzero()[:, 1].view(len(rest), count)
    labels = cosine(keys, _at(keys, targets)).argmax(-1)
    labels.scatter_(1, targets, torch.arange(count, device=keys.device).expand_as(targets))
    labels.masked_fill_(~rest, -1)
    if not add:
        return labels, mean(features, labels, count)
    share = _members(labels, count).float()
    share.scatter_(2, targets[..., None], 0)
    share /= share.sum(-1, keepdim=True).clamp(min=1)
    share.scatter_(2, targets[..., None], 1)
    return labels, _product(share, features).to(features.dtype)


def clustered(
    keys: Float[Tensor, "image patch key"],
    rest: Bool[Tensor, "image patch"],
    weights: Float[Tensor, "image patch"],
    count: int,
    centres: int,
    iterations: int,
    seed: int,
) -> Int[Tensor, "image patch"]:
    """Group the remaining patches by weighted k-means on the directions of their keys; returns the labels.

    k-means++ draws `centres` seeds (by `seed` alone, the same draws for every image), `iterations` Lloyd steps follow,
    then average linkage by cosine joins the `centres` groups to `count`. `weights` must be positive.
    """
    directions = unit(keys)
    middles = _at(directions, _seeds(directions, rest, weights, centres, seed))
    for _ in range(iterations):
        member = _members(pairs(directions, middles).argmax(-1).masked_fill(~rest, -1), centres)
        moved = unit(_product(member * weights[:, None], directions))
        middles = torch.where(member.any(-1, keepdim=True), moved, middles)
    likeness = pairs(directions, middles)
    labels = _fill_empty(likeness.argmax(-1).masked_fill(~rest, -1), likeness)
    if centres > count:
        share = _members(labels, centres) * weights[:, None]
        middles = unit(_product(share, directions))
        joined = _link(pairs(middles, middles), share.sum(-1), count)
        labels = torch.where(rest, joined.gather(1, labels.clamp(min=0)), -1)
    return labels


def weighted_mean(
    features: Float[Tensor, "image patch dim"],
    labels: Int[Tensor, "image patch"],
    weights: Float[Tensor, "image patch"],
    count: int,
) -> Float[Tensor, "image count dim"]:
    """One token per group: the mean of its members under `weights` (positive), in the features' dtype."""
    share = _members(labels, count) * weights[:, None]
    return _product(share / share.sum(-1, keepdim=True), features).to(features.dtype)


def mean(
    features: Float[Tensor, "image patch dim"], labels: Int[Tensor, "image patch"], count: int
) -> Float[Tensor, "image count dim"]:
    """One token per group: the mean of its members, in the features' dtype."""
    return weighted_mean(features, labels, torch.ones_like(labels, dtype=torch.float32), count)


def bipartite(
    keys: Float[Tensor, "image patch key"], count: int
) -> tuple[Int[Tensor, "image patch"], Int[Tensor, "image count"]]:
    """Group all patches: in rounds, the even tokens most like an odd one join it, by cosine of their mean keys.

    A round merges half of the tokens at most. Returns the labels, and of each group the patch that the others joined,
    ascending. Raises FailureError when a cosine is not finite. Source: ToMe (Bolya et al., ICLR 2023).
    """
    images, patches, _ = keys.shape
    labels = roots = torch.arange(patches, device=keys.device).repeat(images, 1)
    while (tokens := roots.shape[1]) > count:
        middles = mean(keys.float(), labels, tokens)
        likeness, partner = cosine(middles[:, ::2], middles[:, 1::2]).max(-1)
        joins = torch.stack(top(likeness, [min(tokens - count, tokens // 2)] * images))
        every = torch.arange(tokens, device=keys.device).repeat(images, 1)
        target = every.scatter(1, 2 * joins, 2 * partner.gather(1, joins) + 1)
        stays = target == every
        labels = (stays.cumsum(-1) - 1).gather(1, target).gather(1, labels)
        roots = roots[stays].view(images, -1)
    return labels, roots


def cells(grid: tuple[int, int], count: int) -> Int[Tensor, "patch"]:
    """The cell of each patch, of `count` rectangles that tile a grid of (rows, cols) nearly evenly, in raster order."""
    rows, cols = grid
    ends = torch.tensor(line_ends(grid, count))
    line = torch.arange(rows) * (len(ends) - 1) // rows
    start, stop = ends[line, None], ends[line + 1, None]
    return (start + torch.arange(cols) * (stop - start) // cols).flatten()


def pooled(captures: Captures, count: int) -> Compressed:
    """The mean of each of `count` cells of the grid; no single patch is kept."""
    labels = cells(captures.grid, count).to(captures.features.device).repeat(captures.images, 1)
    none = labels.new_empty(0)
    tokens = mean(captures.patch_features, labels, count)
    return Compressed(features=list(tokens), kept=[none] * captures.images, source=list(labels))


def nearest(
    features: Float[Tensor, "image patch dim"], kept: Int[Tensor, "image count"]
) -> tuple[Int[Tensor, "image patch"], Float[Tensor, "image count dim"]]:
    """Every patch joins the kept one it is most like, by cosine of the features.

    Returns the labels, those of the kept patches included, and the mean of each group. Source: VScan (TMLR 2026).
    """
    count = kept.shape[1]
    labels = cosine(features, _at(features, kept)).argmax(-1)
    labels = labels.scatter(1, kept, torch.arange(count, device=kept.device).expand_as(kept))
    return labels, mean(features, labels, count)


def absorbed(
    features: Float[Tensor, "image patch dim"],
    keys: Float[Tensor, "image patch key"],
    attention: Float[Tensor, "image patch"],
    kept: list[Int[Tensor, "_"]],
    *,
    add: bool,
    neighbours: int = 32,
) -> Compressed:
    """Each kept patch takes in the patches it is most like, by cosine of the keys; one more token takes in the rest.

    A token is the mean of the kept patch, with weight 1, and its neighbours, kept ones or not, with their attention as
    weights; the last token that of the others under their attention. With `add` it is the sum instead. A patch that
    is kept twice is a neighbour of itself, and takes from the rest the lowest-numbered patch, as in the authors' code.
    Where no patch is left there is no last token. Source: LLaVA-PruMerge (ICCV 2025).
    """
    tokens, source = [], []
    attention = attention.clamp(min=1e-12)  # it underflows where one patch has it all
    others = [rest.nonzero()[:, 0] for rest in remaining(kept, features.shape[1])]
    for i, stay in enumerate(kept):
        rest = others[i][len(stay) - len(set(stay.tolist())) :]
        members = torch.cat([stay, rest]).sort().values
        likeness = cosine(keys[i : i + 1, stay], keys[i : i + 1, members])[0]
        likeness.scatter_(1, torch.searchsorted(members, stay)[:, None], -torch.inf)  # not itself
        near = likeness.argsort(dim=-1, descending=True, stable=True)[:, : min(neighbours, len(members) - 1)]
        weights = attention.new_zeros(len(stay) + 1, features.shape[1])
        weights[:-1].scatter_add_(1, members[near], attention[i, members[near]])
        weights[torch.arange(len(stay), device=stay.device), stay] += 1
        weights[-1, rest] = attention[i, rest]
        weights = weights if len(rest) else weights[:-1]
        share = weights / weights.sum(-1, keepdim=True)
        held = share.max(0)
        source.append(torch.where(held.values > 0, held.indices, -1))
        tokens.append(((weights if add else share) @ features[i].float()).to(features.dtype))
    return Compressed(features=tokens, kept=[stay.sort().values for stay in kept], source=source)


def append(
    selection: Compressed, labels: Int[Tensor, "image patch"], merged: Float[Tensor, "image count dim"]
) -> Compressed:
    """The selection with the merged tokens behind it, and the patches of each group pointing to its token."""
    return Compressed(
        features=[torch.cat([sent, groups]) for sent, groups in zip(selection.features, merged, strict=True)],
        kept=selection.kept,
        source=[
            torch.where(group < 0, place, group + len(sent))
            for sent, place, group in zip(selection.features, selection.source, labels, strict=True)
        ],
    )


def recycled(
    selection: Kept,
    scores: Float[Tensor, "patch"],
    hidden: Float[Tensor, "patch width"],
    pool: int,
    count: int,
    noise: Float[Tensor, "pool"] | None = None,
) -> Kept:
    """The selection (of ONE row) with `count` tokens behind it, into which the best `pool` dropped ones are merged.

    The dropped ones, by falling score, are grouped around density peaks of `hidden`, and a group's token is its mean.
    """
    rest = (selection.source[0] < 0).nonzero()[:, 0]
    best = rest[scores[rest].argsort(descending=True, stable=True)[:pool]]
    labels, _ = peaks(hidden[best], count, noise)
    merged = weighted_mean(hidden[best][None], labels[None], labels.new_ones(1, len(best)).float(), count)[0]
    source = selection.source[0].index_copy(0, best, labels + len(selection.indices[0]))
    return Kept(indices=selection.indices, source=[source], merged=[merged])


def peaks(
    tokens: Float[Tensor, "token width"], count: int, noise: Float[Tensor, "token"] | None = None
) -> tuple[Int[Tensor, "token"], Int[Tensor, "count"]]:
    """Group tokens around `count` density peaks: the label of each, and the peaks, the most marked one first.

    A token is dense if its `count` nearest, itself included, are near, and a peak if it is dense and far from what is
    denser. Of equally dense ones the lower index is the denser; with `noise`, which the published code adds to the
    density, neither is. Raises FailureError for tokens that are not finite.
    """
    centred = tokens.float() - tokens.float().mean(0)
    inner = centred @ centred.mT
    inner = (inner + inner.mT) / 2  # so that tokens nearest to each other are equally dense
    length = inner.diagonal()
    squared = (length[:, None] + length - 2 * inner).clamp(min=0) / tokens.shape[1]
    spread = squared.topk(count, largest=False).values.mean(-1)
    if not spread.isfinite().all():
        raise FailureError(
            "The hidden states inside the LLM are not finite, so its visual tokens cannot be merged. If it runs in "
            "float16, use bfloat16 or float32."
        )
    density = (
        -spread if noise is None else torch.exp(-spread) + noise
    )  # its log, where none can be too small for a float
    denser = density > density[:, None]
    if noise is None:
        index = torch.arange(len(tokens), device=tokens.device)
        denser |= (density == density[:, None]) & (index < index[:, None])
    distance = squared.sqrt()
    apart = torch.where(denser, distance, distance.max()).amin(-1)
    marked = density + apart.log() if noise is None else density * apart
    centres = marked.argsort(descending=True, stable=True)[:count]
    labels = distance[:, centres].argmin(-1)
    labels[centres] = torch.arange(count, device=tokens.device)
    return labels, centres


def _at(
    values: Float[Tensor, "image patch key"], indices: Int[Tensor, "image count"]
) -> Float[Tensor, "image count key"]:
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


def _members(labels: Int[Tensor, "image patch"], count: int) -> Bool[Tensor, "image count patch"]:
    return labels[:, None] == torch.arange(count, device=labels.device)[:, None]


def _product(
    share: Float[Tensor, "image count patch"], values: Float[Tensor, "image patch dim"]
) -> Float[Tensor, "image count dim"]:
    return pairs(share, values.mT)


def _seeds(
    directions: Float[Tensor, "image patch key"],
    rest: Bool[Tensor, "image patch"],
    weights: Float[Tensor, "image patch"],
    count: int,
    seed: int,
) -> Int[Tensor, "image count"]:
    """k-means++: each seed is drawn with a probability of weight x squared distance to the seeds so far. Ascending."""
    free = torch.where(rest, weights.double(), 0)
    chance, distance, seeds = free, torch.full_like(free, torch.inf), []
    for draw in torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist():
        ladder = chance.cumsum(-1)
        drawn = torch.searchsorted(ladder, ladder[:, -1:] * draw, right=True)
        seeds.append(drawn)
        free = free.scatter(1, drawn, 0)
        away = 1 - pairs(directions, _at(directions, drawn))[..., 0]  # half the squared distance
        distance = torch.minimum(distance, torch.where(away > RESOLUTION, away, 0))
        chance = free * distance
        chance = torch.where(chance.sum(-1, keepdim=True) > 0, chance, free)  # nothing is left but copies of the seeds
    return torch.cat(seeds, 1).sort(-1).values


def _fill_empty(
    labels: Int[Tensor, "image patch"], likeness: Float[Tensor, "image patch count"]
) -> Int[Tensor, "image patch"]:
    """Give each empty group the patch that fits its own group worst, taken from a group that can spare one."""
    sizes = _members(labels, likeness.shape[-1]).sum(-1)
    fit = likeness.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    for image, group in (sizes == 0).nonzero().tolist():
        own = labels[image].clamp(min=0)
        spare = (labels[image] >= 0) & (sizes[image, own] > 1)
        patch = fit[image].masked_fill(~spare, torch.inf).argmin()
        sizes[image, own[patch]] -= 1
        sizes[image, group] += 1
        labels[image, patch] = group
    return labels


def _link(
    likeness: Float[Tensor, "image centre centre"], mass: Float[Tensor, "image centre"], count: int
) -> Int[Tensor, "image centre"]:
    """Average linkage: the two most alike groups are joined until `count` are left. Returns each centre's new group."""
    images, centres = mass.shape
    image = torch.arange(images, device=mass.device)
    group = torch.arange(centres, device=mass.device).repeat(images, 1)
    alive = torch.ones_like(group, dtype=torch.bool)
    likeness = likeness.clone()
    likeness.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    for _ in range(centres - count):
        best = likeness.flatten(1).argmax(-1)
        into, gone = best // centres, best % centres  # into < gone: the matrix is symmetric, argmax takes the first
        mine, theirs = mass[image, into][:, None], mass[image, gone][:, None]
        mean = (mine * likeness[image, into] + theirs * likeness[image, gone]) / (mine + theirs)
        likeness[image, into] = likeness[image, :, into] = mean
        likeness[image, gone] = likeness[image, :, gone] = -torch.inf
        mass[image, into] += theirs[:, 0]
        alive[image, gone] = False
        group = torch.where(group == gone[:, None], into[:, None], group)
    return (alive.cumsum(-1) - 1).gather(1, group)
