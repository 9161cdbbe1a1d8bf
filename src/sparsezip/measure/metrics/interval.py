"""Scores with a 95 % interval that is clustered by image, and differences of scores on the same questions.

Questions on one image share its luck, so the images are what was sampled, not the questions. Every score here is a
ratio of sums over questions (accuracy, recall, F1 = 2 TP / (2 TP + FP + FN), ...) or a sum of such ratios. Its variance
follows from what each image pulls it away from its value (the linearised, cluster-robust estimator of survey sampling;
Kish and Frankel 1974, and Miller 2024, "Adding error bars to evals", for questions to language models). Scores of a
whole corpus that are no such ratio, BLEU for one, get their pulls by leaving out one image at a time (the jackknife;
Efron and Stein 1981). Differences subtract the pulls image by image, which is what makes a paired comparison sharp.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, lgamma, log, sqrt

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
SPREAD = 1e-12  # a standard error below this is rounding: the images do not differ


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
        images, error = len(self.pull), self._error()
        if self.value is None or images < 2:
            return None
        half = _student(images - 1) * error if error > SPREAD else min(3 / images, 1.0) * self.reach
        return max(self.value - half, self.low), min(self.value + half, self.high)

    def p_value(self) -> float | None:
        """How often chance alone gives a value this far from 0: a two-sided t test over images. For differences.

        It is below .05 where the interval leaves out 0, and only there. None with fewer than two images. Where the
        images do not differ at all it is the chance that so many would agree if the share of them that takes the value
        to 0 were the opposite, in the interval's approximation: 1 for a difference of 0, never 0.
        """
        images, error = len(self.pull), self._error()
        if self.value is None or images < 2:
            return None
        if not self.value:
            return 1.0
        if error > SPREAD:
            return _beyond(abs(self.value) / error, images - 1)
        return float(LEVEL ** (abs(self.value) / self.reach * images / 3))

    def _error(self) -> float:
        images = len(self.pull)
        return sqrt(images / (images - 1) * sum(pull * pull for pull in self.pull.values())) if images > 1 else 0.0

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


def jackknife(
    images: Sequence[str], parts: NDArray[np.float64], value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> list[Estimate]:
    """Estimates of scores that follow from sums over questions, such as the counts behind BLEU; each lies in 0 to 1.

    images: of each question. parts: [question, part], what each adds to the sums. value: [..., part] to [..., score].
    """
    names, place = np.unique(np.asarray(images), return_inverse=True)
    sums = np.zeros((len(names), parts.shape[1]))
    np.add.at(sums, place, parts)
    whole, without = value(sums.sum(0)), value(sums.sum(0) - sums)
    pulls = (whole - without) * (len(names) - 1) / len(names)
    pulls -= pulls.mean(0)
    return [
        Estimate(float(score), len(images), dict(zip(names.tolist(), pull.tolist(), strict=True)))
        for score, pull in zip(whole, pulls.T, strict=True)
    ]


@cache
def _student(degrees: int) -> float:
    """The point that Student's t exceeds in size with a probability of 5 %, by bisection."""
    low, high = 1.0, 13.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _beyond(middle, degrees) > LEVEL else (low, middle)
    return high


def _beyond(t: float, degrees: int) -> float:
    """The probability that Student's t exceeds `t` in size (Abramowitz and Stegun 26.7.1 and 26.5.27)."""
    square = t * t
    return _beta(degrees / 2, 0.5, degrees / (degrees + square), square / (degrees + square))


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (26.5.8); rest is 1 - x."""
    if not x or not rest:
        return float(not rest)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta(b, a, rest, x)
    fraction, upper, lower = 1.0, 1.0, 0.0  # evaluated from the front (modified Lentz)
    for step in range(1, 100_000):
        half = step // 2
        term = half * (b - half) if step % 2 == 0 else -(a + half) * (a + b + half)
        term *= x / ((a + step - 1) * (a + step))
        lower = 1 / (1 + term * lower)
        upper = 1 + term / upper
        fraction *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(rest)) / (a * fraction)


def _combined(left: Mapping[str, float], right: Mapping[str, float], sign: float) -> dict[str, float]:
    return {image: left.get(image, 0.0) + sign * right.get(image, 0.0) for image in {**left, **right}}
