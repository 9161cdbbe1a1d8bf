"""The picture of kept, merged and dropped patches."""

import numpy as np
import pytest
from PIL import Image

from sparsezip.measure.report.token_map import CELL, draw

GRID = (2, 3)
KEPT, SOURCE = [0, 4], [0, 2, 2, -1, 1, 1]  # patch 5 is merged into kept patch 4, 1 and 2 into a token of their own


def cells(drawn):
    """The pixels of each patch."""
    rows, columns = GRID
    pixels = np.asarray(drawn)[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL, 3)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(rows * columns, CELL, CELL, 3)


@pytest.fixture
def drawn():
    return draw(Image.new("RGB", (90, 60), (200, 180, 160)), KEPT, SOURCE, GRID)


def test_kept_patches_stay_as_they_are(drawn):
    assert (cells(drawn)[0] == (200, 180, 160)).all()


def test_merged_patches_carry_the_tint_of_their_token(drawn):
    patch = cells(drawn)
    assert (patch[1] == patch[2]).all()
    assert (patch[1][0, 0] != patch[5][0, 0]).any()
    assert np.ptp(patch[1][0, 0]) > 60


def test_dropped_patches_are_dark(drawn):
    patch = cells(drawn)[3]
    assert patch.max() < 60
    assert np.ptp(patch[0, 0]) == 0


def test_a_kept_patch_that_others_are_merged_into_is_framed(drawn):
    patch = cells(drawn)
    assert (patch[4][CELL // 2, CELL // 2] == (200, 180, 160)).all()
    assert (patch[4][0] != (200, 180, 160)).any()


def test_the_size_is_that_of_the_grid_and_one_line_of_text(drawn):
    assert drawn.size == (3 * CELL, 3 * CELL)
    assert (np.asarray(drawn)[2 * CELL :] == 255).mean() > 0.5


def test_tensors_and_arrays_will_do(drawn):
    torch = pytest.importorskip("torch")
    image = Image.new("RGB", (90, 60), (200, 180, 160))
    for kind in (torch.tensor, np.array):
        assert (np.asarray(draw(image, kind(KEPT), kind(SOURCE), GRID)) == np.asarray(drawn)).all()


def test_a_wide_image_is_cropped_around_its_centre():
    image = Image.new("RGB", (200, 48), "black")
    image.paste("white", (64, 0, 136, 48))
    assert (cells(draw(image, range(6), range(6), GRID))[:, 4:-4, 4:-4] == 255).all()


def test_a_source_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="source has 6 patches, but the grid has 3 x 3"):
        draw(Image.new("RGB", (9, 9)), KEPT, SOURCE, (3, 3))
