"""DivPrune, CDPruner, SCOPE and MMTok against values that the authors' own code computed (see goldens/README.md)."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsezip import methods
from sparsezip.ops import score, select
from sparsezip.tensors import Captures, Question

FILES = sorted((Path(__file__).parent / "goldens").glob("preselect_*.safetensors"))
FORMS = pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
read = cache(load_file)


def cases(pattern):
    """Every case of that name whose values are stable: its file, its name and what the groups of the pattern hold."""
    found = []
    for path in FILES:
        unstable = {key.rpartition(".")[0] for key in json.loads(path.with_suffix(".json").read_text())["unstable"]}
        for name in sorted({key.rpartition(".")[0] for key in read(path)} - unstable):
            if match := re.fullmatch(pattern, name):
                found.append(pytest.param(path, name, *match.groups(), id=f"{path.stem}-{name}"))
    return found


def captures(path):
    values = read(path)
    return Captures(
        features=values["in.hidden"],
        cls_attention=values["in.cls_attention"][:, :, 1:],
        projected=values["in.projected"],
        grid=(24, 24),
    )


def alone(made, i):
    """The pass of one image of a batch."""
    return replace(
        made, features=made.features[i, None], **{name: getattr(made, name)[i, None] for name in made.delivered}
    )


def meets(method, made, question, expected):
    """The same patches in a batch and one by one."""
    assert torch.equal(torch.stack(method.compress(made, question).kept), expected)
    for i in range(made.images):
        assert torch.equal(method.compress(alone(made, i), question).kept[0], expected[i])


@FORMS
@pytest.mark.parametrize(("path", "name", "ratio"), cases(r"divprune\.([\d.]+)"))
def test_divprune(path, name, ratio, paper):
    made, expected = captures(path), read(path)[name + ".indices"]
    meets(methods.DivPrune(keep_ratio=float(ratio), paper=paper), made, None, expected)
    meets(methods.DivPrune(budget=expected.shape[1], paper=paper), made, None, expected)
    picks = select.dispersed(score.likeness(made.projected), expected.shape[1])
    assert torch.equal(picks, read(path)[name + ".pick_order"])


def test_divprune_keeps_the_paper_s_share_without_a_budget():
    path = FILES[0]
    meets(methods.DivPrune(), captures(path), None, read(path)["divprune.0.098.indices"])


@FORMS
@pytest.mark.parametrize(("path", "name", "budget"), cases(r"scope\.(\d+)"))
def test_scope(path, name, budget, paper):
    made, expected = captures(path), read(path)[name + ".indices"]
    meets(methods.SCOPE(budget=int(budget), paper=paper), made, None, expected)
    attention = made.cls_attention.sum(1)
    picks = select.covering(score.likeness(made.patch_features), int(budget), weights=attention)
    assert torch.equal(picks, read(path)[name + ".pick_order"])


@FORMS
@pytest.mark.parametrize(("path", "name", "budget", "temperature", "padded"), cases(r"mmtok\.(\d+)_tv([\d.]+)(_excl)?"))
def test_mmtok(path, name, budget, temperature, padded, paper):
    made, question = captures(path), Question(words=read(path)["in.text_tokens"])
    valid = torch.ones(made.images, made.patches, dtype=torch.bool)
    if padded:
        valid[:, :48] = valid[:, 528:] = False
    method = methods.MMTok(budget=int(budget), text_temperature=float(temperature), paper=paper)
    expected = read(path)[name + ".indices"]
    meets(method, replace(made, valid=valid), question, expected)
    if not padded:
        meets(method, made, question, expected)
        if temperature == "0.02":  # the default
            meets(methods.MMTok(budget=int(budget)), made, question, expected)


def cdpruner(path, batch, chunks):
    values, kind = read(path), "in.cdpruner.b2." if batch else "in.cdpruner."
    projected = values[kind + "features"]
    images, patches, _ = projected.shape
    made = Captures(
        features=torch.zeros(images, patches, 4),
        projected=projected,
        image_embeds=values[kind + "image_embeds"],
        grid=(patches // 12, 12),
    )
    return made, Question(clip=values["in.cdpruner.text_embeds"][:chunks])


def meets_cdpruner(method, made, question, path, name):
    expected = {field: read(path)[f"{name}.{field}"] for field in ("indices", "relevance", "kernel_diag")}
    relevance = method.relevance(made, [question] * made.images)
    diagonal = method.kernel(made, relevance).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(relevance, expected["relevance"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(diagonal, expected["kernel_diag"], rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.stack(method.compress(made, question).kept), expected["indices"])


@FORMS
@pytest.mark.parametrize(("path", "name", "one", "budget"), cases(r"cdpruner\.(onetext\.)?(\d+)"))
def test_cdpruner(path, name, one, budget, paper):
    made, question = cdpruner(path, batch=False, chunks=1 if one else 2)
    meets_cdpruner(methods.CDPruner(budget=int(budget), paper=paper), made, question, path, name)


@FORMS
@pytest.mark.parametrize(("path", "name", "image", "budget"), cases(r"cdpruner\.b2_single(\d)\.(\d+)"))
def test_cdpruner_one_by_one(path, name, image, budget, paper):
    made, question = cdpruner(path, batch=True, chunks=2)
    method = methods.CDPruner(budget=int(budget), paper=paper)
    meets_cdpruner(method, alone(made, int(image)), question, path, name)
    if not paper:
        assert torch.equal(method.compress(made, question).kept[int(image)], read(path)[name + ".indices"][0])


@pytest.mark.parametrize(("path", "name", "budget"), cases(r"cdpruner\.b2\.(\d+)"))
def test_cdpruner_s_published_form_couples_a_batch(path, name, budget):
    made, question = cdpruner(path, batch=True, chunks=2)
    meets_cdpruner(methods.CDPruner(budget=int(budget), paper=True), made, question, path, name)


def test_there_are_goldens():
    assert FILES
