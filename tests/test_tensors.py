import pytest
import torch
from made_captures import captures

from sparsezip.errors import SettingError
from sparsezip.tensors import Captures, Compressed


def test_patches_are_counted_without_cls():
    for cls in (True, False):
        made = captures(grid=(3, 5), cls=cls)
        assert (made.images, made.patches, made.has_cls) == (3, 15, cls)
        assert torch.equal(made.patch_features, made.features[:, int(cls) :])
        assert torch.equal(made.patch_keys, made.keys[:, int(cls) :])


@pytest.mark.parametrize("rows", [11, 14])
def test_features_must_fit_the_grid(rows):
    with pytest.raises(SettingError, match=rf"{rows} feature rows do not fit a grid of 3 x 4 = 12 patches"):
        Captures(features=torch.zeros(1, rows, 2), grid=(3, 4))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cls_attention", (1, 2, 13)),  # a CLS column left in
        ("keys", (1, 11, 2)),
        ("projected", (1, 13, 2)),
        ("valid", (1, 11)),
        ("low_attention", (1, 2, 13)),
    ],
)
def test_signals_must_fit_the_grid(name, shape):
    value = torch.zeros(shape, dtype=torch.bool if name == "valid" else torch.float32)
    with pytest.raises(SettingError, match=rf"{name} covers 1\d patches, but the grid has 12"):
        Captures(features=torch.zeros(1, 13, 2), grid=(3, 4), **{name: value})


def test_a_signal_that_was_not_captured_is_named():
    with pytest.raises(SettingError, match=r"hold no keys. They hold: cls_attention\."):
        Captures(features=torch.zeros(1, 4, 2), cls_attention=torch.zeros(1, 1, 4), grid=(2, 2)).signal("keys")


def test_a_selection_points_each_kept_patch_to_its_token():
    made = captures(images=2, grid=(2, 3))
    kept = [torch.tensor([1, 4]), torch.tensor([0, 2, 5])]
    plain, with_cls = Compressed.selection(made, kept), Compressed.selection(made, kept, with_cls=True)
    assert plain.source[0].tolist() == [-1, 0, -1, -1, 1, -1]
    assert plain.source[1].tolist() == [0, -1, 1, -1, -1, 2]
    assert with_cls.source[1].tolist() == [1, -1, 2, -1, -1, 3]
    assert torch.equal(plain.features[0], made.features[0, [2, 5]])
    assert torch.equal(with_cls.features[0], made.features[0, [0, 2, 5]])
    assert (plain.tokens, with_cls.tokens) == ([2, 3], [3, 4])
