"""DART against values that the authors' own code computed (see goldens/README.md)."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsezip.methods import DART
from sparsezip.tensors import LayerView

FILES = sorted((Path(__file__).parent / "goldens").glob("llm_units_*.safetensors"))
CASES = [
    pytest.param(path, *found.groups(), id=f"{path.stem}-{found.group()}")
    for path in FILES
    for key in sorted(load_file(path))
    if (found := re.match(r"dart\.(\w+?)_(\d)\+(\d)(?=\.keep)", key))
]


def read(values, **more):
    return LayerView(
        q=values["in.s1.q"],
        k=values["in.s1.k"],
        hidden=values["in.s1.hidden"],
        embeds=values["in.embeds"],
        position_ids=values["in.s1.position_ids"],
        visual=[torch.arange(35, 611)],
        text=[torch.arange(611, 631)],
        stage=0,
        depth=1,
        **more,
    )


@pytest.mark.parametrize(("path", "tokens", "image", "text"), CASES)
def test_dart(path, tokens, image, text):
    values = load_file(path)
    expected = {
        field: values[f"dart.{tokens}_{image}+{text}.{field}"] for field in ("keep", "pivot_order", "per_pivot")
    }
    method = DART(
        max_tokens=None if tokens == "None" else int(tokens), pivot_image=int(image), pivot_text=int(text), paper=True
    )
    view = read(values)
    assert torch.equal(method.pivots(view), expected["pivot_order"])
    assert method.per_pivot(576) == expected["per_pivot"]
    assert torch.equal(method.keep(view).indices[0], expected["keep"])


@pytest.mark.parametrize(("path", "tokens", "image", "text"), CASES)
def test_by_default_pivots_choose_by_falling_norm(path, tokens, image, text):
    values = load_file(path)
    method = DART(pivot_image=int(image), pivot_text=int(text))
    pivots = method.pivots(read(values)).tolist()
    name = f"dart.{tokens}_{image}+{text}"
    assert pivots == [35 + i for i in values[f"{name}.pivots_image"]] + [611 + i for i in values[f"{name}.pivots_text"]]


def test_the_final_norm_is_applied_where_it_is_given():
    values = load_file(FILES[0])
    scale = torch.linspace(0.1, 9, 64)
    raw = values | {"in.s1.hidden": values["in.s1.hidden"] / scale}
    method = DART(paper=True)
    assert not torch.equal(method.keep(read(raw)).indices[0], values["dart.128_4+4.keep"])
    assert torch.equal(
        method.keep(read(raw, norm=lambda hidden: hidden * scale)).indices[0], values["dart.128_4+4.keep"]
    )


def test_a_budget_has_room_for_the_pivots_and_shares_the_rest_from_the_first_on():
    values = load_file(FILES[0])
    pivots = values["dart.192_4+4.pivots_image"]
    assert DART().keep(read(values, count=1)).indices[0].tolist() == [pivots[0]]
    assert DART().keep(read(values, count=4)).indices[0].tolist() == pivots.sort().values.tolist()
    hidden = torch.nn.functional.normalize(values["in.s1.hidden"][0], dim=-1)
    likeness = hidden[35:611] @ hidden[35 + pivots[0]]
    likeness[pivots] = 9
    most_unlike = likeness.argmin()
    five = DART().keep(read(values, count=5)).indices[0]
    assert set(five.tolist()) == {*pivots.tolist(), int(most_unlike)}
    assert len(DART().keep(read(values, count=132)).indices[0]) == 132
    assert torch.equal(DART().keep(read(values, count=132)).indices[0], DART().keep(read(values)).indices[0])


def test_there_are_goldens():
    assert FILES
    assert CASES
