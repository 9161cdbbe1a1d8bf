"""The benchmarks' files: fetched from a server of the tests' own, and what of them is there."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from file_server import LOCAL, serving
from PIL import Image
from rich.console import Console

import sparsezip
from sparsezip import cli
from sparsezip.errors import DataError, FailureError, UsageError
from sparsezip.measure.benchmarks import benchmark, names
from sparsezip.measure.benchmarks.base import Hub
from sparsezip.measure.data import get as gets
from sparsezip.measure.data.check import check
from sparsezip.measure.data.get import get
from sparsezip.measure.data.sources import OFFICIAL, File, Part

SRC = Path(sparsezip.__file__).parents[1]


@pytest.fixture
def server():
    with serving() as running:
        yield running


def test_every_official_address_is_https_and_capped():
    files = [file for source in OFFICIAL.values() for part in source.parts for file in part.files]
    assert set(OFFICIAL) == set(names()) - {"scenes"}
    assert len(files) > 8
    for file in files:
        assert file.url.startswith("https://")
        assert file.size is None or file.size <= file.cap
        assert file.sha256 is None or (len(file.sha256) == 64 and file.by)
        assert (file.keep is None) == file.name.endswith(".json")
    for name, source in OFFICIAL.items():
        assert source.parts or "sparsezip data get" in source.how, name
        assert source.questions


def test_the_page_says_what_is_fetched():
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text("utf-8")
    lines = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    assert set(lines) == set(OFFICIAL)
    for name, source in OFFICIAL.items():
        files = [file for part in source.parts for file in part.files]
        _, _, questions, names, size, hub, _, _ = (cell.strip() for cell in lines[name].split("|"))
        assert questions == f"{source.questions:,}"
        assert hub == benchmark(name).hub.id
        if files:
            assert names.split(", ") == [file.name for file in files]
            known = sum(file.size or 0 for file in files) / 1e9
            assert known <= float(size.removesuffix(" GB")) + 0.05
            assert float(size.removesuffix(" GB")) <= sum(file.size or file.cap for file in files) / 1e9


# -- a benchmark ---------------------------------------------------------------------------------------------------


def picture(color="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "JPEG")
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def pope(server):
    """POPE's example on the server, in the shape of the official files."""
    example = benchmark("pope").example
    annotations = {name: text.encode() for name, text in example.items() if text is not None}
    image = next(Path(name).name for name, text in example.items() if text is None)
    server.files |= {f"/{name}": text for name, text in annotations.items()}
    server.files["/val2014.zip"] = zipped(**{f"val2014/{image}": picture(), "val2014/readme.txt": b"not asked for"})
    sums = {path: hashlib.sha256(body).hexdigest() for path, body in server.files.items()}
    parts = (
        Part("pope", tuple(File(f"{server.url}/{name}", 10_000, sha256=sums[f"/{name}"]) for name in annotations)),
        Part("val2014", (File(f"{server.url}/val2014.zip", 10 << 20, keep=("val2014/*.jpg",), strip="val2014/"),)),
    )
    return {"parts": {"pope": parts}, **LOCAL}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_benchmark_is_fetched_and_ready(pope, tmp_path):
    data, said = tmp_path / "data", io.StringIO()
    get(benchmark("pope"), data, console=Console(file=said, width=300), **pope)
    found = check(benchmark("pope"), data)
    assert (found.missing, found.images, found.questions) == ("", 1, {"random": 2, "popular": 2, "adversarial": 2})
    assert "9,000" in found.remark
    assert len(benchmark("pope").samples(data)) == 6
    assert {name for name in tree(data) if name.startswith("val2014/")} == {
        f"val2014/{Path(name).name}" for name, text in benchmark("pope").example.items() if text is None
    }
    noted = json.loads((data / "sources.json").read_text())
    assert len(noted) == 4
    assert {entry["sha256"] for entry in noted.values()} == {
        hashlib.sha256(body).hexdigest() for path, body in pope_files(pope).items()
    }
    assert "val2014.zip: sha256" in said.getvalue()
    assert "first use: nobody published a checksum" in said.getvalue()
    assert not list((data / ".get").glob("*/*"))


def pope_files(pope) -> dict[str, bytes]:
    return {file.url: urllib.request.urlopen(file.url).read() for part in pope["parts"]["pope"] for file in part.files}


def test_what_is_there_is_never_changed(pope, server, tmp_path):
    data = tmp_path / "data"
    (data / "val2014").mkdir(parents=True)
    (data / "val2014" / "mine.jpg").write_bytes(b"mine")
    get(benchmark("pope"), data, **pope)
    assert tree(data / "val2014") == {"mine.jpg": b"mine"}
    assert "images are missing" in check(benchmark("pope"), data).missing
    asked = len(server.asked)
    get(benchmark("pope"), data, **pope)
    assert len(server.asked) == asked


def test_a_later_file_has_to_be_the_one_that_arrived_first(pope, server, tmp_path):
    data = tmp_path / "data"
    get(benchmark("pope"), data, **pope)
    (data / "val2014").rename(tmp_path / "away")
    server.files["/val2014.zip"] += b"\n"
    with pytest.raises(FailureError, match=r"not the file that arrived first, says .*sources.json"):
        get(benchmark("pope"), data, **pope)
    assert not (data / "val2014").exists()
    (data / "sources.json").write_text("{")
    with pytest.raises(DataError, match=r"sources.json is damaged. Remove it"):
        get(benchmark("pope"), data, **pope)


def test_a_bad_archive_leaves_no_folder(pope, server, tmp_path):
    whole = server.files["/val2014.zip"]
    for damaged, message in (
        (whole[: len(whole) // 2], "damaged or incomplete"),
        (b"<html>Sorry</html>", "is not a zip, tar or tar.gz archive"),
        (zipped(**{"val2014/../../../escaped.jpg": b"x"}), "not a path inside a folder"),
        (zipped(**{"elsewhere/1.jpg": b"x"}), "holds none of val2014"),
    ):
        data = tmp_path / hashlib.sha256(damaged).hexdigest()[:8]
        server.files["/val2014.zip"] = damaged
        with pytest.raises(DataError, match=message):
            get(benchmark("pope"), data, **pope)
        assert sorted(path.name for path in data.iterdir()) == [".get", "pope", "sources.json"]
        assert not list(tmp_path.rglob("escaped*"))


def test_a_folder_appears_in_one_step(pope, monkeypatch, tmp_path):
    """A kill at the last moment: all of it is under its name, or nothing."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            get(benchmark("pope"), tmp_path, **pope)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".get", "sources.json"]
    get(benchmark("pope"), tmp_path, **pope)
    assert check(benchmark("pope"), tmp_path).missing == ""


def test_two_processes_do_not_fetch_to_one_folder(pope, tmp_path):
    with gets._locked(tmp_path), pytest.raises(UsageError, match="Another process"):
        get(benchmark("pope"), tmp_path, **pope)


KILLED = """
import json, sys
from sparsezip.measure.benchmarks import benchmark
from sparsezip.measure.data.get import get
from sparsezip.measure.data.sources import File, Part
parts = tuple(Part(folder, tuple(File(**{**file, "keep": file["keep"] and tuple(file["keep"])}) for file in files))
              for folder, files in json.loads(sys.argv[2]))
get(benchmark("pope"), __import__("pathlib").Path(sys.argv[1]), parts={"pope": parts}, schemes=("http",), patience=0.01)
print("done")
"""


def test_killed_at_any_moment_it_ends_in_the_same_files(pope, server, tmp_path):
    parts = [(part.folder, [vars(file) for file in part.files]) for part in pope["parts"]["pope"]]
    image = next(Path(name).name for name, text in benchmark("pope").example.items() if text is None)
    extra = {f"val2014/{number}.jpg": os.urandom(1 << 16) for number in range(60)}
    server.files["/val2014.zip"] = zipped(**{f"val2014/{image}": picture()}, **extra)
    get(benchmark("pope"), tmp_path / "undisturbed", **pope)
    server.pace, data = 0.005, tmp_path / "data"
    coming, fresh = data / ".get" / "val2014-files" / "val2014.zip.partial", data / ".get" / "val2014"
    moments = [
        lambda: (data / ".get").exists(),
        lambda: (data / "pope").exists(),
        lambda: coming.exists() and coming.stat().st_size > 500_000,
        lambda: coming.exists() and coming.stat().st_size > 2_000_000,
        lambda: fresh.exists(),
        lambda: False,
    ]
    kills = 0
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(data), json.dumps(parts)],
            env={**os.environ, "PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not moment() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        out = process.communicate(timeout=60)[0]
        kills += process.returncode == -signal.SIGKILL
        for folder in (part.folder for part in pope["parts"]["pope"]):  # there and whole, or not there
            assert not (data / folder).exists() or tree(data / folder) == tree(tmp_path / "undisturbed" / folder)
    assert out == "done\n"
    assert kills >= 4
    assert [asked["Range"] for asked in server.asked if "Range" in asked]
    assert tree(data) == tree(tmp_path / "undisturbed")


# -- archives at hand, the Hub, what is there ----------------------------------------------------------------------


def archive_of(name: str, path: Path, prefix="") -> Path:
    """A benchmark's example as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in benchmark(name).example.items():
            archive.writestr(prefix + file, picture() if text is None else text)
    return path


@pytest.fixture
def run(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_get_takes_archives_that_the_user_has(run, tmp_path):
    archive = archive_of("docvqa", tmp_path / "docvqa.zip")
    code, out, _ = run("data", "get", "docvqa", tmp_path / "data", "--from", archive)
    assert (code, out.splitlines()[0]) == (
        0, "docvqa: ready. 1 questions on 1 images (val 1); the published set has 5,349 questions",
    )  # fmt: skip
    assert out.splitlines()[1].strip() == f"sparsezip eval --benchmark docvqa --data {tmp_path / 'data'} --out RUN"
    before = tree(tmp_path / "data")
    code, out, _ = run("data", "get", "docvqa", tmp_path / "data")  # ready: nothing is fetched
    assert (code, tree(tmp_path / "data")) == (0, before)


def test_the_official_archives_lie_as_they_are_read(run, tmp_path):
    """DocVQA's two come with folders of their own, and DocVQA's names say another; MME's has one folder in another."""
    example = benchmark("docvqa").example
    with zipfile.ZipFile(tmp_path / "spdocvqa_qas.zip", "w") as archive:
        archive.writestr("spdocvqa_qas/val_v1.0_withQT.json", example["val_v1.0_withQT.json"])
    with tarfile.open(tmp_path / "spdocvqa_images.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("spdocvqa_images/pybv0228_81.png")
        info.size = len(picture())
        archive.addfile(info, io.BytesIO(picture()))
    archives = ["--from", tmp_path / "spdocvqa_qas.zip", "--from", tmp_path / "spdocvqa_images.tar.gz"]
    code, out, _ = run("data", "get", "docvqa", tmp_path / "data", *archives)
    assert (code, out[:14]) == (0, "docvqa: ready.")
    mme = archive_of("mme", tmp_path / "mme.zip", "MME_Benchmark_release_version/MME_Benchmark/")
    code, out, _ = run("data", "get", "mme", tmp_path / "data", "--from", mme)
    assert (code, out[:33]) == (2, "mme: incomplete. MME: the subtask")
    assert len(benchmark("mme").samples(tmp_path / "data")) == 4


def test_get_refuses_what_cannot_be_had(run, tmp_path):
    for arguments, message in (
        (["nothing"], 'There is no benchmark "nothing"'),
        (["pop"], 'Did you mean "pope"?'),
        (["scenes"], "sparsezip testbed data"),
        (["docvqa", tmp_path, "--from", "official"], "https://rrc.cvc.uab.es"),
        (["mme", tmp_path, "--from", "official"], "on request"),
        (["pope", tmp_path, "--from", "nowhere.zip"], "there is no file nowhere.zip"),
        (["pope", __file__, "--from", "official"], "cannot be written"),
    ):
        code, out, err = run("data", "get", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_get_from_the_hub_exports_there(monkeypatch, run, tmp_path):
    from sparsezip.measure import hub

    asked = []

    def export(made, folder, **_):
        asked.append((made.name, folder))
        for name, text in made.example.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture() if text is None else text.encode())

    monkeypatch.setattr(hub, "export", export)
    for name, known in (("docvqa", []), ("coco", ["--from", "hub"])):
        assert isinstance(benchmark({"coco": "coco_caption"}.get(name, name)).hub, Hub)
        code, out, _ = run("data", "get", name, tmp_path, *known)
        assert (code, out.split(":")[1].split(".")[0]) == (0, " ready")
    assert asked == [("docvqa", tmp_path / "docvqa"), ("coco_caption", tmp_path / "coco_caption")]


def test_check_says_what_is_there(run, tmp_path):
    for name in names():
        for file, text in benchmark(name).example.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture() if text is None else text.encode())
    code, out, err = run("data", "check", tmp_path)
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert err == ""
    assert [line.split(":")[0] for line in lines] == names()
    assert code == 2  # MME's example has 2 of 14 subtasks
    incomplete = [line for line in lines if "incomplete" in line]
    assert [line.split(":")[0] for line in incomplete] == ["mme"]
    assert "OCR" in incomplete[0]
    for path in (tmp_path / "mme").rglob("*"):
        path.unlink() if path.is_file() else None
    (tmp_path / "mme").rename(tmp_path / "elsewhere")
    assert run("data", "check", tmp_path)[0] == 0


def test_check_of_what_is_missing(run, tmp_path):
    folder = tmp_path / "pope"
    folder.mkdir()
    example = benchmark("pope").example
    (folder / "coco_pope_random.json").write_text(example["coco_pope_random.json"])
    code, out, _ = run("data", "check", tmp_path)
    assert code == 2
    assert out.startswith("pope: incomplete. POPE: coco_pope_popular.json is missing.")
    for name in example:
        if name.endswith(".json"):
            (folder / name).write_text(example[name])
    code, out, _ = run("data", "check", tmp_path)
    assert code == 2
    assert "1 of 1 images are missing, such as COCO_val2014_000000310196.jpg" in out
    assert f"    sparsezip data get pope {tmp_path}" in out.splitlines()
    (tmp_path / "val2014").mkdir()
    assert f"    move {folder} and {tmp_path / 'val2014'} away, then sparsezip" in run("data", "check", tmp_path)[1]


def test_check_explains_docvqas_registration(run, tmp_path):
    (tmp_path / "docvqa").mkdir()
    code, out, _ = run("data", "check", tmp_path)
    assert code == 2
    for word in ("https://rrc.cvc.uab.es", "spdocvqa_qas.zip", "spdocvqa_images.tar.gz", "--from hub"):
        assert word in out


def test_check_knows_whose_the_hubs_rows_are(run, tmp_path):
    """Rows of the Hub tell nothing of their data set: source.json does."""
    row = {"category": "random", "image_source": "COCO_1", "question_id": 1, "question": "Is it?", "answer": "yes"}
    (tmp_path / "hub.jsonl").write_text(json.dumps(row))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "COCO_1.jpg").write_bytes(picture())
    for source, expected in (({"id": benchmark("pope").hub.id}, 0), ({"id": "someone/else"}, 2), ("{", 2)):
        (tmp_path / "source.json").write_text(json.dumps(source))
        code, out, _ = run("data", "check", tmp_path)
        assert (code, [line.split(".")[0] for line in out.splitlines()[::2]]) == (
            expected, ["pope: ready"] if not expected else [],
        )  # fmt: skip


def test_check_of_an_empty_folder(run, tmp_path):
    for folder, message in ((tmp_path, "holds no benchmark"), (tmp_path / "nowhere", "There is no folder")):
        code, out, err = run("data", "check", folder)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
