"""Cutting placeholders: compared with a plain Python rewriting of every row."""

import random

import pytest
import torch

from sparsezip.errors import UnsupportedCallError
from sparsezip.plumbing.placeholders import images_per_row, shortening

IMAGE, PAD, PATCHES = 3, 0, 5


def batch(rng, *, left):
    """Random rows of text and images, padded on one side: ids, mask, images of each row."""
    rows, images = [], []
    for _ in range(rng.randint(1, 4)):
        row, count = [1], rng.choice([0, 1, 1, 2])
        for _ in range(count):
            row += [rng.randint(10, 99) for _ in range(rng.randint(0, 3))] + [IMAGE] * PATCHES
        row += [rng.randint(10, 99) for _ in range(rng.randint(1, 6))]
        rows.append(row)
        images.append(count)
    width = max(map(len, rows)) + rng.randint(0, 2)
    padding = [[PAD] * (width - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for pad, row in zip(padding, rows, strict=True)]
    mask = [[0] * len(pad) + [1] * len(row) for pad, row in zip(padding, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask if left else [row[::-1] for row in mask]), images


def rewritten(ids, mask, tokens, *, left):
    """The same by hand: (ids, mask, columns) of every row without the dropped placeholders, padded anew."""
    left_over, rows = list(tokens), []
    for row, seen in zip(ids.tolist(), mask.tolist(), strict=True):
        out, rank = [], 0
        for column, (token, real) in enumerate(zip(row, seen, strict=True)):
            if token == IMAGE:
                if rank < left_over[0]:
                    out.append((token, 1, column))
                rank += 1
                if rank == PATCHES:
                    left_over.pop(0)
                    rank = 0
            elif real:
                out.append((token, 1, column))
        rows.append(out)
    width = max(map(len, rows))
    pads = [[(PAD, 0, -100)] * (width - len(row)) for row in rows]
    rows = [pad + row if left else row + pad for pad, row in zip(pads, rows, strict=True)]
    return [torch.tensor([[cell[part] for cell in row] for row in rows]) for part in range(3)]


@pytest.mark.parametrize("seed", range(60))
def test_equals_rewriting_by_hand(seed):
    rng = random.Random(seed)
    left = bool(seed % 2)
    ids, mask, images = batch(rng, left=left)
    assert images_per_row(ids, IMAGE, [PATCHES] * sum(images)) == images
    tokens = [rng.randint(1, PATCHES) for _ in range(sum(images))]
    cut = shortening(ids, mask, IMAGE, [PATCHES] * len(tokens), tokens)
    if all(count == PATCHES for count in tokens):
        assert cut is None
        return
    on_the_right = not bool(mask[:, -1].all())
    expected = rewritten(ids, mask, tokens, left=not on_the_right)
    columns = torch.arange(ids.shape[1]).expand_as(ids)
    for actual, wanted in zip((cut(ids, PAD), cut(mask, 0), cut(columns, -100)), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_without_a_mask_everything_is_real_and_padding_comes_on_the_left():
    ids = torch.tensor([[1, *[IMAGE] * PATCHES, 7, PAD], [1, *[IMAGE] * PATCHES, 8, 9]])
    cut = shortening(ids, None, IMAGE, [PATCHES] * 2, [1, 2])
    assert cut(ids, 5).tolist() == [[5, 1, IMAGE, 7, PAD], [1, IMAGE, IMAGE, 8, 9]]
    assert cut.placed.tolist() == [[False, True, True, True, True], [True] * 5]


def test_nothing_to_cut():
    ids = torch.tensor([[PAD, 1, *[IMAGE] * PATCHES]])
    assert shortening(ids, ids.ne(PAD).long(), IMAGE, [PATCHES], [PATCHES]) is None


@pytest.mark.parametrize(("placeholders", "images"), [([5, 5], 1), ([5], 2), ([4], 1), ([0], 1), ([3, 7], 2), ([1], 1)])
def test_placeholders_and_images_must_match(placeholders, images):
    ids = torch.tensor([[1] + [IMAGE] * count + [9] * (10 - count) for count in placeholders])
    with pytest.raises(UnsupportedCallError, match=f"need {images * PATCHES}"):
        images_per_row(ids, IMAGE, [PATCHES] * images)
