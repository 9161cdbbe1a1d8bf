"""Methods that rank by attention, against values that their authors' own code computed (see goldens/README.md).

TRIM and VScan have no such values: they are compared with slow numpy code written from the papers' formulas.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made_captures import captures as made_captures
from made_captures import image, questions
from safetensors.torch import load_file

from sparsezip import methods
from sparsezip.errors import FailureError, SettingError
from sparsezip.ops import score
from sparsezip.tensors import Captures

FILES = sorted((Path(__file__).parent / "goldens").glob("preselect_*.safetensors"))


def cases(pattern):
    """Every golden of every seed whose name matches and that is stable."""
    found = []
    for path in FILES:
        unstable = json.loads(path.with_suffix(".json").read_text())["unstable"]
        for name in sorted({key.rpartition(".")[0] for key in load_file(path)}):
            if (match := re.fullmatch(pattern, name)) and not any(key.startswith(f"{name}.") for key in unstable):
                found.append(pytest.param(path, name, *match.groups(), id=f"{path.stem}-{name}"))
    return found


def read(path, name, images=slice(None), hidden="in.hidden", patches=576):
    """The inputs as captures, and the expected values of the case."""
    values = load_file(path)
    captures = Captures(
        features=values[hidden][images, : 1 + patches],
        cls_attention=values["in.cls_attention"][images, :, 1 : 1 + patches],
        last_query=values["in.prumerge.q_cls"][images],
        last_keys=values["in.keys"][images, : 1 + patches],
        grid=(patches // 24, 24),
    )
    return captures, {key.rpartition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}


def selects(compressed, captures, indices):
    for i, expected in enumerate(indices):
        assert torch.equal(compressed.kept[i], expected)
        assert torch.equal(compressed.features[i], captures.patch_features[i, expected])


def prumerge(name, path, key, settings):
    captures, expected = read(path, key, slice(len(load_file(path)[f"{key}.indices"])))
    compressed = methods.method(name, paper=True, **settings).compress(captures)
    for i, indices in enumerate(expected["indices"]):
        assert torch.equal(compressed.kept[i], indices.sort().values)
        torch.testing.assert_close(compressed.features[i], expected["tokens"][i], rtol=1e-4, atol=1e-5)
        order = compressed.source[i][indices]
        assert all(torch.equal(indices[place], patch) for place, patch in zip(order, indices, strict=True))
        assert compressed.source[i].max() == len(indices)  # the extra token holds all that is left
    return captures, expected


@pytest.mark.parametrize(("path", "name", "form"), cases(r"prumerge\.(adaptive|ratio[\d.]+)(?:_b2)?"))
def test_prumerge(path, name, form):
    settings = {} if form == "adaptive" else {"ratio": float(form.removeprefix("ratio"))}
    captures, expected = prumerge("prumerge", path, name, settings)
    attention = score.single_head(captures.last_query, captures.last_keys, captures.patches)
    torch.testing.assert_close(attention, expected["cls_attention"], rtol=1e-4, atol=0)
    budget = expected["indices"].shape[1] + 1
    same = methods.PruMerge(budget=budget, paper=True).compress(captures)
    for i, tokens in enumerate(expected["tokens"]):
        torch.testing.assert_close(same.features[i], tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("path", "name", "form"), cases(r"prumerge_plus\.(adaptive|ratio[\d.]+)(?:_b2)?"))
def test_prumerge_plus(path, name, form):
    settings = {} if form == "adaptive" else {"ratio": float(form.removeprefix("ratio"))}
    captures, expected = prumerge("prumerge_plus", path, name, settings)
    again = methods.PruMergePlus(paper=True, **settings).compress(captures)
    for i, indices in enumerate(expected["indices"]):
        lost = set(range(576)) - set(indices.tolist()) - set(expected["complement"][i].tolist())
        assert len(lost) == len(indices) - len(indices.unique())
        assert all(again.source[i][patch] != len(indices) for patch in lost)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prumerge_tokens_are_means(path, plus):
    """The default form: weight 1 for the kept patch, attention for its 32 neighbours, and one token of the rest."""
    captures, _ = read(path, "")
    made = (methods.PruMergePlus if plus else methods.PruMerge)(budget=40).compress(captures)
    for i in range(2):
        keys = captures.last_keys[i].double().numpy()
        logits = keys @ captures.last_query[i].double().numpy() / np.sqrt(keys.shape[1])
        attention = (np.exp(logits) / np.exp(logits).sum())[1:]
        features, keys = captures.features[i, 1:].double().numpy(), keys[1:]
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        kept = set(np.argsort(-attention)[: 10 if plus else 39].tolist())
        if plus:
            others = sorted(set(range(576)) - kept)
            kept |= {others[step * len(others) // 29] for step in range(29)}
        assert made.kept[i].tolist() == sorted(kept)
        for place, patch in enumerate(sorted(kept)):
            near = [other for other in np.argsort(-(keys @ keys[patch])) if other != patch][:32]
            total = features[patch] + (attention[near, None] * features[near]).sum(0)
            np.testing.assert_allclose(made.features[i][place], total / (1 + attention[near].sum()), 1e-4, 1e-5)
        rest = sorted(set(range(576)) - kept)
        mean = np.average(features[rest], axis=0, weights=attention[rest])
        np.testing.assert_allclose(made.features[i][-1], mean, 1e-4, 1e-5)
        assert (made.source[i][rest] == 39).all()


def test_prumerge_counts_outliers_per_image_and_paper_over_the_batch():
    captures, _ = read(FILES[0], "")
    captures.last_query[1] = 0  # attends to all alike
    alone = [methods.PruMerge().compress(image(captures, i)).tokens[0] for i in range(2)]
    assert alone[0] > alone[1] == 2
    assert methods.PruMerge().compress(captures).tokens == alone
    together = methods.PruMerge(paper=True).compress(captures).tokens
    assert together[0] == together[1]


def test_prumerge_without_outliers():
    flat = made_captures(cls=False)
    flat.last_query.zero_()
    assert methods.PruMerge().compress(flat).tokens == [2] * 3
    assert methods.PruMerge(paper=True).compress(flat).tokens == [1] * 3
    assert methods.PruMergePlus().compress(flat).tokens == [5] * 3
    assert all(0 < tokens <= 42 for tokens in methods.PruMergePlus(paper=True).compress(flat).tokens)


def test_prumerge_plus_leaves_something_out_where_the_authors_steps_do_not():
    captures, _ = read(FILES[0], "")
    assert methods.PruMergePlus(ratio=0.2).compress(captures).tokens == [231] * 2
    kept = methods.PruMergePlus(ratio=0.2).compress(captures).kept[0]
    assert len(kept) == len(kept.unique()) == 230
    assert set(methods.PruMerge(ratio=0.2).compress(captures).kept[0].tolist()) < set(kept.tolist())
    assert len(methods.PruMergePlus(ratio=0.2, paper=True).compress(captures).kept[0]) == 115 + 115
    assert len(methods.PruMergePlus(ratio=0.4, paper=True).compress(captures).kept[0]) == 230 + 287


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("path", "name", "budget"), cases(r"fastervlm\.(\d+)"))
def test_fastervlm(path, name, budget, paper):
    captures, expected = read(path, name)
    selects(methods.FasterVLM(budget=int(budget), paper=paper).compress(captures), captures, expected["indices"])


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("path", "name", "form", "budget", "ratio"), cases(r"vispruner\.(.*?)(\d+)(?:_r([\d.]+))?"))
def test_vispruner(path, name, form, budget, ratio, paper):
    hidden = "in.vispruner.hidden" if form == "stable." else "in.hidden"
    patches = 144 if form == "n144." else 576
    captures, expected = read(path, name, slice(len(load_file(path)[f"{name}.indices"])), hidden, patches)
    settings = {"important_ratio": float(ratio)} if ratio else {}
    method = methods.VisPruner(budget=int(budget), paper=paper, **settings)
    selects(method.compress(captures), captures, expected["indices"])


@pytest.mark.parametrize("paper", [False, True])
def test_vispruner_thins_out_an_odd_number(paper):
    captures, _ = read(FILES[0], "")
    method = methods.VisPruner(budget=63, paper=paper)
    assert method.compress(captures).tokens == [63] * 2
    for ratio in (0.0, 1.0):
        kept = methods.VisPruner(budget=64, important_ratio=ratio, paper=paper).compress(captures).kept
        assert [len(row) for row in kept] == [64] * 2
    for row, best in zip(kept, methods.FasterVLM(budget=64).compress(captures).kept, strict=True):
        assert torch.equal(row, best)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("path", "name", "rate", "budget"), cases(r"hired\.(?:rate([\d.]+)|(\d+))"))
def test_hired(path, name, rate, budget, paper):
    captures, expected = read(path, name)
    settings = {"keep_ratio": float(rate)} if rate else {"budget": int(budget)}
    selects(methods.HiRED(paper=paper, **settings).compress(captures), captures, expected["indices"])
    if rate == "0.2":
        selects(methods.HiRED(paper=paper).compress(captures), captures, expected["indices"])


def test_hired_rounds_a_ratio_and_its_authors_cut_it():
    captures, _ = read(FILES[0], "")
    assert methods.HiRED(keep_ratio=0.3).compress(captures).tokens == [173] * 2
    assert methods.HiRED(keep_ratio=0.3, paper=True).compress(captures).tokens == [172] * 2


def tiled(path, rows, cols):
    values = load_file(path)
    low, high = (values[f"in.hired.{rows}x{cols}.{end}_cls_attention"][:, :, 1:] for end in ("top", "bottom"))
    features = torch.randn(len(low), 577, 8, generator=torch.Generator().manual_seed(0))
    return Captures(features=features, grid=(24, 24), tiles=(rows, cols), low_attention=low, cls_attention=high)


@pytest.mark.parametrize(("path", "name", "rows", "cols", "rate"), cases(r"hired\.(\d)x(\d)\.rate([\d.]+)"))
def test_hired_of_tiles(path, name, rows, cols, rate):
    captures = tiled(path, int(rows), int(cols))
    mask = load_file(path)[f"{name}.mask"]
    compressed = methods.HiRED(keep_ratio=float(rate), paper=True).compress(captures)
    selects(compressed, captures, [row.nonzero()[:, 0] for row in mask])
    twice = Captures(
        **{name: torch.cat([getattr(captures, name)] * 2) for name in ("features", "low_attention", "cls_attention")},
        grid=captures.grid,
        tiles=captures.tiles,
    )
    assert methods.HiRED(keep_ratio=float(rate), paper=True).compress(twice).tokens == compressed.tokens * 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (1, 2)])
def test_hired_gives_a_tile_the_share_of_its_own_area_and_meets_the_budget(path, rows, cols):
    captures = tiled(path, rows, cols)
    tiles = rows * cols
    for budget in (1, 64, 115, 300, 575):
        tokens = methods.HiRED(budget=budget).compress(captures).tokens
        total = budget * (1 + tiles)
        assert sum(tokens) == total
        assert tokens[0] == min(total // 2, 576)
        order = captures.low_attention[0].sum(0).argsort(descending=True)[:288].tolist()
        areas = [(patch // 24 * rows // 24, patch % 24 * cols // 24) for patch in order]
        for tile, count in enumerate(tokens[1:]):
            share = areas.count(divmod(tile, cols)) / 288
            assert abs(count - share * (total - tokens[0])) <= 1 or max(tokens[1:]) == 576


def test_hired_wants_whole_groups_of_tiles_and_an_early_layer():
    captures = tiled(FILES[0], 2, 2)
    with pytest.raises(SettingError, match="its tiles, 5 in all"):
        methods.HiRED().compress(image(captures, 0, 1, 2, 3))
    assert methods.HiRED(alpha=0.0).compress(captures).tokens[0] == 0
    assert methods.HiRED(alpha=0.0, budget=575).compress(captures).tokens == [571] + [576] * 4
    assert sum(methods.HiRED(alpha=1.0, budget=300).compress(captures).tokens) == 1500
    assert methods.HiRED(alpha=1.0, budget=300, paper=True).compress(captures).tokens == [576] + [231] * 4


@pytest.mark.parametrize("grid", [(24, 24), (16, 12), (7, 11), (1, 9)])
@pytest.mark.parametrize("budget", [1, 8, 64, 192])
def test_vscan(grid, budget):
    rows, cols = grid
    if budget >= rows * cols:
        budget = rows * cols // 2
    captures = made_captures(images=2, grid=grid)
    compressed = methods.VScan(budget=budget).compress(captures)
    down, across = max(1, round(rows / 6)), max(1, round(cols / 6))
    for i in range(2):
        low = captures.low_attention[i].double().mean(0).numpy()
        high = captures.cls_attention[i].double().mean(0).numpy()
        windows = {}
        for patch in range(rows * cols):
            windows.setdefault((patch // cols * down // rows, patch % cols * across // cols), []).append(patch)
        ranks = {p: rank for of in windows.values() for rank, p in enumerate(sorted(of, key=lambda p: -low[p]))}
        kept = set(sorted(ranks, key=lambda p: (ranks[p], -low[p]))[: budget // 2])
        if grid == (24, 24) and budget // 2 % 16 == 0:
            assert all(len(kept & set(of)) == budget // 2 // 16 for of in windows.values())
        free = sorted(set(range(rows * cols)) - kept, key=lambda p: -high[p])
        kept = sorted(kept | set(free[: budget - budget // 2]))
        assert compressed.kept[i].tolist() == kept
        features = captures.features[i, 1:].double().numpy()
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        groups = [[patch] for patch in kept]
        for patch in set(range(rows * cols)) - set(kept):
            groups[int(np.argmax(unit[kept] @ unit[patch]))].append(patch)
        for place, group in enumerate(groups):
            np.testing.assert_allclose(compressed.features[i][place], features[group].mean(0), 1e-4, 1e-5)
            assert (compressed.source[i][group] == place).all()


def trimmed(score, features, count):
    """TRIM's tokens, given the score of every patch."""
    kept = sorted(np.argsort(-score, kind="stable")[:count].tolist())
    rest = sorted(set(range(len(score))) - set(kept))
    return kept, np.concatenate([features[kept], features[rest].mean(0, keepdims=True)])


def fence(values):
    low, high = np.percentile(values, [25, 75])
    return int((values > high + 1.5 * (high - low)).sum())


def cosines(left, right):
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return left @ right.T / norms


@pytest.mark.parametrize("form", ["words", "clip", "paper"])
@pytest.mark.parametrize("budget", [None, 1, 12])
def test_trim(form, budget):
    captures, asked = made_captures(images=3, grid=(12, 12), seed=4), questions(3)
    captures.image_embeds[0, :9] *= -20 * asked[0].clip[0].sign()  # patches that stand out
    captures.projected[1, 5:15] = asked[1].words[0]
    used = captures if form != "words" else made_captures(images=3, grid=(12, 12), seed=4)
    if form == "words":
        used = Captures(features=captures.features, grid=captures.grid, projected=captures.projected)
    compressed = methods.TRIM(budget=budget, paper=form == "paper").compress(used, asked)
    scores = []
    for i, question in enumerate(asked):
        features = captures.features[i, 1:].double().numpy()
        embeds, projected = captures.image_embeds[i].double().numpy(), captures.projected[i].double().numpy()
        if question is None:
            score = -cosines(features, features.mean(0, keepdims=True))[:, 0]
        elif form == "words":
            score = cosines(projected, question.words.double().numpy()).mean(1)
        elif form == "clip":
            score = -cosines(embeds, question.clip.double().numpy()).mean(1)
        else:
            score = -(embeds @ question.clip.double().numpy().T).mean(1)
        scores.append(np.exp(score) / np.exp(score).sum())
    counts = [budget - 1] * 3 if budget else [max(1, fence(score)) for score in scores]
    if form == "paper" and not budget:
        counts = [int(144 * (fence(np.stack(scores).flatten()) / 432))] * 3
        assert counts[0] > 1
    for i in range(3):
        kept, tokens = trimmed(scores[i], captures.features[i, 1:].double().numpy(), counts[i])
        assert compressed.kept[i].tolist() == kept
        np.testing.assert_allclose(compressed.features[i], tokens, 1e-4, 1e-5)


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus", "fastervlm", "vispruner", "hired", "vscan", "trim"])
def test_signals_that_are_not_finite_are_an_error(name):
    captures = made_captures(grid=(9, 9))
    method = methods.method(name, budget=16)
    for signal in (method.needs | method.uses & captures.delivered) - {"question"}:
        getattr(captures, signal)[1].fill_(torch.nan)
    with pytest.raises(FailureError, match="image 1 of the batch"):
        method.compress(captures, questions(3))


def test_there_are_goldens():
    assert FILES


def test_hired_by_the_paper_loses_what_its_tiles_cannot_take():
    values = load_file(FILES[0])
    top_row, bottom = (values[f"in.hired.1x2.{name}_cls_attention"][..., 1:] for name in ("top", "bottom"))
    features = torch.zeros(3, 577, 4)
    made = Captures(features=features, grid=(24, 24), cls_attention=bottom, low_attention=top_row, tiles=(1, 2))
    paper, default = (methods.HiRED(keep_ratio=0.9, alpha=0.2, paper=paper).compress(made) for paper in (True, False))
    assert paper.tokens[0] == int(int(3 * 576 * 0.9) * 0.2)
    assert max(paper.tokens) <= 576
    assert sum(paper.tokens) < sum(default.tokens) == 3 * round(0.9 * 576)
