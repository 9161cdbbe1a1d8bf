"""A user's own model for workers: it keeps a journal of which process was asked what, and can die of a question."""

import json
import os
import signal
from pathlib import Path

from sparsezip.registry import from_file

FakeModel = from_file(Path(__file__).with_name("fake_model.py")).FakeModel


class Journalling(FakeModel):
    def __init__(self, journal, pause, fatal):
        super().__init__(pause)
        self.journal, self.fatal = Path(journal), fatal
        self.note("loads", os.getpid())

    def answer(self, images, questions, method, max_new_tokens):
        self.note("asked", os.getpid(), method.name, *questions)
        if method.name == "grid" and any(self.fatal in question for question in questions):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(images, questions, method, max_new_tokens)

    def note(self, what, *words):
        with (self.journal / what).open("a") as file:
            file.write(json.dumps(words) + "\n")


def load(journal, pause=0.0, fatal="no question holds this"):
    return Journalling(journal, pause, fatal)
