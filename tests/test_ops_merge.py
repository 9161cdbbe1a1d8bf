import itertools

import pytest
import torch

from sparsezip.ops import merge, score


def signals(images=3, patches=40, key=6, dim=5, seed=0):
    torch.manual_seed(seed)
    rest = torch.rand(images, patches).argsort(-1) >= patches // 4
    return torch.randn(images, patches, dim), torch.randn(images, patches, key), rest, torch.rand(images, patches) + 0.1


def test_what_remains_is_what_is_not_kept():
    rest = merge.remaining([torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64)], 4)
    assert rest.tolist() == [[False, True, True, False], [True] * 4]


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_strided_groups_equal_the_formulas(add, count):
    features, keys, rest, _ = signals()
    labels, merged = merge.strided(features, keys, rest, count, add=add)
    for i in range(3):
        left = rest[i].nonzero().flatten().tolist()
        targets = left[:: max(1, len(left) // count)][:count]
        members = {target: [] for target in targets}
        for patch in set(left) - set(targets):
            cosines = [torch.cosine_similarity(keys[i, patch], keys[i, t], dim=0).item() for t in targets]
            members[targets[cosines.index(max(cosines))]].append(patch)
        for group, (target, others) in enumerate(members.items()):
            assert (labels[i] == group).nonzero().flatten().tolist() == sorted([target, *others])
            if add:
                mean = features[i, others].sum(0) / max(len(others), 1)
                torch.testing.assert_close(merged[i, group], features[i, target] + mean)
            else:
                torch.testing.assert_close(merged[i, group], features[i, [target, *others]].mean(0))
        assert (labels[i][~rest[i]] == -1).all()


def whole(labels, rest, count):
    assert torch.equal(labels >= 0, rest)
    for row in labels:
        assert set(row.tolist()) - {-1} == set(range(count))


@pytest.mark.parametrize(("count", "centres"), [(1, 1), (6, 6), (6, 12), (6, 7), (20, 20)])
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_clusters_hold_every_patch_and_none_is_empty(count, centres, iterations):
    for seed in range(5):
        _, keys, rest, weights = signals(seed=seed)
        whole(merge.clustered(keys, rest, weights, count, centres, iterations, seed), rest, count)


@pytest.mark.parametrize("distinct", [1, 2, 5])
@pytest.mark.parametrize(("count", "centres"), [(8, 8), (8, 16)])
def test_clusters_are_whole_when_patches_repeat_one_another(distinct, count, centres):
    _, keys, rest, weights = signals()
    keys = keys[:, torch.arange(40) % distinct]
    whole(merge.clustered(keys, rest, weights, count, centres, 1, 0), rest, count)
    whole(merge.clustered(torch.zeros_like(keys), rest, weights, count, centres, 1, 0), rest, count)


def test_as_many_clusters_as_patches_are_the_patches():
    features, keys, rest, weights = signals(images=1)
    count = int(rest.sum())
    labels = merge.clustered(keys, rest, weights, count, count, 1, 0)
    whole(labels, rest, count)
    merged = merge.weighted_mean(features, labels, weights, count)
    torch.testing.assert_close(merged[0, labels[0][rest[0]]], features[0][rest[0]])


@pytest.mark.parametrize("centres", [4, 8])
def test_clusters_find_what_lies_together(centres):
    """Four directions with a little noise: k-means++ seeds one centre in each, linkage joins the surplus."""
    torch.manual_seed(0)
    truth = torch.randint(0, 4, (2, 60))
    keys = torch.eye(4)[truth] + 0.02 * torch.randn(2, 60, 4)
    rest = torch.rand(2, 60) > 0.2
    for seed in range(5):
        labels = merge.clustered(keys, rest, torch.ones(2, 60), 4, centres, 2, seed)
        for i in range(2):
            pairs = set(zip(truth[i][rest[i]].tolist(), labels[i][rest[i]].tolist(), strict=True))
            assert len(pairs) == 4


def test_the_seed_decides_and_the_batch_does_not():
    _, keys, rest, weights = signals(images=4, patches=200)
    together = merge.clustered(keys, rest, weights, 10, 20, 1, 7)
    assert torch.equal(together, merge.clustered(keys, rest, weights, 10, 20, 1, 7))
    assert not torch.equal(together, merge.clustered(keys, rest, weights, 10, 20, 1, 8))
    for i in range(4):
        alone = merge.clustered(keys[i : i + 1], rest[i : i + 1], weights[i : i + 1], 10, 20, 1, 7)
        assert torch.equal(alone[0], together[i])


def test_a_lloyd_step_moves_each_centre_to_the_weighted_mean_of_its_group():
    _, keys, rest, weights = signals(patches=200)
    weights = weights**4
    before, after = (merge.clustered(keys, rest, weights, 5, 5, steps, 0) for steps in (1, 2))
    for i in range(3):
        directions = keys[i] / keys[i].norm(dim=-1, keepdim=True)
        centres = [(directions * weights[i, :, None])[before[i] == group].sum(0) for group in range(5)]
        nearest = torch.stack([torch.cosine_similarity(directions, centre[None]) for centre in centres]).argmax(0)
        assert torch.equal(after[i][rest[i]], nearest[rest[i]])
    assert not torch.equal(before, after)


def test_linkage_equals_the_definition():
    """Weighted average linkage, each step from the cosines of the original centres."""
    torch.manual_seed(0)
    for count in (1, 2, 5):
        middles, mass = score.unit(torch.randn(1, 9, 4)), torch.rand(1, 9) + 0.1
        likeness = score.pairs(middles, middles)
        groups = [[i] for i in range(9)]

        def mean(a, b, likeness=likeness[0], mass=mass[0]):
            shares = [(mass[i] * mass[j]).item() for i in a for j in b]
            values = [likeness[i, j].item() for i in a for j in b]
            return sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)

        while len(groups) > count:
            a, b = max(itertools.combinations(groups, 2), key=lambda pair: mean(*pair))
            groups = [g for g in groups if g not in (a, b)] + [a + b]
        linked = merge._link(likeness, mass.clone(), count)[0].tolist()
        assert sorted(map(sorted, groups)) == sorted([i for i in range(9) if linked[i] == g] for g in range(count))


def test_a_merged_token_is_the_weighted_mean_of_its_group():
    features, _, rest, weights = signals()
    labels = torch.where(rest, torch.arange(40) % 4, -1)
    merged = merge.weighted_mean(features, labels, weights, 4)
    for i, group in itertools.product(range(3), range(4)):
        members = labels[i] == group
        share = weights[i, members] / weights[i, members].sum()
        torch.testing.assert_close(merged[i, group], (share[:, None] * features[i, members]).sum(0))
    assert merge.weighted_mean(features.half(), labels, weights, 4).dtype == torch.float16


def test_what_is_not_kept_joins_the_nearest():
    features = torch.tensor([[[1.0, 0], [5, 1], [0, 2], [1, 9], [0, 4]]])
    labels, tokens = merge.nearest(features, torch.tensor([[0, 2]]))
    assert labels.tolist() == [[0, 0, 1, 1, 1]]
    torch.testing.assert_close(tokens, torch.tensor([[[3, 0.5], [1 / 3, 5]]]))
    twins = torch.ones(1, 3, 2)
    assert merge.nearest(twins, torch.tensor([[1, 2]]))[0].tolist() == [[0, 0, 1]]  # a kept patch stays with itself


def test_a_kept_patch_takes_in_its_neighbours_and_the_last_token_the_rest():
    keys = torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]])
    features = torch.tensor([[[1.0], [10], [100], [1000]]])
    attention = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    kept = [torch.tensor([3, 0])]
    sums = merge.absorbed(features, keys, attention, kept, add=True, neighbours=1)
    torch.testing.assert_close(sums.features[0], torch.tensor([[1000 + 30.0], [1 + 2], [2 + 30]]))
    means = merge.absorbed(features, keys, attention, kept, add=False, neighbours=1)
    torch.testing.assert_close(means.features[0], torch.tensor([[1030 / 1.3], [3 / 1.2], [32 / 0.5]]))
    assert sums.kept[0].tolist() == [0, 3]
    assert sums.source[0].tolist() == means.source[0].tolist() == [1, 2, 2, 0]
    everything = merge.absorbed(features, keys, attention, [torch.arange(4)], add=False)
    assert everything.tokens == [4]
    twice = merge.absorbed(features, keys, attention, [torch.tensor([3, 3])], add=True, neighbours=1)
    torch.testing.assert_close(twice.features[0], torch.tensor([[1400.0], [1400], [2 + 30]]))
    assert twice.source[0].tolist() == [-1, 2, 2, 0]
