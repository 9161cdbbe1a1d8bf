"""Caption scores against the official package's own numbers and against slow, obvious implementations.

Everything but the two programs themselves is tested without Java, on texts and counts that they gave before.
"""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparsezip.errors import DataError, FailureError, UnknownNameError, UsageError
from sparsezip.measure.metrics import caption
from sparsezip.measure.metrics.interval import jackknife, mean

GOLDENS = Path(__file__).parent / "goldens" / "metrics"
ROWS = [json.loads(line) for line in (GOLDENS / "captions_7.jsonl").read_text("utf-8").splitlines()]
EXPECTED = json.loads((GOLDENS / "captions_7.expected.json").read_text("utf-8"))
COUNTS = json.loads((GOLDENS / "captions_7.meteor.json").read_text("utf-8"))["counts"]
CAPTIONS = list(EXPECTED["tokenized_captions"].values())
REFERENCES = list(EXPECTED["tokenized_references"].values())
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
HOSTILE = [
    "",
    " \t ",
    "...",
    "|||",
    "a cat ||| a dog",
    "two\r\nlines\u2028and\u2029more\v\f\n",
    "\ud800 half a character",
    "日本 café İSTANBUL",
    "SCORE ||| a ||| b",
    "\x00\x1a\x04 end",
    "it says no.",
]


@pytest.fixture
def asked_before(monkeypatch):
    """Java's answers are known and there is no Java."""
    texts = {row["caption"]: tokens for row, tokens in zip(ROWS, CAPTIONS, strict=True)}
    for row, tokens in zip(ROWS, REFERENCES, strict=True):
        texts.update(zip(row["references"], tokens, strict=True))
    keys = [(*references, tokens) for references, tokens in zip(REFERENCES, CAPTIONS, strict=True)]
    monkeypatch.setattr(caption, "_TOKENS", texts)
    monkeypatch.setattr(
        caption, "_COUNTS", {key: tuple(map(float, row)) for key, row in zip(keys, COUNTS, strict=True)}
    )
    monkeypatch.setenv("PATH", "")
    caption._scored_tokens.cache_clear()


@pytest.fixture
def unasked(monkeypatch):
    """Nothing is known."""
    monkeypatch.setattr(caption, "_TOKENS", {})
    monkeypatch.setattr(caption, "_COUNTS", {})
    caption._scored_tokens.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_every_score_meets_the_official_package(asked_before, name):
    found = caption.score(ROWS)[name]
    assert found["corpus"] == pytest.approx(EXPECTED[name]["corpus"], abs=1e-12)
    assert found["per_image"] == pytest.approx(EXPECTED[name]["per_image"], abs=1e-12)


def test_estimates_hold_the_same_values(asked_before):
    found = caption.measures(ROWS)
    assert set(found) == {name.lower() for name in ("CIDEr", "METEOR", "ROUGE_L", *NAMES[:4])}
    for name in NAMES:
        estimate = found[name.lower()]
        low, high = estimate.interval()
        assert estimate.value == pytest.approx(EXPECTED[name]["corpus"], abs=1e-12)
        assert estimate.n == len(estimate.pull) == 40
        assert low < estimate.value < high


# -- the programs --------------------------------------------------------------------------------------------------


def test_the_java_programs_meet_the_golden_whatever_stands_beside_it(unasked, monkeypatch, capfd):
    hostile = [{"image_id": f"h{place}", "caption": text, "references": HOSTILE} for place, text in enumerate(HOSTILE)]
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Dfile.encoding=US-ASCII")
    if shutil.which("java") is None:
        with pytest.raises(UsageError, match="no java on PATH"):
            caption.score(ROWS)
        return
    import pycocoevalcap

    files = {path for folder in pycocoevalcap.__path__ for path in Path(folder).rglob("*")}
    beside = caption.score(hostile[:5] + ROWS + hostile[5:])
    runs = len(started)
    alone = caption.score(ROWS)
    assert caption.tokenized([row["caption"] for row in ROWS]) == CAPTIONS
    assert [caption.tokenized(row["references"]) for row in ROWS] == REFERENCES
    for name in NAMES:
        assert alone[name]["corpus"] == pytest.approx(EXPECTED[name]["corpus"], abs=1e-12), name
        assert alone[name]["per_image"] == pytest.approx(EXPECTED[name]["per_image"], abs=1e-12), name
        if name != "CIDEr":  # its weights come from all rows
            assert beside[name]["per_image"][5:45] == pytest.approx(EXPECTED[name]["per_image"], abs=1e-12), name
        assert all(math.isfinite(value) for value in beside[name]["per_image"])
    tokens = caption.tokenized(HOSTILE)
    assert tokens[:3] == ["", "", ""]
    assert tokens[5:8] == ["two lines and more", "half a character", "日本 café i̇stanbul"]
    assert [beside["METEOR"]["per_image"][place] for place in (0, 1, 2, 47)] == [0.0, 0.0, 0.0, 1.0]
    assert len(started) == runs  # the second time nothing was asked
    assert all(child.poll() is not None for child in started)
    assert {path for folder in pycocoevalcap.__path__ for path in Path(folder).rglob("*")} - files <= {
        path for folder in pycocoevalcap.__path__ for path in Path(folder).rglob("*.py*")
    }
    assert capfd.readouterr() == ("", "")


def test_what_is_missing_is_named_with_the_way_to_get_it(unasked, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no java on PATH.*apt install"):
        caption.check()
    with pytest.raises(UsageError, match="no java on PATH"):
        caption.score(ROWS)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    for call in (caption.check, lambda: caption.score(ROWS)):
        with pytest.raises(UsageError, match=r"pip install .*sparsezip\[captions\]"):
            call()


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", UsageError, "does not start .*Unable to locate"),
        ("[ $1 = -version ] || echo one line", FailureError, r"tokenizer \(Java\) answered 1 of [\d,]+ lines"),
        ("[ $1 = -version ] || { echo OutOfMemoryError >&2; exit 3; }", FailureError, "OutOfMemoryError"),
    ],
)
def test_a_java_that_fails_is_no_score(unasked, monkeypatch, tmp_path, script, error, message):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n[ $1 = -version ] || while read -r line; do :; done\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error, match=message):
        caption.score(ROWS)


def test_a_java_that_hangs_is_given_up(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(caption, "PATIENCE", 1, raising=False)
    with pytest.raises(UsageError, match=r"does not start \(it gives no version in 1 s\)"):
        caption.check()


def test_nothing_of_the_package_is_imported_before_a_caption_is_scored():
    program = "import sys; from sparsezip.measure.metrics import caption; print('pycocoevalcap' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# -- rows ----------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_scored(unasked):
    with pytest.raises(DataError, match=r"Caption 1 \(image 8\) has no references"):
        caption.score([ROWS[0], {"image_id": 8, "caption": "a cat", "references": []}])
    with pytest.raises(UnknownNameError, match='Did you mean "pycocoevalcap"'):
        caption.score(ROWS, scorer="pycocoeval")
    assert caption.score([])["CIDEr"] == {"corpus": None, "per_image": []}
    assert caption.measures([])["bleu_4"].value is None


def test_cider_of_a_part_has_the_weights_of_the_part(asked_before):
    assert caption.score(ROWS[:1])["CIDEr"]["corpus"] == 0.0
    part = caption.score(ROWS[:10])["CIDEr"]["corpus"]
    assert abs(part - np.mean(EXPECTED["CIDEr"]["per_image"][:10])) > 0.01


def test_captions_and_references_without_a_word():
    scores, counts = caption.without_java(["", ""], [[""], ["", ""]])
    assert scores["CIDEr"] == {"corpus": 0.0, "per_image": [0.0, 0.0]}
    assert np.isfinite(caption._bleu(counts.sum(0))).all()


# -- intervals -----------------------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_the_mean():
    values = np.random.default_rng(0).random(30)
    images = [str(image) for image in range(30)]
    parts = np.stack([values, np.ones(30)], 1)
    (estimate,) = jackknife(images, parts, lambda sums: sums[..., :1] / sums[..., 1:])
    assert (estimate.value, estimate.n) == (pytest.approx(values.mean()), 30)
    assert estimate.interval() == pytest.approx(mean(zip(images, values, strict=True)).interval())


def test_the_jackknife_leaves_out_whole_images(asked_before):
    images = [place % 9 for place in range(40)]  # some with four captions, some with five
    counts = caption.without_java(CAPTIONS, REFERENCES)[1]
    left_out = []
    for image in range(9):
        rest = [place for place in range(40) if images[place] != image]
        left_out.append(caption.score([ROWS[place] for place in rest])["Bleu_4"]["corpus"])
    error = math.sqrt(8 / 9 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    estimate = jackknife([str(image) for image in images], counts, caption._bleu)[3]
    low, high = estimate.interval()
    assert (high - low) / 2 == pytest.approx(2.3060041 * error, rel=1e-6)  # Student's t, 8 degrees of freedom


@pytest.mark.parametrize("name", ["Bleu_1", "Bleu_4", "METEOR"])
def test_intervals_of_whole_corpora_agree_with_a_bootstrap_over_images(asked_before, name):
    counts = caption.without_java(CAPTIONS, REFERENCES)[1] if "Bleu" in name else np.array(COUNTS, dtype=float)
    value = caption._bleu if "Bleu" in name else caption._meteor
    drawn = counts[np.random.default_rng(1).integers(0, 40, (4000, 40))].sum(1)
    scores = value(drawn)[:, 3 if name == "Bleu_4" else 0]
    low, high = caption.measures(ROWS)[name.lower()].interval()
    assert (high - low) / 2 == pytest.approx(2.0227 * scores.std(), rel=0.1)  # Student's t, 39 degrees of freedom


def test_repeating_every_caption_does_not_narrow_the_interval(asked_before):
    for name, estimate in caption.measures(ROWS * 2).items():
        once = caption.measures(ROWS)[name]
        if name != "cider":
            assert estimate.interval() == pytest.approx(once.interval(), abs=1e-9), name


def test_a_paired_difference_is_sharper_than_two_intervals(asked_before):
    worse = [{**row, "caption": f"{row['caption']} short"} for row in ROWS]
    for place, row in enumerate(worse):  # some captions lose a word
        words = CAPTIONS[place].split()
        caption._TOKENS[row["caption"]] = " ".join(words[: -1 if place % 2 else None])
        known = caption._COUNTS[(*REFERENCES[place], CAPTIONS[place])]
        caption._COUNTS[(*REFERENCES[place], caption._TOKENS[row["caption"]])] = known
    both = caption.measures(ROWS), caption.measures(worse)
    for name in ("cider", "rouge_l", "bleu_1", "bleu_4"):
        difference = both[0][name] - both[1][name]
        width = difference.interval()[1] - difference.interval()[0]
        assert difference.value == pytest.approx(both[0][name].value - both[1][name].value)
        assert 0 < width < both[0][name].interval()[1] - both[0][name].interval()[0]
        assert (both[0][name] - both[0][name]).p_value() == 1.0


# -- slow, obvious implementations ---------------------------------------------------------------------------------


def grams(text, n):
    words = text.split()
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def test_bleu_is_the_papers():
    scores, _ = caption.without_java(CAPTIONS, REFERENCES)
    words = sum(len(text.split()) for text in CAPTIONS)
    nearest = 0
    for text, references in zip(CAPTIONS, REFERENCES, strict=True):
        mine = len(text.split())
        nearest += sorted((abs(len(other.split()) - mine), len(other.split())) for other in references)[0][1]
    product = 1.0
    for n in range(1, 5):
        right = total = 0
        for text, references in zip(CAPTIONS, REFERENCES, strict=True):
            for gram, count in grams(text, n).items():
                right += min(count, max(grams(other, n)[gram] for other in references))
                total += count
        product *= right / total
        bleu = product ** (1 / n) * min(1, math.exp(1 - nearest / words))
        assert scores[f"Bleu_{n}"]["corpus"] == pytest.approx(bleu, rel=1e-6)


def test_the_counts_behind_bleu_know_captions_that_are_too_short():
    short = [" ".join(text.split()[:7]) for text in CAPTIONS]
    scores, counts = caption.without_java(short, REFERENCES)
    lengths = [text.count(" ") + 1 for text in short]
    nearest = [
        sorted(((len(other.split()) - mine) ** 2, len(other.split())) for other in references)[0][1]
        for mine, references in zip(lengths, REFERENCES, strict=True)
    ]
    assert sum(lengths) < sum(nearest)
    assert counts[:, 8:].tolist() == [list(pair) for pair in zip(lengths, nearest, strict=True)]
    for n, value in enumerate(caption._bleu(counts.sum(0)), 1):
        assert value == pytest.approx(scores[f"Bleu_{n}"]["corpus"], rel=1e-9)


def test_rouge_l_is_an_f_measure_of_the_longest_common_subsequence():
    def longest(left, right):
        if not left or not right:
            return 0
        row = [0] * (len(right) + 1)
        for word in left:
            last = 0
            for place, other in enumerate(right, 1):
                last, row[place] = row[place], last + 1 if word == other else max(row[place], row[place - 1])
        return row[-1]

    scores, _ = caption.without_java(CAPTIONS, REFERENCES)
    for text, references, found in zip(CAPTIONS, REFERENCES, scores["ROUGE_L"]["per_image"], strict=True):
        common = [longest(text.split(), other.split()) for other in references]
        precision = max(common) / len(text.split())
        recall = max(length / len(other.split()) for length, other in zip(common, references, strict=True))
        assert found == pytest.approx((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))


def test_cider_is_a_cosine_of_weighed_n_grams():
    scores, _ = caption.without_java(CAPTIONS, REFERENCES)
    for place, (text, references) in enumerate(zip(CAPTIONS, REFERENCES, strict=True)):
        value = 0.0
        for n in range(1, 5):
            known = sorted(
                {gram for texts in REFERENCES for other in texts for gram in grams(other, n)} | set(grams(text, n))
            )
            holders = [{gram for other in texts for gram in grams(other, n)} for texts in REFERENCES]
            weight = np.array([math.log(40 / max(1, sum(gram in held for held in holders))) for gram in known])
            mine = np.array([grams(text, n)[gram] for gram in known]) * weight
            for other in references:
                theirs = np.array([grams(other, n)[gram] for gram in known]) * weight
                norms = np.linalg.norm(mine) * np.linalg.norm(theirs)
                longer = len(text.split()) - len(other.split())
                if norms:
                    value += np.minimum(mine, theirs) @ theirs / norms * math.exp(-(longer**2) / 72)
        if place < 8:  # it is slow
            assert scores["CIDEr"]["per_image"][place] == pytest.approx(10 * value / 4 / len(references)), place
        else:
            break


def test_meteor_of_counts_by_hand():
    """A caption of 6 words, 3 of them function words, against a reference of 8 with 4."""
    counts = np.zeros(23)
    counts[:4] = 6, 8, 3, 4
    counts[4:8] = 1, 1, 2, 2  # exact: one content word and two function words on both sides
    counts[12:16] = 1, 1, 0, 0  # synonyms: one content word, worth 0.8
    counts[20:] = 2, 4, 4  # in two runs
    matched = 0.75 * (1 + 0.8) + 0.25 * 2
    precision = matched / (0.75 * 3 + 0.25 * 3)
    recall = matched / (0.75 * 4 + 0.25 * 4)
    fmean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert caption._meteor(counts) == pytest.approx(fmean * (1 - 0.6 * (2 / 4) ** 0.2))
    assert caption._meteor(np.zeros(23)) == 0.0
