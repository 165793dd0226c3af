"""One session in several threads, after its end, and on both sides of a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.runtimes import Session, Stream, load, open_session
from edgeattn.runtimes.step import EngineStep, HostStep
from edgeattn.spec import GraphSpec
from tests.runtimes.test_selftest import make_bundle
from tests.runtimes.test_streams import cut, listen, noise, tiny_stream_spec
from tests.runtimes.tiny import ENGINES, NumpyStep, numpy_step, tiny_spec, tiny_weights

Files = Callable[[str], Path]
Arrays = dict[str, np.ndarray]
T = TypeVar("T")


def some_inputs(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in tiny_spec().graphs[0].all_inputs}


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """What ``work`` gives in as many threads at once, by their number; an error in one is raised here."""
    ready = threading.Barrier(count)

    def begin(number: int) -> T:
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """Threads take turns a hundred times as often as they do by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def wrong_calls(session: Session, number: int, graph: str | None = None, calls: int = 200) -> int:
    given = [some_inputs(100 * number + index) for index in range(10)]
    expected = [numpy_step(tiny_weights(), inputs) for inputs in given]
    wrong = 0
    for call in range(calls):
        results = session.run(given[call % 10], graph)
        wrong += any(np.abs(results[name] - array).max() > 1e-4 for name, array in expected[call % 10].items())
    return wrong


@pytest.mark.parametrize(("threads", "calls"), [(2, 1_000), (5, 200)])
def test_every_thread_gets_the_answer_to_its_own_inputs(session: Session, threads: int, calls: int) -> None:
    assert in_threads(threads, lambda number: wrong_calls(session, number, None, calls)) == [0] * threads


@pytest.mark.parametrize("backend", ENGINES)
def test_threads_on_two_graphs_of_one_file_get_their_own_answers(backend: str, tiny_file: Files) -> None:
    spec, file = tiny_spec(), tiny_file(backend)
    both = replace(spec, graphs=(spec.graphs[0], replace(spec.graphs[0], name="second")))
    with open_session(backend, {"main": file, "second": file}, both) as session:
        wrong = in_threads(4, lambda number: wrong_calls(session, number, ("main", "second")[number % 2]))
    assert wrong == [0] * 4


def test_a_stream_in_each_thread_says_what_it_says_alone(session: Session) -> None:
    recordings = [noise(12_000, seed) * (1.0, 0.01, 0.3, 0.1)[seed] for seed in range(4)]
    alone = [listen(Stream(NumpyStep.new(), tiny_stream_spec()), cut(samples, [64])) for samples in recordings]
    streams = [session.stream() for _ in recordings]
    together = in_threads(4, lambda number: listen(streams[number], cut(recordings[number], [64])))
    assert together == alone
    assert len(set(alone)) > 1


def test_threads_with_a_stream_each_and_calls_beside_them_keep_apart(session: Session) -> None:
    samples = noise(8_000)
    alone = listen(session.stream(), cut(samples, [100]))

    def work(number: int) -> Any:
        return wrong_calls(session, number) if number % 2 else listen(session.stream(), cut(samples, [100]))

    assert in_threads(4, work) == [alone, 0, alone, 0]


def test_threads_that_share_a_stream_take_turns(session: Session) -> None:
    packet = noise(100)
    expected = listen(session.stream(), [packet] * 200)
    stream = session.stream()
    heard = in_threads(4, lambda _: [event for _ in range(50) for event in stream.push(packet)])
    events = sorted((e for events in heard for e in events), key=lambda e: (e.time, e.kind == "final"))
    assert (*events, *stream.flush()) == expected


def test_threads_beyond_the_limit_wait_for_a_step(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    made, new_step = [], session.new_step

    def counted(graph: GraphSpec) -> EngineStep:
        made.append(graph.name)
        return new_step(graph)

    monkeypatch.setattr(session, "new_step", counted)
    session.parallel_runs = 2
    assert sum(in_threads(8, lambda number: wrong_calls(session, number))) == 0
    assert 1 <= len(made) <= 2


def test_onnxruntime_runs_as_many_at_once_as_there_are_processors(tiny_file: Files) -> None:
    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec()) as session:
        assert session.parallel_runs == len(os.sched_getaffinity(0))


class SlowStep(HostStep):
    """A step whose run ends when told."""

    def __init__(self) -> None:
        super().__init__(tiny_spec().graphs[0])
        self.began, self.end, self.freed = threading.Event(), threading.Event(), False

    def infer(self) -> None:
        self.began.set()
        assert self.end.wait(20)
        assert not self.freed

    def free(self) -> None:
        self.freed = True


def test_a_step_that_another_thread_runs_is_refused_and_not_shared() -> None:
    step = SlowStep()
    thread = threading.Thread(target=step.run)
    thread.start()
    step.began.wait(20)
    calls: list[Callable[[], object]] = [step.run, step.reset, step.states, lambda: step.set_states({})]
    for call in calls:
        with pytest.raises(InputError, match=r"being run by another thread; .*session\.step\(\)"):
            call()
    step.end.set()
    thread.join()
    step.run()  # free again


def test_closing_waits_for_the_run_that_is_going_on(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowStep()
    monkeypatch.setattr(session, "new_step", lambda _: slow)
    step = session.step()
    running = threading.Thread(target=step.run)
    running.start()
    slow.began.wait(20)
    closing = threading.Thread(target=session.close)
    closing.start()
    closing.join(0.05)
    before = (closing.is_alive(), slow.freed)
    slow.end.set()
    closing.join(20)
    running.join(20)
    assert before == (True, False)
    assert (closing.is_alive(), slow.freed) == (False, True)


@pytest.mark.parametrize("backend", ENGINES)
def test_threads_that_meet_a_closed_session_are_told_so(backend: str, tiny_file: Files) -> None:
    session = open_session(backend, {"main": tiny_file(backend)}, tiny_spec())
    inputs, runs = some_inputs(1), threading.Semaphore(0)

    def work(number: int) -> str:
        if number == 0:
            for _ in range(60):
                assert runs.acquire(timeout=60)
            session.close()
            return ""
        try:
            while True:
                session.run(inputs)
                runs.release()
        except InputError as error:
            return str(error)

    told = in_threads(4, work)
    assert all("this session is closed; load the bundle again" in text for text in told[1:])


@pytest.mark.parametrize("backend", ENGINES)
def test_everything_after_close_is_one_clear_error(backend: str, tiny_file: Files) -> None:
    session = open_session(backend, {"main": tiny_file(backend)}, tiny_spec())
    step, stream, inputs = session.step(), session.stream(), some_inputs(1)
    session.run(inputs)
    session.close()
    calls: list[Callable[[], object]] = [
        lambda: session.run(inputs), session.step, session.stream, session.executed, lambda: session.layers(inputs, 1),
        step.run, step.reset, step.states, lambda: step.set_states(inputs),
        lambda: stream.push(noise(10)), lambda: stream.push(noise(900)), stream.flush, stream.reset,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match="this session is closed; load the bundle again"):
            call()
    session.close()


def test_a_run_that_failed_leaves_the_session_usable(tiny_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(SlowStep):
        def infer(self) -> None:
            raise UnsupportedError("no")

    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec()) as session:
        session.parallel_runs = 1
        monkeypatch.setattr(session, "new_step", lambda _: Failing())
        for _ in range(3):
            with pytest.raises(UnsupportedError, match="no"):
                session.run(some_inputs(0))
        monkeypatch.undo()
        assert wrong_calls(session, 0) == 0


FORKED = """
import os, sys, numpy as np
import edgeattn.runtimes
from edgeattn.errors import InputError
session = edgeattn.runtimes.load(sys.argv[1], threads=2)
inputs = {t.name: np.zeros(t.shape, t.dtype) for t in session.spec.graphs[0].all_inputs}
step, stream = session.step(), session.stream()
session.run(inputs)
child = os.fork()
if child == 0:
    calls = (lambda: session.run(inputs), session.step, session.stream, session.executed, step.run, step.states,
             lambda: stream.push(np.zeros(9, np.float32)), stream.flush)
    for call in calls:
        try:
            call()
        except InputError as error:
            assert "before this process was forked" in str(error) and '"spawn"' in str(error), error
        else:
            raise AssertionError("no error")
    session.close()
    del session, step, stream, calls
    sys.exit(7)  # destructors and atexit run
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
session.executed()  # reads the files again on some engines: a zip's are still there
session.run(inputs)
session.close()
print("whole")
"""


@pytest.mark.parametrize("backend", ENGINES)
def test_a_session_from_before_a_fork_is_refused_in_the_child_and_whole_in_the_parent(
    backend: str, tiny_file: Files, tmp_path: Path
) -> None:
    from edgeattn.bundle import zip_bundle

    archive = zip_bundle(make_bundle(tmp_path, backend, tiny_file(backend)), tmp_path / "tiny.zip")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # ONNX Runtime's thread of telemetry would hang the exit of any child.
    environment = os.environ | {"TMPDIR": str(scratch), "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(archive)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "whole"
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, 2.0], [3.0]], r"numpy cannot make one of the list given"),
        (None, "must be float32, got NoneType"),
        ("words", "must be float32, got str"),
        ({1.0}, "must be float32, got set"),
        (np.zeros((1, 5, 6), complex), "must be float32, got complex128"),
        (np.zeros((1, 5, 6), bool), "must be float32, got bool"),
        (np.zeros((1, 5, 6), object), "must be float32, got object"),
        (np.zeros((1, 5, 6), "U3"), "must be float32, got <U3"),
        (np.zeros((1, 5, 6), np.float64), "must be float32, got float64"),
        (np.float32(1.0), r"must have shape \(1, 5, 6\), got \(\)"),
        (np.ma.masked_array(np.zeros((1, 5, 6), np.float32), mask=True), "is a masked array.*filled"),
        (np.ma.masked_array(np.zeros((1, 5, 6), np.float32)), "is a masked array.*filled"),
    ],
    ids=str,
)
def test_what_is_no_array_of_the_input_is_refused_by_name(session: Session, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"'feats'.*{message}"):
        session.run(some_inputs(0) | {"feats": value})


def test_an_object_that_fails_to_become_an_array_is_refused_by_name(session: Session) -> None:
    class Tensor:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise RuntimeError("call detach() first")

    tensor: Any = Tensor()
    with pytest.raises(InputError, match=r"'feats'.*the Tensor given \(call detach\(\) first\)"):
        session.run({**some_inputs(0), "feats": tensor})


@pytest.mark.parametrize("inputs", [None, [1, 2], np.zeros(3)], ids=str)
def test_inputs_that_are_no_mapping_are_refused(session: Session, inputs: Any) -> None:
    with pytest.raises(InputError, match="takes a mapping of names to arrays"):
        session.run(inputs)
    with pytest.raises(InputError, match="has no input 5"):
        session.run({5: inputs})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(">f4"),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[:, ::-1].copy()[:, ::-1],
        lambda x: np.broadcast_to(x, x.shape),
        lambda x: x.view(np.recarray),
    ],
    ids=["big-endian", "fortran", "strided", "backwards", "read-only", "subclass"],
)
def test_arrays_of_any_layout_give_the_right_result(session: Session, change: Callable[[np.ndarray], Any]) -> None:
    inputs = some_inputs(3)
    given = {name: change(array) for name, array in inputs.items()}
    for name, array in numpy_step(tiny_weights(), inputs).items():
        np.testing.assert_allclose(session.run(given)[name], array, atol=1e-5)


def test_half_precision_is_widened_exactly(session: Session) -> None:
    half = {name: array.astype(np.float16) for name, array in some_inputs(3).items()}
    wide = {name: array.astype(np.float32) for name, array in half.items()}
    for name, array in session.run(half).items():
        np.testing.assert_array_equal(session.run(wide)[name], array)


def test_buffers_of_a_step_cannot_be_exchanged(session: Session) -> None:
    step = session.step()
    buffers: Any = step.inputs
    with pytest.raises(TypeError, match="item assignment"):
        buffers["feats"] = np.zeros((1, 5, 6), np.float32)  # the engine would read memory that nobody owns


def checked(backend: str, tiny_file: Files, tmp_path: Path) -> Session:
    return load(make_bundle(tmp_path, backend, tiny_file(backend)), check_finite=True)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_input_that_is_not(backend: str, value: float, tiny_file: Files, tmp_path: Path) -> None:
    with checked(backend, tiny_file, tmp_path) as session:
        inputs = some_inputs(0)
        session.run(inputs)
        inputs["key_cache"][0, 2, 1] = value
        with pytest.raises(InputError, match=rf"graph 'main': input 'key_cache' holds {value} at \[0, 2, 1\]"):
            session.run(inputs)
        step = session.step()
        step.run()
        step.inputs["feats"][0, 3, 2] = value
        with pytest.raises(InputError, match=rf"graph 'main', step 1: input 'feats' holds {value} at \[0, 3, 2\]"):
            step.run()
        step.reset()
        step.inputs["feats"].fill(0)
        step.set_states({name: np.full((1, 4, 6), value, np.float32) for name in step.states()})
        with pytest.raises(InputError, match=f"step 0: input 'value_cache' holds {value}"):
            step.run()


@pytest.mark.parametrize("backend", ENGINES)
def test_check_finite_names_the_output_that_overflowed(backend: str, tiny_file: Files, tmp_path: Path) -> None:
    with checked(backend, tiny_file, tmp_path) as session:
        inputs: Mapping[str, np.ndarray] = {n: np.full_like(a, 3e38) for n, a in some_inputs(0).items()}
        with pytest.raises(
            UnsupportedError, match=r"graph 'main': output '.*' holds .* although its inputs are finite"
        ):
            session.run(inputs)


def test_without_check_finite_nothing_is_looked_at(session: Session) -> None:
    inputs = some_inputs(0)
    inputs["feats"].fill(np.nan)
    session.run(inputs)
