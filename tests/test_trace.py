"""Where the patches went, in front of the LLM and inside it."""

import torch

from sparsezip.trace import ImageTrace, Trace


def test_drops_inside_the_llm_follow_those_in_front_of_it():
    # 6 patches: 1 and 4 are sent, 0 and 2 are merged into a third token, 3 and 5 are dropped.
    image = ImageTrace(
        kept=torch.tensor([1, 4]), tokens=3, source=torch.tensor([2, 0, 2, -1, 1, -1]), patches=6, grid=(2, 3)
    )
    # Inside, token 0 goes, token 1 stays, and token 2 is merged into a new one.
    through = image.inside(torch.tensor([-1, 0, 1]), torch.tensor([1, -1]), [3, 2])
    assert through.kept.tolist() == [4]
    assert through.source.tolist() == [1, -1, 1, -1, 0, -1]
    assert through.tokens_per_layer == [3, 2]
    assert through.tokens == 3
    assert through.K == 1
    # A kept patch whose token is merged with others is no dominant one any more.
    merged = image.inside(torch.tensor([0, 0, 0]), torch.tensor([-1]), [3, 1])
    assert merged.kept.tolist() == []
    assert merged.source.tolist() == [0, 0, 0, -1, 0, -1]
    assert image.kept.tolist() == [1, 4]


def test_a_stage_that_comes_twice_is_counted_twice(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr("sparsezip.trace.now", lambda: next(clock))
    trace = Trace()
    for _ in range(2):
        with trace.timed("drop"):
            pass
    assert trace.stages == {"drop": 5.0}
    trace.clear()
    assert (trace.images, trace.tokens_per_layer, trace.stages) == ([], [], {})
