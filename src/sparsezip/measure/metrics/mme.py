"""MME: accuracy over questions, accuracy+ over images (both questions right), and their sum per subtask, 0 to 200.

Scorers, each met on golden rows made by its authors' code; both add up subtasks, a perfect total is 2,800:
- lmms_eval: EvolvingLMMs-Lab/lmms-eval tasks/mme, {"total": perception and cognition, "subtask": each one's scores}.
- vlmevalkit: open-compass/VLMEvalKit MME_rating on the same readings, {"perception", "reasoning"}.

The two totals must not be mixed up: papers print perception alone (LLaVA-1.5-7B: about 1,510) or both (about 1,862).
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ...errors import DataError
from ...registry import unknown

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SCORERS = ("lmms_eval", "vlmevalkit")


def parsed(answer: str) -> str:
    """What an answer says, "yes", "no" or "other": by its first four characters, "yes" first; a lone y or n counts.

    So "Not at all" and "None" are "no", "Eyes" is "yes", and "The answer is yes" is "other".
    """
    answer = answer.lower().strip().replace(".", "")
    if len(answer) == 1:
        return {"y": "yes", "n": "no"}.get(answer, "other")
    return next((word for word in ("yes", "no") if word in answer[:4]), "other")


def score(rows: Sequence[Mapping[str, Any]], scorer: str = "lmms_eval") -> dict[str, Any]:
    """The scores of rows {"question_id" (one per image), "category", "answer", "prediction"}, in percent.

    Raises DataError where an image does not have exactly two questions, UnknownNameError for an unknown scorer.
    """
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    images: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        right = parsed(row["prediction"]) == row["answer"].lower().strip().replace(".", "")
        images.setdefault(row["category"], {}).setdefault(row["question_id"], []).append(right)
    subtask = {}
    for category, answers in images.items():
        for image, right in answers.items():
            if len(right) != 2:
                raise DataError(
                    f"MME asks two questions on an image, but {category} / {image} has {len(right)} answers."
                )
        accuracy = fmean(fmean(right) for right in answers.values()) * 100
        plus = fmean(all(right) for right in answers.values()) * 100
        both = fmean(fmean(right) * 100 + all(right) * 100 for right in answers.values())
        subtask[category] = {"acc": accuracy, "acc_plus": plus, "score": both}
    perception, cognition = (
        sum(scores["score"] for name, scores in subtask.items() if name in names) for names in (PERCEPTION, COGNITION)
    )
    if scorer == "vlmevalkit":
        return {"perception": perception, "reasoning": cognition}
    return {"total": {"mme_perception_score": perception, "mme_cognition_score": cognition}, "subtask": subtask}
