"""What becomes of the patches that do not stay: groups of them are merged into contextual tokens.

A grouping is `labels`: the group of every patch that does not stay, -1 for those that do. No group is ever empty and no
patch without one, as long as there are at least as many such patches as groups.

Sources: VisionZip (Yang et al., CVPR 2025) for the strided targets, SparseZip (2025) for the clusters.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tensors import Compressed
from .score import RESOLUTION, cosine, pairs, unit


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
    share = _members(labels, count).float()
    if add:
        share.scatter_(2, targets[..., None], 0)
        share /= share.sum(-1, keepdim=True).clamp(min=1)
        share.scatter_(2, targets[..., None], 1)
    else:
        share /= share.sum(-1, keepdim=True)
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
