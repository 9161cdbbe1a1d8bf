"""Workers on Ray: the results of the local runner, whoever dies on the way. All tests share a cluster of two nodes."""

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fake_model import kept, untimed, write_data, written

from sparsezip import methods
from sparsezip.errors import DataError, SettingError, UsageError
from sparsezip.measure.evaluate import evaluate
from sparsezip.measure.records import Sample
from sparsezip.measure.runners import ray as module
from sparsezip.measure.runners.ray import Ray
from sparsezip.measure.worker import make_worker

MODEL = str(Path(__file__).with_name("ray_model.py"))
LABELS = ("keep_all", "random", "grid")
SOON = {  # a lost node is noticed after some 2 s, instead of 30
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args={**node, "_system_config": SOON})
    made.second = made.add_node(**node)
    yield made
    made.shutdown()


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def journal(tmp_path):
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def run(out, data, journal, address=None, **options):
    """Three methods on two benchmarks by one's own model; with an address by two workers there."""
    on = {"runner": "ray", "workers": 2, "address": address} if address else {}
    options = {"batch_size": 3, "journal": str(journal), **on, **options}
    return evaluate(MODEL, ["scenes", "mme"], LABELS, out, data=data, **options)


def noted(journal, what):
    """What other processes than this one have noted, each after its number."""
    lines = [json.loads(line) for line in (journal / what).read_text().splitlines()]
    return [line for line in lines if line[0] != os.getpid()]


def asked_by_worker(journal):
    """What each worker was asked, one after the other."""
    calls = noted(journal, "asked")
    return [[call[1:] for call in calls if call[0] == pid] for pid in dict.fromkeys(call[0] for call in calls)]


def when_begun(out, act):
    """Do something as soon as 12 answers of the run are there."""

    def wait():
        answers = out / "answers.jsonl"
        while not answers.exists() or answers.read_bytes().count(b"\n") < 12:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_workers_give_the_results_of_the_local_runner_and_load_the_model_once_each(cluster, data, journal, tmp_path):
    here = run(tmp_path / "here", data, journal)
    there = run(tmp_path / "there", data, journal, cluster.address)
    assert untimed(there) == untimed(here)
    assert kept(tmp_path / "there") == kept(tmp_path / "here")
    assert len(written(tmp_path / "there")) == 96
    assert len(noted(journal, "loads")) == 2
    first, second = asked_by_worker(journal)
    assert first[:6] == second[:6]  # the warm-up: three methods on two benchmarks
    jobs = {(row["batch"], row["method"]) for row in written(tmp_path / "there")}
    assert len(first[6:]) + len(second[6:]) == len(jobs)
    assert min(len(first), len(second)) > 6


def test_a_worker_that_is_killed_costs_no_answer(cluster, data, journal, tmp_path, caplog, capfd):
    run(tmp_path / "here", data, journal)
    out = tmp_path / "there"
    when_begun(out, lambda: os.kill(noted(journal, "asked")[-1][0], signal.SIGKILL))
    results = run(out, data, journal, cluster.address, pause=0.03)
    assert results["failed"] == 0
    assert kept(out) == kept(tmp_path / "here")
    assert len(written(out)) == 96
    assert "A worker was lost, because its worker process has died" in caplog.text
    assert "raylet" not in "".join(capfd.readouterr())  # nor does Ray speak between our tables


def test_questions_that_kill_three_workers_are_failures_and_the_run_completes(cluster, data, journal, tmp_path):
    run(tmp_path / "here", data, journal, limit=8, batch_size=2)
    there = run(tmp_path / "there", data, journal, cluster.address, limit=8, batch_size=2, fatal="shape is thing 4")
    failed = [row for row in kept(tmp_path / "there") if row["error"]]
    assert there["failed"] == len(failed) == 2  # a batch of the two questions on an image
    assert {(row["method"], row["image"]) for row in failed} == {("grid", "4.png")}
    assert all("3 workers were lost while they answered this" in row["error"] for row in failed)
    assert len(noted(journal, "loads")) >= 2 + 2
    warm_up, *others = (asked[:6] for asked in asked_by_worker(journal) if len(asked) > 6)
    assert others == [warm_up] * len(others)  # also of those that took a lost one's place
    sound = [row for row in kept(tmp_path / "there") if not row["error"]]
    assert sound == [row for row in kept(tmp_path / "here") if (row["method"], row["image"]) != ("grid", "4.png")]


def test_what_a_worker_raises_is_raised_here(cluster):
    make = partial(make_worker, MODEL, {}, {"pause": 1})
    with pytest.raises(UsageError, match=r"load\(\) of .*ray_model.py failed \(TypeError: .*'journal'"):
        Ray(make, 1, cluster.address).__enter__()


def test_images_that_a_worker_cannot_reach_are_told_of_at_once(cluster, journal):
    make = partial(make_worker, MODEL, {"grid": methods.method("grid")}, {"journal": str(journal)})
    lost = Sample(id="0", image=Path("no/such.png"), image_id="such.png", question="q", references=["a"], group="g")
    with Ray(make, 1, cluster.address) as workers:
        assert workers.described()["name"] == "fake"
        with pytest.raises(DataError, match=r"has no image .*/no/such.png, which .* has"):
            workers.warm_up({"scenes": [lost]}, {"scenes": 1})
    assert not (journal / "asked").exists()


def test_more_workers_than_there_is_room_for_are_refused(cluster, monkeypatch):
    import ray

    with pytest.raises(UsageError, match="3 workers were asked for, each on a CPU of its own, but there are 2 CPUs"):
        Ray(dict, 3, cluster.address).__enter__()
    assert not ray.is_initialized()
    monkeypatch.setattr(module, "PLACED_S", 1.0)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        taken = [ray.remote(lambda: time.sleep(60)).remote() for _ in range(2)]  # by somebody else
        time.sleep(0.5)
        with pytest.raises(UsageError, match="1 of 1 workers found no place within 1 s"), Ray(dict, 1, cluster.address):
            pass
        assert ray.is_initialized()  # it is not the runner's to end
        for task in taken:
            ray.cancel(task, force=True)
    finally:
        ray.shutdown()


class Page(BaseHTTPRequestHandler):
    """Some other server, as one meets it behind a wrong port."""

    def log_message(self, *_):
        pass


def test_an_address_without_a_cluster_is_refused_soon(monkeypatch):
    monkeypatch.setattr(module, "REACHED_S", 0.5)
    other = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        begun = time.monotonic()
        for port, why in (
            (closed.getsockname()[1], "Connection refused"),
            (silent.getsockname()[1], "timed out"),
            (other.server_port, "what answers is no Ray cluster"),
        ):
            with pytest.raises(UsageError, match=f"No Ray cluster answers at 127.0.0.1:{port} .*{why}"):
                Ray(dict, 1, f"127.0.0.1:{port}")
        assert time.monotonic() - begun < 5
    other.shutdown()
    other.server_close()


@pytest.mark.parametrize("address", ["here", "ray://here:1", "here:", ":6379", "here:99999"])
def test_an_address_is_host_and_port(address):
    with pytest.raises(SettingError, match="must be HOST:PORT"):
        Ray(dict, 1, address)


def test_without_ray_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(UsageError, match=r'pip install "sparsezip\[ray\]"'):
        importlib.import_module(module.__name__)


def test_a_lost_machine_costs_no_answer(cluster, data, journal, tmp_path, caplog):
    run(tmp_path / "here", data, journal)
    out = tmp_path / "there"
    when_begun(out, lambda: cluster.remove_node(cluster.second, allow_graceful=False))
    results = run(out, data, journal, cluster.address, pause=0.03)
    assert len(cluster.list_all_nodes()) == 1
    assert results["failed"] == 0
    assert kept(out) == kept(tmp_path / "here")
    assert len(written(out)) == 96
    assert "A worker was lost, because its node has died" in caplog.text
    assert len(noted(journal, "loads")) == 2  # there was no room for a third worker
