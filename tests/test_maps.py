"""Where patches went, as the text that stands in a row."""

import base64
import random
import zlib

import pytest

from sparsezip.measure.maps import pack, unpack

GRID = (24, 24)


def made(tokens, contextual, seed=0):
    """A choice as methods make it: the kept patches first, then tokens that the others are merged into at random."""
    draw = random.Random(seed)
    kept = sorted(draw.sample(range(576), tokens - contextual))
    source = [draw.randrange(tokens - contextual, tokens) if contextual else -1 for _ in range(576)]
    for place, patch in enumerate(kept):
        source[patch] = place
    return kept, source


@pytest.mark.parametrize("tokens", [1, 32, 64, 192, 576])
@pytest.mark.parametrize("contextual", [0, 1, 10, 160])
def test_a_map_comes_back_as_it_went_and_is_short(tokens, contextual):
    kept, source = made(tokens, min(contextual, tokens - 1))
    text = pack(kept, source, GRID)
    assert unpack(text) == (kept, source, GRID)
    assert len(text) < 1000


@pytest.mark.parametrize(
    ("kept", "source", "grid"),
    [
        ([], [-1] * 6, (2, 3)),
        ([0, 4], [0, 2, 2, -1, 1, 1], (2, 3)),
        ([1], [5, 0, 300, 2879], (4, 1)),  # more tokens than a byte holds
        ([3, 1], [-1, 0, -1, 1], (2, 2)),  # in any order: they come back ascending
    ],
)
def test_maps_of_any_shape(kept, source, grid):
    assert unpack(pack(kept, source, grid)) == (sorted(kept), source, grid)


def test_tensors_will_do():
    torch = pytest.importorskip("torch")
    kept, source = made(64, 10)
    assert pack(torch.tensor(kept), torch.tensor(source), GRID) == pack(kept, source, GRID)


@pytest.mark.parametrize(("kept", "patches"), [([0], 5), ([6], 6), ([-1], 6)])
def test_a_choice_beside_the_grid_is_refused(kept, patches):
    with pytest.raises(ValueError, match="do not fit a grid of 2 x 3"):
        pack(kept, [0] * patches, (2, 3))


def bomb():
    return base64.b64encode(zlib.compress(bytes(10_000_000))).decode()


@pytest.mark.parametrize("text", ["", "no map", "é", "AAAA", pack([0], [0, 0], (1, 2))[:-8], bomb()])
def test_a_damaged_map_is_refused(text):
    with pytest.raises(ValueError, match="The token map is damaged"):
        unpack(text)


def test_a_map_of_another_length_is_refused():
    data = bytearray(zlib.decompress(base64.b64decode(pack([0], [0, 0], (1, 2)))))
    data[0] = 9
    with pytest.raises(ValueError, match="9 x 2 patches"):
        unpack(base64.b64encode(zlib.compress(bytes(data))).decode())
