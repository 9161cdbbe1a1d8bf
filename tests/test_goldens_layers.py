"""FastV, PyramidDrop and SparseVLM against values that the authors' own code computed (see goldens/README.md)."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsezip.methods import FastV, PyramidDrop, SparseVLM
from sparsezip.ops import attention, merge
from sparsezip.tensors import Kept, LayerView

FILES = sorted((Path(__file__).parent / "goldens").glob("llm_units_*.safetensors"))
FORMS = pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
read = cache(load_file)


def cases(pattern):
    return [
        pytest.param(path, *found.groups(), id=f"{path.stem}-{found.group()}")
        for path in FILES
        for key in sorted(read(path))
        if (found := re.fullmatch(pattern, key))
    ]


def view(values, number=1, **more):
    """Problem `number` (1 to 3): 35 tokens, the visual ones, 20 words."""
    given = {name: values[f"in.s{number}.{name}"] for name in ("q", "k", "hidden", "position_ids")}
    end = given["hidden"].shape[1] - 20
    return replace(
        LayerView(
            **given,
            embeds=values["in.embeds"],
            visual=[torch.arange(35, end)],
            text=[torch.arange(end, end + 20)],
            stage=int(number) - 1,
            depth=3,
        ),
        **more,
    )


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


def meets(kept, expected):
    """Everything the authors' code says about a stage of SparseVLM."""
    assert torch.equal(kept.indices[0], expected["keep"])
    assert kept.tokens == [int(expected["v_token_num"])]
    held = kept.indices[0]
    if "merged" in expected:
        close(kept.merged[0], expected["merged"])
        assert torch.equal(kept.source[0][expected["recycled"]], len(expected["keep"]) + expected["cluster_of"])
        held = torch.cat([held, expected["recycled"]])
    else:
        assert kept.merged is None
    assert torch.equal((kept.source[0] >= 0).nonzero()[:, 0], held.sort().values)
    assert torch.equal(kept.source[0][kept.indices[0]], torch.arange(len(expected["keep"])))


def stage(values, name):
    return {key.rpartition(".")[2]: value for key, value in values.items() if key.rpartition(".")[0] == name}


@FORMS
@pytest.mark.parametrize(("path", "rank"), cases(r"fastv\.(\d+)\.keep"))
def test_fastv(path, rank, paper):
    values, rank = read(path), int(rank)
    kept = FastV(k=2, r=1 - rank / 576, paper=paper).keep(view(values))
    expected = stage(values, f"fastv.{rank}")
    assert torch.equal(kept.indices[0], expected["top"].sort().values)
    whole = torch.cat([torch.arange(35), 35 + kept.indices[0], torch.arange(611, 631)])
    assert torch.equal(whole, expected["keep"])
    if "scores" in expected:
        row = attention.rows(view(values).q, view(values).k, torch.tensor([630]))[0, :, 0, 35:611]
        close(row.mean(0), expected["scores"], atol=0)


@FORMS
@pytest.mark.parametrize(("path", "row", "count"), cases(r"pdrop\.(last|row-5)\.(\d+)\.keep"))
def test_pyramiddrop(path, row, count, paper):
    values, count = read(path), int(count)
    asked = view(values, text=[torch.arange(611, 631 if row == "last" else 627)])
    kept = PyramidDrop(layers=(8,), ratios=(count / 576,), paper=paper).keep(asked)
    expected = stage(values, f"pdrop.{row}.{count}")
    assert torch.equal(kept.indices[0], expected["keep"])
    assert torch.equal(PyramidDrop().keep(replace(asked, count=count)).indices[0], expected["keep"])
    if count == 288:
        assert torch.equal(PyramidDrop(paper=paper).keep(asked).indices[0], expected["keep"])
        row = attention.rows(asked.q, asked.k, asked.text[0][-1:])[0, :, 0, 35:611]
        close(row.mean(0), expected["scores"], atol=0)


@pytest.mark.parametrize("path", FILES)
def test_the_text_that_rates(path):
    values = read(path)
    for number in (1, 2, 3):  # whatever has gone, the image as it began is what is rated
        seen = view(values, number)
        words, patches = seen.text_embeds[0], seen.first_embeds[0]
        assert torch.equal(attention.raters(words, patches), values["sparsevlm.raters"])
        close(attention.rating(words, patches), values["sparsevlm.rater_scores"])


@FORMS
@pytest.mark.parametrize(("path", "number", "tokens"), cases(r"sparsevlm_v15\.s(\d)\.(\d+)\.keep"))
def test_sparsevlm_1_5(path, number, tokens, paper):
    values = read(path)
    expected, seen = stage(values, f"sparsevlm_v15.s{number}.{tokens}"), view(values, number)
    method = SparseVLM(version="1.5", retained_tokens=int(tokens), paper=paper)
    scores = method.attention(seen).mean(0)
    if "relation" in expected:
        close(scores, expected["relation"], atol=0)
    torch.manual_seed(1234)  # as the golden did
    if paper or not expected.get("noise_matters", False):
        meets(method.keep(seen), expected)
    meets(noisy(scores, seen, expected), expected)


@FORMS
@pytest.mark.parametrize(("path", "number", "scale", "bias"), cases(r"sparsevlm_v1\.s(\d)\.([\d.]+)_([\d.]+)\.keep"))
def test_sparsevlm_1_0(path, number, scale, bias, paper):
    values = read(path)
    expected, seen = stage(values, f"sparsevlm_v1.s{number}.{scale}_{bias}"), view(values, number)
    method = SparseVLM(version="1.0", scale=float(scale), bias=float(bias), paper=paper)
    assert torch.linalg.matrix_rank(method.attention(seen)) == expected["rank"]
    by_name = {"13.5": 192, "9.0": 128, "0.8": 64}[scale]
    for same in (method, SparseVLM(version="1.0", retained_tokens=by_name, paper=paper)):
        torch.manual_seed(1234)
        if paper or len(expected["merged"]) != 2:  # between two groups the noise decides
            meets(same.keep(seen), expected)
    meets(noisy(method.attention(seen).mean(0), seen, expected), expected)


def noisy(scores, seen, expected):
    """The published recycling, with the very noise that its run drew."""
    pool, groups = len(expected["recycled"]), len(expected["merged"])
    torch.manual_seed(1234)
    noise = torch.rand(1, pool)[0] * 1e-6
    selection = Kept.selection([expected["keep"]], [len(scores)])
    return merge.recycled(selection, scores, seen.hidden[0, seen.visual[0]], pool, groups, noise)


@FORMS
@pytest.mark.parametrize(("path", "number", "tokens"), cases(r"sparsevlm_plus\.s(\d)\.(\d+)\.keep"))
def test_sparsevlm_2_0(path, number, tokens, paper):
    values = read(path)
    expected, seen = stage(values, f"sparsevlm_plus.s{number}.{tokens}"), view(values, number)
    method = SparseVLM(version="2.0", retained_tokens=int(tokens), paper=paper)
    kept = method.keep(seen)
    meets(kept, expected)
    ids = seen.position_ids[0]
    assert torch.equal(torch.cat([ids[:35], ids[35 + kept.indices[0]], ids[-20:]]), expected["position_ids"])
    assert not method.compact
    given = replace(seen, rope=attention.rotary(seen.position_ids))
    assert torch.equal(method.keep(given).indices[0], expected["keep"])
    if "relation" in expected:
        close(method.attention(seen).mean(0), expected["relation"], atol=0)
        queries = seen.text[0][values["sparsevlm.raters"]]
        pull = attention.gravity(given.rope, queries)[..., seen.visual[0]]
        sums = (attention.rows(seen.q, seen.k, queries)[..., seen.visual[0]] / pull)[0].sum((1, 2))
        close(sums, expected["head_sums"])
        assert torch.equal(sums.argsort(descending=True)[:14], expected["heads"])


@pytest.mark.parametrize("path", FILES)
def test_gravity(path):
    values = read(path)
    rope = attention.rotary(values["in.s1.position_ids"])
    close(attention.gravity(rope, torch.tensor([630]))[0, 0], values["sparsevlm_plus.s1.gravity_last_row"])


@pytest.mark.parametrize(("path", "count"), cases(r"cluster\.(\d+)\.merged"))
def test_density_peaks(path, count):
    values = read(path)
    expected, tokens = stage(values, f"cluster.{count}"), values["in.s2.hidden"][0, 35:155]
    torch.manual_seed(1234)
    for noise in (None, torch.rand(1, 120)[0] * 1e-6):
        labels, centres = merge.peaks(tokens, int(count), noise)
        assert torch.equal(labels, expected["cluster_of"])
        assert torch.equal(centres, expected["centers"])


def test_there_are_goldens():
    assert FILES
