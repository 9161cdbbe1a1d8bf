"""What a report is written to: pictures, a table of numbers and a page, read back."""

import base64
import csv
import io
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import at, record, rows, settings, write
from PIL import Image, ImageFont

from sparsezip import cli
from sparsezip.measure import maps
from sparsezip.measure.records import Row
from sparsezip.measure.report import axes, bars, budgets, changes, chart, summary, tidy
from sparsezip.measure.report.page import MAPS

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>\u202e&amp;"


def summarised(*labels, given=None, **changed):
    made = given if given is not None else [row for label in labels for row in rows(label)]
    return summary.summarise(record({label: settings(label) for label in labels}, **changed), made)


# -- pictures -------------------------------------------------------------------------------------------------------


def pictures(results):
    compared = budgets.compare(results, "")
    return [chart.svg(compared), chart.svg(compared, chart.TIME), bars.stages(results), bars.differences(results)]


def elements(svg):
    """(tag, attributes, text, offset from the top) of each element of a picture."""
    found = []

    def walk(element, down):
        shift = element.get("transform", "translate(0 0)").removeprefix("translate(").removesuffix(")").split()[1]
        found.append((element.tag.rpartition("}")[2], element.attrib, element.text or "", down + float(shift)))
        for child in element:
            walk(child, down + float(shift))

    walk(ElementTree.fromstring(svg), 0.0)
    return found


FONT = ImageFont.load_default(12)


def boxes(svg):
    """(text, left, top, right, bottom) of everything that is written."""
    for tag, look, words, down in elements(svg):
        if tag == "text":
            x, y, width = float(look["x"]), float(look["y"]) + down, FONT.getlength(words)
            left = x - {"start": 0, "middle": width / 2, "end": width}[look["text-anchor"]]
            yield words, left, y - 9, left + width, y + 2


def crowded():
    """Forty methods with long names at one budget, in groups with long names, and a sweep."""
    labels = [
        "keep_all",
        "random(budget=64)",
        *(f"a_rather_long_name_of_a_method_{n}|fastv(budget=64)" for n in range(40)),
    ]
    labels += ["grid(budget=64)", "grid(budget=60)", "grid(budget=61)"]
    given = []
    for label in labels:
        its = rows(label) if label == "keep_all" else at(settings(label)["budget"], label)
        given += [Row(**{**row.to_json(), "group": f"group of a very long name {int(row.id) % 6}"}) for row in its]
    return summarised(*labels, given=given)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("results", [summarised("keep_all", "random", "grid"), crowded()], ids=["few", "many"])
def test_nothing_written_in_a_picture_lies_on_another_or_beside_it(results, which):
    svg = pictures(results)[which]
    _, look, _, _ = elements(svg)[0]
    written = list(boxes(svg))
    assert len(written) > 8
    for number, (words, left, top, right, bottom) in enumerate(written):
        assert left >= 0, words
        assert right <= float(look["width"]), words
        assert top >= 0, words
        assert bottom <= float(look["height"]), words
        for other, left_, top_, right_, bottom_ in written[:number]:
            assert not (left < right_ and left_ < right and top < bottom_ and top_ < bottom), (words, other)


@pytest.mark.parametrize("which", range(4))
def test_every_colour_has_one_for_a_dark_ground(which):
    svg = pictures(crowded())[which]
    used = {look[key] for _, look, _, _ in elements(svg) for key in ("fill", "stroke") if key in look} - {"none"}
    assert len(used) > 3
    assert used <= set(axes.DARK)
    for colour in used:
        assert f'[fill="{colour}"]{{fill:{axes.DARK[colour]}}}' in svg


def test_a_bar_is_as_long_as_its_stages_take():
    shown = elements(bars.stages(summarised("keep_all", "grid")))
    tower, decode = axes.COLOURS[:2]
    widths = {
        colour: [float(look["width"]) for tag, look, *_ in shown if tag == "rect" and look["fill"] == colour][1:]
        for colour in (tower, decode)
    }
    assert widths[decode] == [pytest.approx(w * 4.5 / 3, abs=0.2) for w in widths[tower]]  # medians: 3 and 4.5 ms
    assert len(widths[tower]) == 2
    assert [words for tag, _, words, _ in shown if tag == "text"].count("9.5") == 2  # end to end


def test_differences_stand_where_they_belong():
    svg = bars.differences(summarised("keep_all", "random", "grid"))
    shown = elements(svg)
    dots = [look for tag, look, *_ in shown if tag == "circle"]
    names = [words for words, *_ in boxes(svg)]
    assert names[:3] == ["scenes: EM % minus keep_all, with 95 % intervals, by type", "random", "grid"]
    assert {"all", "color", "shape"} <= set(names)
    assert len(dots) == 6
    zero = [look for tag, look, *_ in shown if tag == "line" and look["stroke"] == axes.RULE]
    assert len(zero) == 3
    random, grid = dots[:2]  # of all: -62.5, wholly below 0, and -37.5, not
    assert (random["fill"], grid["fill"]) == (axes.WORSE, axes.FAINT)
    at_zero = float(zero[0]["x1"])
    assert (at_zero - float(random["cx"])) / (at_zero - float(grid["cx"])) == pytest.approx(62.5 / 37.5, abs=0.01)


def test_what_was_not_measured_is_not_drawn():
    given = [row for label in ("keep_all", "grid") for row in rows(label, timing_ms={}, tokens_per_layer=None)]
    by_tokens, by_time, stages, _ = pictures(summarised("keep_all", "grid", given=given))
    for svg in (by_tokens, by_time, stages):
        assert "Not measured." in svg
        assert "<circle" not in svg


# -- numbers --------------------------------------------------------------------------------------------------------


def test_the_numbers_as_one_row_for_each_method_group_and_score():
    results = summarised("keep_all", "random", "grid")
    made = list(csv.DictReader(io.StringIO(tidy.text(results))))
    assert len(made) == 3 * 3
    grid = next(row for row in made if (row["method"], row["group"]) == ("grid", "all"))
    told = ("benchmark", "score", "n", "value", "minus_keep_all", "tokens_per_layer", "latency_ms_p90", "kv_bytes")
    assert [grid[key] for key in told] == ["scenes", "exact_match", "8", "0.5", "-0.375", "64.0", "12.3", ""]
    assert float(grid["minus_keep_all_p"]) == pytest.approx(0.0577, abs=1e-4)
    part = next(row for row in made if (row["method"], row["group"]) == ("grid", "shape"))
    assert (part["value"], part["n"], part["minus_random"], part["tokens"]) == ("0.0", "4", "0.0", "")


def test_a_spreadsheet_is_given_no_formula():
    given = [Row(**{**row.to_json(), "group": "=cmd()" if int(row.id) < 4 else "b"}) for row in rows("grid")]
    made = list(csv.DictReader(io.StringIO(tidy.text(summarised("grid", given=given)))))
    assert [row["group"] for row in made] == ["all", "'=cmd()", "b"]


# -- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.cards, self._inside = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "article":
            self.cards.append([])

    def handle_data(self, data):
        self.words.append(data)
        if self.cards and data.strip():
            self.cards[-1].append(data.strip())

    def of(self, tag, key):
        return [value for named, name, value in self.attributes if (named, name) == (tag, key)]


@pytest.fixture
def data(tmp_path):
    """The questions of the runs, and an image for each that is bright all over."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = [
        {"question_id": number, "image": f"{number % 4}.png", "question": f"{number} what?", "answer": "red",
         "type": "color" if number < 4 else "shape"}
        for number in range(8)
    ]  # fmt: skip
    (folder / "scenes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(4):
        Image.new("RGB", (60, 60), (250, 240, 230)).save(folder / "images" / f"{number}.png")
    return folder


MAP = maps.pack([0], [0, -1, -1, -1], (2, 2))


def reported(folder, *arguments):
    out = folder.parent / "report.html"
    assert cli.main(["report", str(folder), "--out", str(out), *map(str, arguments)]) == 0
    return out.read_text("utf-8")


def test_a_changed_answer_is_shown_with_its_image(tmp_path, data):
    given = [*rows("keep_all"), *rows("grid", map=MAP)]
    page = Page(reported(write(tmp_path / "a", ["keep_all", "grid"], given, session={"data": str(data)})))
    assert len(page.cards) == 4
    told = " ".join(page.cards[0])
    for words in ("right answer lost", "4 what?", "reference red", "keep_all red right", "grid not grid wrong"):
        assert words in told, words
    assert "1 patches kept, 0 merged into 0 tokens (by tint), 3 dropped (dark)." in told
    drawn = Image.open(io.BytesIO(base64.b64decode(page.of("img", "src")[0].removeprefix("data:image/jpeg;base64,"))))
    pixels, half = np.asarray(drawn.convert("L")), drawn.width // 2
    parts = (slice(9, half - 9), slice(half + 9, -9))
    kept, *dropped = (pixels[rows, columns].mean() for rows in parts for columns in parts)
    assert kept > 230
    assert max(dropped) < 80


def test_right_answers_lost_come_first_and_each_method_has_its_turn(tmp_path, data):
    """Sixty methods that change everything: the few that are shown are of as many methods, each its best."""
    labels = [f"m{number}" for number in range(60)]
    given = [*rows("keep_all", right="01111111"), *(row for label in labels for row in rows(label, right="10000000"))]
    text = reported(write(tmp_path / "a", ["keep_all", *labels], given, session={"data": str(data)}))
    page = Page(text)
    assert len(page.cards) == MAPS
    assert {card[0] if card[0] != "no image" else card[1] for card in page.cards} == {"right answer lost"}
    assert f"{MAPS} of 480 are shown" in text
    found = changes.changes(summarised("keep_all", *labels[:1], given=given), given)
    assert [change.kind for change in found["m0"]] == [changes.LOST] * 7 + [changes.GAINED]


def test_what_the_floor_loses_comes_last():
    found = changes.changes(
        summarised("keep_all", "random", "grid"), [*rows("keep_all"), *rows("random"), *rows("grid")]
    )
    assert list(found) == ["grid", "random"]


def test_a_page_holds_no_more_than_its_own_text(tmp_path):
    """Every text that comes from a file is hostile here."""
    given = [
        Row(**{**row.to_json(), "question": HOSTILE, "group": HOSTILE, "image": HOSTILE, "references": [HOSTILE],
               "answer": f"{HOSTILE} {row.method}", "map": HOSTILE})
        for label in ("keep_all", f"grid{HOSTILE}") for row in rows(label)
    ]  # fmt: skip
    given.append(Row(**{**given[-1].to_json(), "id": HOSTILE, "answer": None, "error": HOSTILE}))
    changed = {"model": {"name": HOSTILE}, "session": {"torch": HOSTILE}, "left_out": {f"pool{HOSTILE}": HOSTILE}}
    labels = ["keep_all", f"grid{HOSTILE}", f"pool{HOSTILE}"]
    text = reported(write(tmp_path / "a", labels, given, **changed))
    page = Page(text)
    assert set(page.tags).isdisjoint({"script", "iframe", "object", "embed", "link", "form", "base"})
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert {"src", "href", "srcset", "action"} & {name for _, name, _ in page.attributes} == {"href"}
    assert all(target.startswith("#") for target in page.of("a", "href"))
    assert "http" not in text.replace("http-equiv", "").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "url(" not in text
    assert "\u202e" not in text
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    seen = HOSTILE.replace("\u202e", " ")
    assert sum(seen in words for words in page.words) > 20
    assert ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6]) is not None


def test_a_page_says_which_images_it_lacks(tmp_path, data):
    run = write(tmp_path / "a", ["keep_all", "grid"])
    text = reported(run)
    assert "No images of scenes: the run does not say where they lie. Name the folder with --data." in text
    assert "<img" not in text
    assert Page(text).cards[0][0] == "no image"
    assert reported(run, "--data", data).count("<img") == 4
    assert "The run did not record where the patches went." in reported(run, "--data", data)
    (data / "images" / "0.png").write_bytes(b"no image")
    text = reported(run, "--data", data)
    assert text.count("<img") == 3
    assert "0.png is not a readable image" in text
    (data / "scenes.jsonl").unlink()
    assert "No images of scenes: scenes.jsonl is missing" in reported(run, "--data", data)


def test_a_page_without_keep_all_shows_no_change(tmp_path):
    assert "there is no keep_all to compare with" in reported(write(tmp_path / "a", ["grid"]))


def test_a_folder_gets_everything(tmp_path, data):
    run = write(tmp_path / "a", ["keep_all", "random", "grid"], session={"data": str(data)})
    assert cli.main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    out = tmp_path / "out"
    names = {"accuracy_by_tokens.svg", "accuracy_by_time.svg", "stages.svg", "differences.svg"}
    assert {path.name for path in out.iterdir()} == names | {f"report.{kind}" for kind in ("md", "csv", "json", "html")}
    assert json.loads((out / "report.json").read_text()) == summary.read(run)
    text = (out / "report.md").read_text()
    assert "| grid | 64 | 64 |" in text
    assert all(f"]({name})" in text for name in names)
    assert (out / "report.html").read_text().count("<svg") == 4
    assert cli.main(["report", str(run), "--out", str(out)]) == 0  # again
    for suffix, start in ((".csv", "run,benchmark,"), (".html", "<!doctype html>")):
        assert cli.main(["report", str(run), "--out", str(tmp_path / f"one{suffix}")]) == 0
        assert (tmp_path / f"one{suffix}").read_text().startswith(start)
