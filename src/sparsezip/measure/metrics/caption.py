"""BLEU-1 to 4, METEOR, ROUGE-L and CIDEr-D of captions, through pycocoevalcap (the COCO evaluation server's code).

Texts pass once through the Penn Treebank tokenizer, which lowers case and drops punctuation; all scores read what it
leaves. The tokenizer and METEOR are Java programs that come with pycocoevalcap (extra "captions"); they run once for
texts they have not seen, as children that end with the call, and no file is written.

Two differences from the official script, which no ordinary caption meets: a caption may hold any characters (there a
line break, unless a newline, moves the captions behind it to other images), and it is read by itself (there a "no." at
its end is one thing or another, depending on the caption behind it).

METEOR of a corpus is computed here from the counts that the Java program gives for each caption, by METEOR 1.5's
formula for English (Denkowski and Lavie 2014), since reports ask for many parts of one run. It meets the program's own.

CIDEr weighs words by how few images of the rows given have them in their references. So its value depends on which
rows are scored together: a part of a benchmark has weights of its own, one image alone scores 0, and the CIDEr of a
whole is not the mean of its parts'. Both sides of a paired difference rest on the same rows, so on the same weights.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, FailureError, UsageError
from ...registry import unknown
from .interval import Estimate, jackknife, mean

SCORERS = ("pycocoevalcap",)
BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
NAMES = {"cider": "CIDEr", "bleu_4": "Bleu_4", "meteor": "METEOR", "rouge_l": "ROUGE_L"}
NAMES |= {name.lower(): name for name in BLEU}

PATIENCE = 60  # seconds that a Java may take to tell its version; one that hangs would hold up the run for good
_GET_JAVA = "Install a Java runtime, version 8 or newer: apt install default-jre-headless, or https://adoptium.net."
_BREAKS = re.compile("[\n\r\v\f\u2028\u2029]")  # what the tokenizer takes for the end of a line
_TOKENS: dict[str, str] = {}
_COUNTS: dict[tuple[str, ...], tuple[float, ...]] = {}

Floats = NDArray[np.float64]


class Scored(NamedTuple):
    """The scores of some captions, and the counts that those of a corpus follow from."""

    scores: dict[str, dict[str, Any]]  # as `score` gives them
    bleu: Floats  # [caption, 10], see _bleu
    meteor: Floats  # [caption, 23], see _meteor


def check() -> None:
    """Raises UsageError where captions cannot be scored here; it says what is missing and how to get it."""
    if find_spec("pycocoevalcap") is None:
        raise UsageError(
            "Scoring captions needs pycocoevalcap, which is not installed: pip install sparsezip[captions]"
        )
    _java()


def score(rows: Sequence[Mapping[str, Any]], scorer: str = "pycocoevalcap") -> dict[str, dict[str, Any]]:
    """{"Bleu_1": {"corpus", "per_image"}, ..., "METEOR", "ROUGE_L", "CIDEr"} over rows {"caption", "references": list}.

    The corpus value of no rows is None. Raises DataError for a row without references, UsageError where Java or
    pycocoevalcap is missing, FailureError where Java fails, UnknownNameError for an unknown scorer.
    """
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    if not rows:
        return {name: {"corpus": None, "per_image": []} for name in NAMES.values()}
    scores = _scored(rows).scores
    return {name: {**scores[name], "per_image": list(scores[name]["per_image"])} for name in NAMES.values()}


def measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """The same scores of rows {"image_id", "caption", "references"} as estimates, whose intervals count images.

    CIDEr and ROUGE-L are means over captions; CIDEr, at most 10, takes its weights as given. BLEU and METEOR come from
    counts summed over all captions, and the jackknife tells how far each image moves them. Raises as `score`.
    """
    if not rows:
        return {name: Estimate(None, 0, {}) for name in NAMES}
    images = [str(row["image_id"]) for row in rows]
    found = _scored(rows)
    cider, rouge = (mean(zip(images, found.scores[name]["per_image"], strict=True)) for name in ("CIDEr", "ROUGE_L"))
    (meteor,) = jackknife(images, found.meteor, _meteor)
    return {
        "cider": replace(cider, high=10.0, reach=10.0),
        **dict(zip(map(str.lower, BLEU), jackknife(images, found.bleu, _bleu), strict=True)),
        "meteor": meteor,
        "rouge_l": rouge,
    }


def tokenized(texts: Sequence[str]) -> list[str]:
    """Each text as the tokenizer leaves it: lower-case tokens with single spaces, no punctuation. Raises as `score`."""
    new = list(dict.fromkeys(text for text in texts if text not in _TOKENS))
    if new:
        check()
        from pycocoevalcap.tokenizer import ptbtokenizer

        jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
        command = ("-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
        # An empty line behind each text: how its end is read must not depend on the text behind it.
        lines = _run("tokenizer", command, [line for text in new for line in (_BREAKS.sub(" ", text), "")])
        for text, line in zip(new, lines[::2], strict=True):
            words = (word for word in line.rstrip().split(" ") if word not in ptbtokenizer.PUNCTUATIONS)
            _TOKENS[text] = " ".join(words)
    return [_TOKENS[text] for text in texts]


def without_java(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, dict[str, Any]], Floats]:
    """All scores but METEOR of texts that are tokenized already, and the counts behind BLEU (see _bleu)."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    theirs = {place: list(texts) for place, texts in enumerate(references)}
    mine = {place: [text] for place, text in enumerate(captions)}
    bleu = BleuScorer(n=len(BLEU))
    for caption, texts in zip(captions, theirs.values(), strict=True):
        bleu += (caption, texts)
    found = dict(zip(BLEU, zip(*bleu.compute_score(option="closest", verbose=0), strict=True), strict=True))
    found["ROUGE_L"] = Rouge().compute_score(theirs, mine)
    words = any(text.split() for texts in references for text in texts)  # without any the official code fails
    found["CIDEr"] = Cider().compute_score(theirs, mine) if words else (0.0, [0.0] * len(captions))
    scores = {
        name: {"corpus": float(corpus), "per_image": [float(value) for value in per_image]}
        for name, (corpus, per_image) in found.items()
    }
    counts = [
        (
            *part["correct"],
            *part["guess"],
            words := part["testlen"],
            min(part["reflen"], key=lambda n: (abs(n - words), n)),
        )
        for part in bleu.ctest
    ]
    return scores, np.array(counts, dtype=float)


def _scored(rows: Sequence[Mapping[str, Any]]) -> Scored:
    for place, row in enumerate(rows):
        if not row["references"]:
            raise DataError(f"Caption {place} (image {row.get('image_id')}) has no references to be scored by.")
    tokenized([text for row in rows for text in (row["caption"], *row["references"])])
    captions = tuple(_TOKENS[row["caption"]] for row in rows)
    return _scored_tokens(captions, tuple(tuple(_TOKENS[text] for text in row["references"]) for row in rows))


@lru_cache(maxsize=64)  # a report scores the same rows for every comparison
def _scored_tokens(captions: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> Scored:
    scores, bleu = without_java(captions, references)
    meteor = _meteor_counts(captions, references)
    scores["METEOR"] = {"corpus": float(_meteor(meteor.sum(0))[0]), "per_image": _meteor(meteor)[:, 0].tolist()}
    return Scored(scores, bleu, meteor)


def _bleu(counts: Floats) -> Floats:
    """BLEU-1 to 4, [..., 4], of sums of: right n-grams for n 1 to 4, n-grams, words, words of the nearest references.

    The small numbers are the official code's, against divisions by 0.
    """
    right, all_, words, nearest_words = counts[..., :4], counts[..., 4:8], counts[..., 8:9], counts[..., 9:]
    precision = np.cumsum(np.log((right + 1e-15) / (all_ + 1e-9)), axis=-1) / np.arange(1, 5)
    too_short = 1 - 1 / np.minimum((words + 1e-15) / (nearest_words + 1e-9), 1)
    return np.exp(precision + too_short)


def _meteor_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What METEOR's Java program counts for each caption and the reference that suits it best, [caption, 23]."""
    asked = [
        tuple(text.replace("|||", "") for text in (*texts, caption))
        for caption, texts in zip(captions, references, strict=True)
    ]
    new = list(dict.fromkeys(texts for texts in asked if texts not in _COUNTS))
    if new:
        from pycocoevalcap.meteor import meteor

        jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
        command = ("-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm")
        for texts, line in zip(
            new, _run("METEOR", command, [" ||| ".join(("SCORE", *texts)) for texts in new]), strict=True
        ):
            _COUNTS[texts] = tuple(map(float, line.split()))
    counts = np.array([_COUNTS[texts] for texts in asked])
    equal = (counts[:, 21:] == counts[:, :2]).all(1) & (counts[:, 20] == 1)
    counts[equal, 20] = 0  # the words of the reference in their order: one run, yet no gap
    return counts


def _meteor(counts: Floats) -> Floats:
    """METEOR, [..., 1], of sums of its counts.

    These are: words and function words of caption and reference (4 numbers), for each of four kinds of match (exact,
    stem, synonym, paraphrase) the content and function words matched on both sides (4 by 4), runs of matched words,
    words matched on both sides (2).
    """
    lengths, matched, runs = counts[..., :4], counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2), counts[..., 20]
    content, function = 0.75, 0.25
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing matched: 0
        weighed = np.einsum("...kws,k,w->...s", matched, (1.0, 0.6, 0.8, 0.6), (content, function))
        precision, recall = (
            weighed[..., side]
            / (content * (lengths[..., side] - lengths[..., 2 + side]) + function * lengths[..., 2 + side])
            for side in (0, 1)
        )
        fmean = precision * recall / (0.85 * precision + 0.15 * recall)
        gaps = 0.6 * (runs / counts[..., 21:].mean(-1)) ** 0.2
        score: Floats = np.nan_to_num(fmean * (1 - gaps))[..., None]
    return score


def _run(what: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    """What a Java program answers to each line. Raises FailureError unless it is one line for each."""
    text = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    done = subprocess.run([_java(), *arguments], input=text, capture_output=True, check=False)  # noqa: S603 - no shell
    answers = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode or len(answers) != len(lines):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise FailureError(
            f"{what} (Java) answered {len(answers):,} of {len(lines):,} lines. The last thing it said: {said[-1]}"
        )
    return answers


def _java() -> str:
    path = shutil.which("java")
    if path is None:
        raise UsageError(f"Scoring captions needs Java, and there is no java on PATH. {_GET_JAVA}")
    if (why := _broken(path)) is not None:
        raise UsageError(f"Scoring captions needs Java, but {path} does not start ({why}). {_GET_JAVA}")
    return path


@lru_cache
def _broken(java: str) -> str | None:
    """Why this java does not start: macOS has one that only says that none is installed."""
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            [java, "-version"], capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return f"it gives no version in {PATIENCE} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it says nothing"])[0]
