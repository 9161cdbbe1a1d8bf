"""Scores with a 95 % interval that is clustered by image, and differences of scores on the same questions.

Questions on one image share its luck, so the images are what was sampled, not the questions. Every score here is a
ratio of sums over questions (accuracy, recall, F1 = 2 TP / (2 TP + FP + FN), ...) or a sum of such ratios. Its variance
follows from what each image pulls it away from its value (the linearised, cluster-robust estimator of survey sampling;
Kish and Frankel 1974, and Miller 2024, "Adding error bars to evals", for questions to language models). Differences
subtract the pulls image by image, which is what makes a paired comparison sharp.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A score and what it rests on. `value` is None where nothing was measured."""

    value: int | float | None
    n: int  # questions it rests on
    pull: Mapping[str, float]  # by image: how far its questions move the value
    low: int | float = 0.0  # no value of the score can lie below
    high: int | float = 1.0
    reach: int | float = 1.0  # how far the value could move if every image were the opposite

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, or None with fewer than two images.

        Where the images do not differ at all, the variance says nothing: then the bound is 3 / images, the chance of
        the opposite that as many agreeing images still allow with 95 % confidence (Hanley and Lippman-Hand 1983).
        """
        images = len(self.pull)
        if self.value is None or images < 2:
            return None
        error = sqrt(images / (images - 1) * sum(pull * pull for pull in self.pull.values()))
        half = _student(images - 1) * error if error > 1e-12 else min(3 / images, 1.0) * self.reach
        return max(self.value - half, self.low), min(self.value + half, self.high)

    def __add__(self, other: "Estimate") -> "Estimate":
        if self.value is None or other.value is None:
            return Estimate(None, 0, {})
        low, high = self.low + other.low, self.high + other.high
        pull = _combined(self.pull, other.pull, 1.0)
        return Estimate(self.value + other.value, max(self.n, other.n), pull, low, high, self.reach + other.reach)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The paired difference: both scores come from the same questions."""
        if self.value is None or other.value is None:
            return Estimate(None, 0, {})
        low, high = self.low - other.high, self.high - other.low
        pull = _combined(self.pull, other.pull, -1.0)
        return Estimate(self.value - other.value, min(self.n, other.n), pull, low, high, max(self.reach, other.reach))

    def __mul__(self, factor: int | float) -> "Estimate":
        if self.value is None:
            return self
        pull = {image: factor * pull for image, pull in self.pull.items()}
        return Estimate(factor * self.value, self.n, pull, factor * self.low, factor * self.high, factor * self.reach)


def ratio(parts: Iterable[tuple[str, int | float, int | float]]) -> Estimate:
    """sum(numerator) / sum(denominator) over (image, numerator, denominator) of each question."""
    parts = list(parts)
    total = sum(denominator for _, _, denominator in parts)
    if not total:
        return Estimate(None, 0, {})
    value = sum(numerator for _, numerator, _ in parts) / total
    pull: dict[str, float] = defaultdict(float)
    for image, numerator, denominator in parts:
        pull[image] += (numerator - value * denominator) / total
    return Estimate(value, sum(denominator > 0 for _, _, denominator in parts), dict(pull))


def mean(values: Iterable[tuple[str, int | float]]) -> Estimate:
    """The mean over (image, value) of each question; values lie in 0 to 1."""
    return ratio((image, value, 1.0) for image, value in values)


def _student(degrees: int) -> float:
    """The 97.5 % point of Student's t, expanded around the normal one (Abramowitz and Stegun 26.7.5)."""
    z = Z95
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _combined(left: Mapping[str, float], right: Mapping[str, float], sign: float) -> dict[str, float]:
    return {image: left.get(image, 0.0) + sign * right.get(image, 0.0) for image in {**left, **right}}
