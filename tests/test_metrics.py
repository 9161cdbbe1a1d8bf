"""Metrics against their authors' code (goldens) and against slow, obvious implementations."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from sparsezip.errors import DataError, UnknownNameError
from sparsezip.measure.metrics import anls, exact_match, mme, vqa, yes_no
from sparsezip.measure.metrics.interval import Estimate, mean, ratio

GOLDENS = Path(__file__).parent / "goldens" / "metrics"


def golden(name):
    rows = [json.loads(line) for line in (GOLDENS / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return rows, json.loads((GOLDENS / f"{name}.expected.json").read_text("utf-8"))


# -- the authors' own numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", yes_no.SCORERS)
def test_yes_no_meets_the_official_scorers(scorer):
    rows, expected = golden("pope_7")
    assert yes_no.score(rows, scorer=scorer) == expected[scorer]


def test_yes_no_reads_answers_as_the_official_scorer_does():
    rows, expected = golden("pope_7")
    assert [yes_no.prediction(row["answer"]) for row in rows] == expected["pope_official_prediction"]


def test_mme_meets_the_official_scorers():
    rows, expected = golden("mme_7")
    assert mme.score(rows) == {key: expected[key] for key in ("total", "subtask")}
    assert mme.score(rows, scorer="vlmevalkit") == expected["vlmevalkit"]
    assert [mme.parsed(row["prediction"]) for row in rows] == expected["parsed"]


@pytest.mark.parametrize("scorer", anls.SCORERS)
def test_anls_meets_the_official_scorers(scorer):
    rows, expected = golden("docvqa_7")
    assert anls.score(rows, scorer=scorer) == expected[scorer]


@pytest.mark.parametrize("scorer", vqa.SCORERS)
def test_vqa_meets_the_official_scorers(scorer):
    rows, expected = golden("vqa_21")
    scores = vqa.score(rows, scorer=scorer)
    assert scores["per_row"] == pytest.approx(expected[scorer]["per_row"], abs=1e-12)
    assert scores["mean"] == pytest.approx(expected[scorer]["mean"], abs=1e-12)


@pytest.mark.parametrize("scorer", ["gqa_official", "llava", "lmms_eval"])
def test_exact_match_meets_the_scorers_of_gqa(scorer):
    rows, expected = golden("gqa_21")
    assert exact_match.score(rows, scorer=scorer) == expected[scorer]


# -- slow, obvious implementations ---------------------------------------------------------------------------------


def test_yes_no_counts_like_a_loop():
    rng = random.Random(0)
    rows = [
        {"answer": rng.choice(["yes", "no", "No.", "Yes, it is"]), "label": rng.choice(["yes", "no"])}
        for _ in range(99)
    ]
    right = yes_said = true_yes = labelled_yes = 0
    for row in rows:
        said = "no" if row["answer"].lower().startswith("no") else "yes"
        right += said == row["label"]
        yes_said += said == "yes"
        labelled_yes += row["label"] == "yes"
        true_yes += said == row["label"] == "yes"
    scores = yes_no.score(rows)
    assert scores["acc"] == right / 99
    assert scores["precision"] == true_yes / yes_said
    assert scores["recall"] == true_yes / labelled_yes
    assert scores["f1"] == pytest.approx(2 * true_yes / (yes_said + labelled_yes))
    assert scores["yes_ratio"] == yes_said / 99


def test_a_share_of_nothing_is_none():
    scores = yes_no.score([{"answer": "no", "label": "no"}])
    assert scores["acc"] == 1.0
    assert scores["precision"] is scores["recall"] is scores["f1"] is None
    assert yes_no.score([])["acc"] is None
    assert anls.score([])["mean"] is None


def edit_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(edit_distance(a[1:], b) + 1, edit_distance(a, b[1:]) + 1, edit_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_anls_measures_edit_distance():
    rng = random.Random(1)
    for _ in range(60):
        answer, *references = ("".join(rng.choices("abC ", k=rng.randint(1, 5))).strip() or "a" for _ in range(3))
        near = max(
            1
            - edit_distance(" ".join(answer.lower().split()), " ".join(other.lower().split()))
            / max(len(answer), len(other))
            for other in references
        )
        assert anls.similarity(answer, references) == pytest.approx(near if near >= 0.5 else 0.0)


def test_vqa_counts_the_other_annotators():
    references = ["red"] * 2 + ["blue"] * 4 + ["Green.", "a green", "x", "y"]
    for answer, right in {
        "blue": 1.0,  # whoever is left out, three others say it
        "red": (2 * 1 / 3 + 8 * 2 / 3) / 10,
        "the Green": (2 * 1 / 3 + 8 * 2 / 3) / 10,
        "x": 9 / 30,
        "black": 0.0,
        "": 0.0,
    }.items():
        assert vqa.accuracy(answer, references) == pytest.approx(right), answer


def test_vqa_codes_differ_where_it_is_said():
    agreed = ["No 1."] * 10
    assert vqa.accuracy("no 1", agreed) == 0.0  # the official code normalises only where annotators differ
    assert vqa.accuracy("no 1", agreed, scorer="lmms_eval") == vqa.accuracy("no 1", agreed, scorer="textvqa") == 1.0
    assert vqa.accuracy("Two", ["2"] * 10) == 0.0
    assert vqa.accuracy("Two", ["2"] * 10, scorer="llava") == 1.0
    split = ["1,,2 a-b"] * 9 + ["x"]  # two commas between digits
    assert vqa.accuracy("1 2 a b", split) == 1.0
    assert vqa.accuracy("12 ab", split, scorer="lmms_eval") == 1.0


def test_exact_match_forgives_case_blanks_and_a_full_stop_alone():
    for answer, right in {"Red.": 1, " red ": 1, "RED": 1, "red star": 0, "": 0, "re d": 0, "reds": 0}.items():
        assert exact_match.score([{"prediction": answer, "answers": ["blue", "red"]}])["per_row"] == [right], answer


def test_mme_asks_pairs():
    row = {"question_id": "a", "category": "color", "answer": "Yes", "prediction": "yes"}
    with pytest.raises(DataError, match="color / a has 1 answers"):
        mme.score([row])


@pytest.mark.parametrize("metric", [yes_no, mme, anls, vqa, exact_match])
def test_an_unknown_scorer_is_refused_with_the_nearest_name(metric):
    with pytest.raises(UnknownNameError, match='Did you mean "lmms_eval"'):
        metric.score([], scorer="lmms_evl")


# -- intervals -----------------------------------------------------------------------------------------------------


def clustered(seed, images=60, most=6):
    """Correlated questions on images: (image, numerator, denominator) like the precision of a model."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(images):
        luck = rng.beta(2, 2)
        for _ in range(rng.integers(1, most + 1)):
            counted = rng.random() < 0.7
            rows.append((str(image), float(counted and rng.random() < luck), float(counted)))
    return rows


def width(interval):
    return interval[1] - interval[0]


def test_the_interval_of_a_mean_is_the_textbook_one():
    values = [0.5, 0.75, 0.25, 0.5, 0.375]
    low, high = mean((str(image), value) for image, value in enumerate(values)).interval()
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert (low + high) / 2 == pytest.approx(np.mean(values))
    assert (high - low) / 2 == pytest.approx(2.7764 * error, rel=0.01)  # Student's t, 4 degrees of freedom


def test_the_interval_ends_where_the_score_does():
    low, high = mean((str(image), value) for image, value in enumerate([0.0, 1.0, 1.0, 1.0])).interval()
    assert (low, high) == (0.0, 1.0)


def test_the_interval_of_a_ratio_agrees_with_a_bootstrap_over_images():
    rows = clustered(3, images=200)
    by_image = np.zeros((200, 2))
    for image, numerator, denominator in rows:
        by_image[int(image)] += numerator, denominator
    drawn = by_image[np.random.default_rng(0).integers(0, 200, (4000, 200))].sum(1)
    bootstrap = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    assert ratio(rows).interval() == pytest.approx(bootstrap, abs=0.006)


def test_repeating_every_question_does_not_narrow_the_interval():
    rows = clustered(4)
    assert width(ratio(rows * 10).interval()) == pytest.approx(width(ratio(rows).interval()))


def test_the_interval_covers_the_truth_95_times_in_100():
    estimates = [ratio(clustered(seed)).interval() for seed in range(400)]
    covered = np.mean([low <= 0.5 <= high for low, high in estimates])
    assert 0.92 <= covered <= 0.98


def test_a_paired_difference_is_the_mean_of_differences():
    rng = np.random.default_rng(5)
    left, right = rng.random(50), rng.random(50)
    estimate = mean(zip(map(str, range(50)), left, strict=True)) - mean(zip(map(str, range(50)), right, strict=True))
    error = np.std(left - right, ddof=1) / math.sqrt(50)
    assert estimate.value == pytest.approx(np.mean(left - right))
    assert width(estimate.interval()) / 2 == pytest.approx(
        2.0096 * error, rel=1e-4
    )  # Student's t, 49 degrees of freedom


def test_sums_of_scores_have_the_variance_of_the_sum():
    rng = np.random.default_rng(6)
    left, right = rng.random(80), rng.random(80)
    estimate = (
        mean(zip(map(str, range(80)), left, strict=True)) + mean(zip(map(str, range(80)), right, strict=True))
    ) * 100
    error = 100 * np.std(left + right, ddof=1) / math.sqrt(80)
    assert estimate.value == pytest.approx(100 * np.mean(left + right))
    assert width(estimate.interval()) / 2 == pytest.approx(1.9905 * error, rel=1e-4)  # 79 degrees of freedom
    assert (estimate.low, estimate.high) == (0, 200)


def test_agreement_of_all_images_is_not_certainty():
    perfect = mean((str(image), 1.0) for image in range(60))
    assert perfect.interval() == pytest.approx((0.95, 1.0))
    same = perfect - perfect
    assert same.interval() == pytest.approx((-0.05, 0.05))


def test_one_image_has_no_interval_and_nothing_no_value():
    assert mean([("a", 1.0), ("a", 0.0)]).interval() is None
    nothing = ratio([("a", 0.0, 0.0)])
    assert nothing.value is None
    assert (nothing - mean([("a", 1.0)])).value is None
    assert (nothing + mean([("a", 1.0)]) * 2).interval() is None
    assert Estimate(None, 0, {}).interval() is None


# -- tests of a difference -----------------------------------------------------------------------------------------


def apart(t, images):
    """An estimate that lies `t` standard errors from 0."""
    pull = math.sqrt((images - 1) / images / images)
    return Estimate(t, images, {str(image): pull for image in range(images)}, low=-1e9, high=1e9)


@pytest.mark.parametrize(
    ("degrees", "t", "p"),  # Student's t as tables have it
    [
        (1, 12.706, 0.05),
        (1, 63.657, 0.01),
        (2, 4.303, 0.05),
        (2, 0.816, 0.5),
        (4, 2.776, 0.05),
        (4, 8.610, 0.001),
        (10, 2.228, 0.05),
        (10, 0.700, 0.5),
        (30, 2.750, 0.01),
        (30, 3.646, 0.001),
        (120, 1.980, 0.05),
        (120, 1.289, 0.2),
        (1000, 1.962, 0.05),
        (50000, 3.2907, 0.001),
    ],
)
def test_the_p_value_is_students(degrees, t, p):
    assert apart(t, degrees + 1).p_value() == pytest.approx(p, rel=5e-3)
    assert apart(-t, degrees + 1).p_value() == apart(t, degrees + 1).p_value()


def test_tiny_p_values_stay_above_0():
    density = math.exp(math.lgamma(15.5) - math.lgamma(15)) / math.sqrt(math.pi * 30)
    steps = np.linspace(20, 400, 2_000_001)
    tail = 2 * np.trapezoid(density * (1 + steps**2 / 30) ** -15.5, steps)
    assert apart(20.0, 31).p_value() == pytest.approx(tail, rel=1e-6)
    assert 0 < apart(200.0, 31).p_value() < 1e-40


def test_the_interval_leaves_out_0_where_p_is_below_5_percent():
    rng = np.random.default_rng(7)
    outcomes = set()
    for images in (2, 3, 4, 5, 8, 20, 60, 300):
        for _ in range(60):
            values = rng.normal(rng.normal() * 1.5 / math.sqrt(images), 0.4, images).clip(-1, 1)
            same = [float(rng.choice([0, 0.02, 0.05, 0.1, 0.2, 0.5, 1]))] * images
            for part in (values.tolist(), same):
                estimate = mean((str(image), value) for image, value in enumerate(part)) - mean(
                    (str(image), 0.0) for image in range(images)
                )
                low, high = estimate.interval()
                assert (estimate.p_value() < 0.05) == (not low <= 0 <= high), (images, part[:3])
                outcomes.add((estimate.p_value() < 0.05, part is same))
    assert len(outcomes) == 4


def test_p_values_of_no_difference_are_evenly_spread():
    found = np.array([(ratio(clustered(seed)) - ratio(clustered(seed + 5000))).p_value() for seed in range(600)])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(found < level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 600))


def test_the_p_value_agrees_with_a_permutation_of_the_two_sides():
    rng = np.random.default_rng(9)
    left, right = rng.random(150), rng.random(150) * 0.85
    estimate = mean(zip(map(str, range(150)), left, strict=True)) - mean(zip(map(str, range(150)), right, strict=True))
    flipped = np.abs((rng.choice([-1, 1], (20000, 150)) * (left - right)).mean(1))
    assert 0.001 < estimate.p_value() < 0.2
    assert estimate.p_value() == pytest.approx(np.mean(flipped >= abs(estimate.value)), rel=0.15)


def test_where_nothing_differs_the_p_value_says_so():
    better = mean((str(image), 1.0) for image in range(60))
    assert (better - better).p_value() == 1.0
    assert (better - better * 0.5).p_value() == pytest.approx(math.exp(-30), rel=0.1)  # half of 60 images unseen
    assert mean([("a", 1.0), ("a", 0.0)]).p_value() is None
    assert Estimate(None, 0, {}).p_value() is None
