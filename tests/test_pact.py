"""PACT against a slow implementation that goes from token to token, as the paper tells it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_views import view

from sparsezip.methods import PACT


def rotated(x, cos, sin):
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


def importance(q, k, hidden, tokens, image):
    """EUTI: q, k before RoPE, [head, token, dim]; `tokens` are asked, `image` is scored."""
    score = np.zeros(len(image))
    for head in range(len(q)):
        query = np.mean([q[head, t] for t in tokens], 0)
        weight = np.array([np.exp(query @ k[head, t] / np.sqrt(q.shape[-1])) for t in tokens])
        weight = dict(zip(tokens, weight / weight.sum(), strict=True))
        score += [weight[t] / len(q) for t in image]
    return score * [np.sqrt((hidden[t] ** 2).sum()) for t in image]


def clusters(distance, kept, cutoff, limit=None):
    """DBDPC: one token after the other by falling density; a centre is one that is far from all centres so far."""
    density = [sum(np.exp(-((distance[i, j] / 2) ** 2)) for j in kept) for i in kept]
    centres = []
    for i in sorted(range(len(kept)), key=lambda i: (-density[i], i)):
        if all(distance[kept[i], centre] > cutoff for centre in centres):
            centres.append(kept[i])
    return sorted(centres[:limit])


def slowly(seen, row, ratio=0.55, cutoff=0.21, coef=1.5, paper=False, important=None, limit=None):
    image = seen.visual[row].tolist()
    tokens = list(range(image[-1] + 1)) if paper else image
    k = seen.k[row].double().numpy()
    cos, sin = seen.rope[0][row].double().numpy(), seen.rope[1][row].double().numpy()
    q0, k0 = rotated(seen.q[row].double().numpy(), cos, -sin), rotated(k, cos, -sin)
    hidden = seen.hidden[row].double().numpy()
    score = importance(q0, k0, hidden, tokens, image)
    best = np.argsort(-score, kind="stable")[: important or int(ratio * len(image))]
    kept = sorted(best.tolist())
    keys = np.stack([np.concatenate([head[t] for head in k]) for t in image])
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    distance = 1 - keys @ keys.T
    centres = clusters(distance, kept, cutoff, limit)
    source = []
    for t in range(len(image)):
        nearest = min(centres, key=lambda centre: (distance[t, centre], centre))
        joins = t in kept or distance[t, nearest] <= coef * cutoff
        source.append(centres.index(t if t in centres else nearest) if joins else -1)
    members = [[image[t] for t in range(len(image)) if source[t] == place] for place in range(len(centres))]
    means = np.stack([np.mean([hidden[t] for t in its], 0) for its in members])
    return centres, source, means, [len(its) for its in members]


def like(seed, spread=0.4):
    """Views whose keys come in bunches, so that there is something to cluster."""
    seen = view(visual=40, seed=seed)
    bunch = torch.randint(0, 8, (40,), generator=torch.Generator().manual_seed(seed))
    keys = seen.k.clone()
    image = seen.visual[0]
    keys[:, :, image] = keys[:, :, image[bunch]] + spread * keys[:, :, image]
    return replace(seen, k=keys)


def same(kept, row, expected):
    centres, source, means, sizes = expected
    assert kept.indices[row].tolist() == centres
    assert kept.source[row].tolist() == source
    assert kept.sizes[row].tolist() == sizes
    np.testing.assert_allclose(kept.hidden[row].numpy(), means, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
@pytest.mark.parametrize("settings", [{}, {"cutoff": 0.1}, {"important_ratio": 0.8, "cutoff": 0.4, "coef_pruned": 1.0}])
def test_it_is_the_papers_recipe(seed, paper, settings):
    seen = like(seed)
    kept = PACT(paper=paper, **settings).keep(seen)
    names = {"important_ratio": "ratio", "coef_pruned": "coef", "cutoff": "cutoff"}
    for row in range(2):
        expected = slowly(seen, row, paper=paper, **{names[name]: value for name, value in settings.items()})
        same(kept, row, expected)
        assert kept.sizes[row].max() > 1
    if settings == {"cutoff": 0.1}:  # then some of the pruned tokens are near a centre, and some are not
        assert sum(int(sizes.sum()) for sizes in kept.sizes) > 44
        assert all(-1 in source for source in kept.source)


@pytest.mark.parametrize("count", [1, 2, 5, 9, 17, 22, 23, 31, 39])
def test_a_budget_finds_its_cutoff(count):
    """The largest that leaves enough centres, which is a little below one of the distances, or as large as any."""
    seen = like(1).row(0)
    keys = torch.nn.functional.normalize(seen.k[0, :, seen.visual[0]].transpose(0, 1).flatten(1).double(), dim=-1)
    distance = 1 - (keys @ keys.T).numpy()
    important = max(22, count)
    _, source, _, _ = slowly(seen, 0, cutoff=-1.0, important=important)
    kept = [t for t in range(40) if source[t] >= 0]
    assert len(kept) == important
    tried = [2.0, *(np.unique(distance[kept][:, kept])[::-1] - 1e-6)]
    widest = next(cutoff for cutoff in tried if len(clusters(distance, kept, cutoff)) >= count)
    same(PACT().keep(replace(seen, count=count)), 0, slowly(seen, 0, cutoff=widest, important=important, limit=count))


def test_rope_is_undone_and_a_scaled_table_too():
    seen = view(rows=1, visual=12)
    cos, sin = seen.rope
    plain_q, plain_k = seen.q, seen.k

    def turn(part, scale):
        return torch.from_numpy(scale * rotated(part.numpy(), cos[:, None].numpy(), sin[:, None].numpy())).float()

    bare = PACT().scores(replace(seen, rope=None))
    for scale in (1.0, 1.3):
        turned = replace(seen, q=turn(plain_q, scale), k=turn(plain_k, scale), rope=(scale * cos, scale * sin))
        torch.testing.assert_close(PACT().scores(turned), bare)
    assert not torch.allclose(PACT().scores(seen), bare)
