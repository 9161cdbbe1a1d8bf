"""VisionZip and SparseZip against values that the authors' own code computed (see goldens/README.md)."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsezip import methods
from sparsezip.ops import budget, merge, score, select
from sparsezip.tensors import Captures, Compressed, Question

ALPHAS = {"attn": 1.0, "entropy": 0.8, "mutual": 1.0}
FILES = sorted((Path(__file__).parent / "goldens").glob("vision_stage_*.safetensors"))


def cases(pattern):
    found = []
    for path in FILES:
        names = {key.rpartition(".")[0] for key in load_file(path)}
        for name in sorted(names):
            if match := re.fullmatch(pattern, name):
                found.append(pytest.param(path, name, *map(float, match.groups()), id=f"{path.stem}-{name}"))
    return found


def read(path, name):
    values = load_file(path)
    captures = Captures(
        features=values["hidden"],
        cls_attention=values["cls_attention"][:, :, 1:],
        keys=values["keys"],
        grid=(24, 24),
    )
    return captures, {key.rpartition(".")[2]: value for key, value in values.items() if key.startswith(name + ".")}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def meets(compressed, expected, merged):
    """Indices exactly and tokens within 1e-5, and a source that tells what the tokens are made of."""
    for i, indices in enumerate(expected["indices"].sort(-1).values):
        assert indices[0] == 0  # CLS
        assert torch.equal(compressed.kept[i], indices[1:] - 1)
        close(compressed.features[i], expected["tokens"][i])
        assert compressed.source[i].min() > 0
        assert set(compressed.source[i].tolist()) == set(range(1, len(indices) + merged))


@pytest.mark.parametrize(("path", "name", "dominant", "contextual"), cases(r"visionzip\.(\d+)_(\d+)"))
def test_visionzip(path, name, dominant, contextual):
    captures, expected = read(path, name)
    settings = {"dominant": int(dominant), "contextual": int(contextual)}
    meets(methods.VisionZip(paper=True, **settings).compress(captures), expected, int(contextual))
    own = methods.SparseZip(
        paper=True,
        skip_hybrid_attn=True,
        skip_dynamic_k=True,
        skip_ctx_merge=True,
        dominant=int(dominant) - 1,
        merging={"contextual_num": int(contextual)},
    )
    meets(own.compress(captures), expected, int(contextual))


CASES = pytest.mark.parametrize(
    ("path", "name", "beta", "c", "k_min", "k_max", "contextual"),
    cases(r"sparsezip\.beta([\d.]+)_c(\d+)_k(\d+)-(\d+)_ctx(\d+)"),
)


@CASES
def test_sparsezip_stage_by_stage(path, name, beta, c, k_min, k_max, contextual):
    captures, expected = read(path, name)
    scores = score.hybrid(
        captures.cls_attention,
        captures.keys,
        alphas=ALPHAS,
        tau_feat=0.15,
        tau_sim=0.08,
        relevance=expected["cross"][:, 1:],
        cross_beta=beta,
    )
    close(scores, expected["scores"])
    counts = budget.dynamic_k(scores, c, 1e-3, int(k_min), int(k_max))
    assert counts == expected["k"].tolist()
    kept = select.top(scores, counts)
    rest = merge.remaining(kept, captures.patches)
    groups = merge.strided(captures.patch_features, captures.patch_keys, rest, int(contextual), add=True)
    selection = Compressed.selection(captures, kept, with_cls=True)
    meets(merge.append(selection, *groups), expected, int(contextual))


@CASES
def test_sparsezip_whole(path, name, beta, c, k_min, k_max, contextual):
    captures, expected = read(path, name)
    method = methods.SparseZip(
        paper=True,
        cross_beta=beta,
        dynk={"c": c},
        k_min=int(k_min),
        k_max=int(k_max),
        skip_ctx_merge=True,
        merging={"contextual_num": int(contextual)},
    )
    if not beta:
        meets(method.compress(captures), expected, int(contextual))
        return
    # The golden's query lives in the space of the keys: with the keys for features, the question's does too.
    captures = replace(captures, features=captures.keys)
    questions = [Question(tower=query) for query in load_file(path)["text_query"]]
    close(method.scores(captures, questions), expected["scores"])
    for kept, indices in zip(method.compress(captures, questions).kept, expected["indices"], strict=True):
        assert torch.equal(kept, indices.sort().values[1:] - 1)


def test_there_are_goldens():
    assert FILES
