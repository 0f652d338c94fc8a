"""The model a search ends with is measured beside a reference; one that is too slow gives way to the next."""

from __future__ import annotations

import itertools
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulated_machine
import torch
from cli_tools import runner
from latency_table_tools import SPACE, every_model
from report_tools import Page
from search_tools import SHORT
from simulated_machine import OFFSET_MS, SimulatedWorker, simulated, true_model_ms
from train_tools import in_two_processes, noise_folder

from proxylessnas import create_model, report
from proxylessnas.arch.space import SearchSpace
from proxylessnas.latency import Conditions, LatencyTable, OpKey, session, space_keys
from proxylessnas.latency.table import Entry
from proxylessnas.search import SearchResult, search
from proxylessnas.search import evaluate as winner
from proxylessnas.search.baselines import Evaluated
from proxylessnas.search.evaluate import CANDIDATES, Measured, SubnetEvaluator, choose
from proxylessnas.search.logger import describe_latency
from proxylessnas.search.searcher import Searcher
from proxylessnas.search.setup import SearchSetup
from proxylessnas.train import Settings
from proxylessnas.utils.distributed import Processes

HERE = SPACE.replace(stem_stride=1, resolution=8, num_classes=10)
EXACT = {"placement": 0.0, "speeds": 0.0}  # a machine on which every loading is like the other
RECIPE = SHORT.replace(target_macs_m=None, arch_init=0.5)


_known_ms = simulated_machine.true_ms


def true_ms(key: OpKey) -> float:
    """Return what an operation takes on the machine of these tests: the candidates make the difference."""
    return (10 if str(key).startswith("k") else 1) * _known_ms(key)


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    be_device(monkeypatch)


def be_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(simulated_machine, "true_ms", true_ms)
    patch.setattr(winner, "_SECONDS", 5.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("pictures") / "data")


def predicting(
    share: Callable[[Any], float], reference: float | None = 1.0, space: SearchSpace = HERE, **changes: Any
) -> LatencyTable:
    """Return a table of the simulated machine.

    Args:
        share: what the table knows of an operation's true latency, by its key.
        reference: what the reference took when the table was made, as a share of what it takes.
        space: of the table.
    """
    entries = {key: Entry(share(key) * true_ms(key)) for key in space_keys(space)}
    model = space.arch(every_model(space)[0])
    method = (
        {}
        if reference is None
        else {"reference": {"net": str(model), "ms": reference * true_model_ms(model)}}
    )
    conditions = Conditions(**{"device_name": "simulated", "versions": {"torch": "9"}, **changes})
    return LatencyTable(conditions, entries, space=space, offset_ms=OFFSET_MS, method=method)


def middle(table: LatencyTable, share: float = 0.9) -> float:
    low, high = table.range_ms()
    return low + share * (high - low)


def evaluator_of(data: Path, table: LatencyTable, out: Path, **changes: Any) -> SubnetEvaluator:
    recipe = RECIPE.replace(**{"target_ms": middle(table), **changes})
    setup = SearchSetup(HERE, str(data), recipe, table, True)
    settings = Settings(out, device="cpu", workers=0, console=False)
    return Searcher(setup, settings, Processes(0, 1, torch.device("cpu"))).evaluator


def true_of(tried: Measured) -> float:
    return true_model_ms(HERE.arch(tried.choices))


def rightly_chosen(choices: list[int], tried: list[Measured], target: float) -> None:
    """Check that the candidates followed each other as they should; the chosen one is the last of them."""
    assert tried[-1].choices == tuple(choices)
    assert len({t.choices for t in tried}) == len(tried) <= CANDIDATES
    for t in tried:
        assert t.timing is not None
        assert t.ms == pytest.approx(true_of(t), rel=0.005)
    for before, after in itertools.pairwise(tried):
        assert before.ms is not None
        assert before.ms > target
        assert after.predicted_ms <= 0.995 * target * before.predicted_ms / before.ms + 1e-9
        assert after.predicted_ms < before.predicted_ms


def test_one_that_keeps_to_the_target_is_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = simulated(monkeypatch, disturbed=0.5, **EXACT)
    table = predicting(lambda key: 1.0)
    evaluator = evaluator_of(data, table, tmp_path)
    choices, (only,) = choose(evaluator)
    assert (choices, list(only.choices)) == (evaluator.derived(), evaluator.derived())
    assert only.predicted_ms == pytest.approx(true_of(only))
    assert only.ms == pytest.approx(true_of(only), rel=0.02)
    assert only.reference_ratio == pytest.approx(1.0, abs=0.02)
    # The reference takes turns with it, in two processes.
    assert machine.windows["reference"] == machine.windows["model"] >= 50
    assert machine.loads["reference"] == machine.loads["model"] == 2


def test_one_that_is_too_slow_gives_way(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table knows 80 % of every operation: by the first measurement that is known of the second, too."""
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 0.8)
    evaluator = evaluator_of(data, table, tmp_path)
    target = middle(table)
    choices, tried = choose(evaluator)
    assert [t.choices for t in tried][:1] == [tuple(evaluator.derived())]
    assert len(tried) >= 2
    rightly_chosen(choices, tried, target)
    assert tried[-1].ms is not None
    assert tried[-1].ms <= target


@pytest.mark.parametrize("seed", range(4))
def test_a_table_that_errs_now_here_now_there(
    seed: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: random.Random(f"{seed} {key}").uniform(0.5, 1.1))
    evaluator = evaluator_of(data, table, tmp_path, seed=seed)
    target = middle(table)
    choices, tried = choose(evaluator)
    true = [true_of(t) for t in tried]
    if true[-1] <= target:
        rightly_chosen(choices, tried, target)
    else:  # nothing did: the fastest
        assert true[-1] == min(true)


def test_after_five_candidates_the_fastest_is_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine on which every model takes the same: 0.4 ms, which is 2.6 % over the target."""
    rng = random.Random(0)
    table = predicting(
        lambda key: (rng.uniform(0.03, 0.12) if str(key).startswith("k") else 0.005) / true_ms(key),
        reference=None,
    )
    table = LatencyTable(table.conditions, table.entries, space=HERE)
    monkeypatch.setattr(simulated_machine, "true_ms", lambda key: 0.0)
    simulated(monkeypatch, **EXACT)
    evaluator = evaluator_of(data, table, tmp_path, target_ms=0.39)
    choices, tried = choose(evaluator)
    assert len(tried) == CANDIDATES == 5
    assert all(t.ms == pytest.approx(OFFSET_MS, rel=0.002) for t in tried)
    assert tried[-1].ms == min(t.ms for t in tried if t.ms is not None)
    assert tuple(choices) == tried[-1].choices


def test_where_nothing_keeps_to_the_target_the_fastest_is_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the cheapest model takes longer than the target: it comes nearest."""
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 0.05)
    table = LatencyTable(table.conditions, table.entries, space=HERE)
    evaluator = evaluator_of(data, table, tmp_path)
    choices, tried = choose(evaluator)
    assert true_of(tried[-1]) == min(true_model_ms(HERE.arch(n)) for n in every_model(HERE)) > middle(table)
    assert tuple(choices) == tried[-1].choices


@pytest.mark.parametrize("algorithm", ["random", "evolution"])
def test_of_the_models_that_were_evaluated_the_next_best(
    algorithm: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 0.75)
    evaluator = evaluator_of(data, table, tmp_path, algorithm=algorithm, population=2)
    target = middle(table)
    models = [n for n in every_model(HERE) if table.predict(HERE.arch(n)) <= target]
    models.sort(key=lambda n: true_model_ms(HERE.arch(n)))
    keeps, slow, slower = models[0], models[-2], models[-1]
    assert true_model_ms(HERE.arch(slow)) > target > true_model_ms(HERE.arch(keeps))
    for model, top1 in ((keeps, 40.0), (slower, 70.0), (slow, 60.0)):
        evaluator.evaluated.append(Evaluated(model, top1, (table.predict(HERE.arch(model)),)))
    choices, tried = choose(evaluator)
    assert [t.choices for t in tried] == [
        slower,
        keeps,
    ]  # by the first one it is known that `slow` is too slow
    assert tuple(choices) == keeps
    del evaluator.evaluated[0]
    choices, tried = choose(evaluator)
    assert [t.choices for t in tried] == [slower]  # no other was evaluated that could keep to the target
    assert tuple(choices) == slower


def test_of_the_models_evaluated_at_the_end_the_next_best_and_then_the_most_probable(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 0.75)
    evaluator = evaluator_of(data, table, tmp_path, final_candidates=3)
    target = middle(table)
    models = [n for n in every_model(HERE) if table.predict(HERE.arch(n)) <= target]
    models.sort(key=lambda n: true_model_ms(HERE.arch(n)))
    keeps, slower = models[0], models[-1]
    for model, top1 in ((keeps, 40.0), (slower, 70.0)):
        evaluator.evaluated.append(Evaluated(model, top1, (table.predict(HERE.arch(model)),), 1.0))
    choices, tried = choose(evaluator)
    assert [t.choices for t in tried] == [slower, keeps]
    del evaluator.evaluated[0]
    choices, tried = choose(evaluator)
    assert tried[0].choices == slower
    rightly_chosen(choices, tried, target)
    assert len(tried) >= 2  # the others are the most probable ones that are predicted to be fast enough


def test_a_target_that_is_no_latency(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is measured once, and stays, whatever it takes."""
    simulated(monkeypatch, **EXACT)
    evaluator = evaluator_of(data, predicting(lambda key: 0.5), tmp_path, target_ms=None, target_macs_m=0.1)
    choices, (only,) = choose(evaluator)
    assert list(only.choices) == choices == evaluator.derived()
    assert only.ms == pytest.approx(true_of(only), rel=0.005)
    assert only.ms > 1.2 * only.predicted_ms


def test_a_machine_that_is_slower_than_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference takes 1.25 times as long as when the table was made, and so does everything."""
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 1 / 1.25, reference=1 / 1.25)
    table = LatencyTable(
        table.conditions, table.entries, space=HERE, offset_ms=OFFSET_MS / 1.25, method=table.method
    )
    evaluator = evaluator_of(data, table, tmp_path)
    _, (only,) = choose(evaluator)
    assert only.timing is not None
    assert only.reference_ratio == pytest.approx(1.25, rel=0.005)
    assert only.timing.undisturbed_ms == pytest.approx(true_of(only), rel=0.005)
    assert only.ms == pytest.approx(true_of(only) / 1.25, rel=0.01)
    assert only.ms == pytest.approx(only.predicted_ms, rel=0.01)
    table = predicting(lambda key: 1.0, reference=1 / 1.02)  # 2 % are nothing
    evaluator = evaluator_of(data, table, tmp_path)
    _, (only,) = choose(evaluator)
    assert only.timing is not None
    assert only.ms == only.timing.undisturbed_ms


def test_a_measurement_that_fails_loses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, **EXACT)
    evaluator = evaluator_of(data, predicting(lambda key: 0.5, device_name="another"), tmp_path)
    choices, (only,) = choose(evaluator)
    assert (choices, only.ms) == (evaluator.derived(), None)
    assert only.note == "not measured: device_name was another, is simulated"
    evaluator = evaluator_of(data, predicting(lambda key: 0.5), tmp_path)

    def no_more(*_: object) -> SimulatedWorker:
        raise OSError("no more processes")

    monkeypatch.setattr(session, "Worker", no_more)
    assert choose(evaluator)[1][0].note == "not measured: no more processes"


# ---- what is told


def finished(data: Path, out: Path, table: LatencyTable, **changes: Any) -> SearchResult:
    settings = Settings(out, device="cpu", workers=0, console=False)
    recipe = RECIPE.replace(**{"target_ms": middle(table), **changes})
    return search(HERE, data, recipe, out=settings, table=table, force=True)


def test_everything_says_what_was_predicted_and_measured(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 0.8)
    out = tmp_path / "run"
    result = finished(data, out, table)
    target, true = middle(table), true_model_ms(HERE.arch(result.choices))
    assert result.predicted_ms == pytest.approx(table.predict(HERE.arch(result.choices)))
    assert result.measured_ms == pytest.approx(true, rel=0.005)
    assert result.measured_ms <= target
    assert len(result.too_slow) >= 1
    assert all(measured > target for _, measured in result.too_slow)
    kept = json.loads((out / "result.json").read_text())
    assert (kept["predicted_ms"], kept["measured_ms"]) == (result.predicted_ms, result.measured_ms)
    assert kept["measured_raw_ms"] == kept["measured_ms"] <= kept["measured_median_ms"]
    assert kept["measured_reference_ratio"] == pytest.approx(1.0, abs=0.005)
    assert kept["measured_too_slow"] == [list(pair) for pair in result.too_slow]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    notes = [line["text"] for line in log if line["event"] == "note"]
    said = f"predicted {result.predicted_ms:.3f} ms, measured {result.measured_ms:.3f} ms"
    assert sum(said in note for note in notes) == 1
    assert any(f"target {target:.3f} ms: kept" in note for note in notes)
    assert not any("of at most" in note and note.startswith("latency") for note in notes)
    assert any("measured above the target: " in note for note in notes)
    shown = " ".join(runner(capsys, "search")("show", out).out.split())
    assert said in shown
    report.write_report(out, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert said in text
    assert "the target is kept" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_winner_is_measured_stops_the_search(
    number: signal.Signals, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, **EXACT)
    measured = winner.measure_like

    def stopped(*words: Any) -> Measured:
        signal.raise_signal(number)
        return measured(*words)

    out = tmp_path / "run"
    fit = Searcher.fit

    def stopped_before(searcher: Searcher, *words: Any) -> bool:
        done = fit(searcher, *words)
        signal.raise_signal(number)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Searcher, "fit", stopped_before)
        assert not finished(data, out, predicting(lambda key: 0.8)).finished
    with monkeypatch.context() as patch:
        patch.setattr(winner, "measure_like", stopped)
        result = finished(data, out, predicting(lambda key: 0.8))
    assert (result.finished, result.signal) == (False, number)
    assert not (out / "result.json").exists()
    assert "stopped and saved" in (out / "log.jsonl").read_text()
    assert finished(data, out, predicting(lambda key: 0.8)).finished


def test_a_finished_search_keeps_its_result(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated(monkeypatch, **EXACT)
    out, table = tmp_path / "run", predicting(lambda key: 0.8)
    result = finished(data, out, table)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    measured = winner.measure_like
    calls: list[Any] = []

    def counted(*words: Any) -> Measured:
        calls.append(words)
        return measured(*words)

    monkeypatch.setattr(winner, "measure_like", counted)
    assert finished(data, out, table) == result
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert calls == []
    said = f"note: this search is finished, and its result is kept: {result.model}\n"
    assert capsys.readouterr().err == said
    # Its end is repeated where it is not whole any more, or was reached by another version.
    assert result.model is not None
    log = before[out / "search.jsonl"].splitlines(keepends=True)
    for name, content in {
        "child.safetensors": b"x", "arch.txt": b"", "search.jsonl": b"".join(log[:-1]),
    }.items():  # fmt: skip
        (out / name).write_bytes(content)
        assert finished(data, out, table).choices == result.choices
        assert create_model(result.model).arch == result.arch
        assert json.loads((out / "search.jsonl").read_text().splitlines()[-1])["event"] == "done"
        assert (out / "arch.txt").read_bytes() == before[out / "arch.txt"]
        assert calls
        calls.clear()
    result.model.unlink()
    for other in (before[out / "result.json"].replace(b'"seed": 0', b'"seed": 1'), b"{}", b"["):
        (out / "result.json").write_bytes(other)
        assert finished(data, out, table).choices == result.choices
        assert json.loads((out / "result.json").read_text())["origin"]["seed"] == 0
        assert calls
        calls.clear()


@pytest.mark.parametrize("name", ["exp\u30001", "x" * 210, "a\nb"])
def test_a_search_may_have_any_folder(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, **EXACT)
    result = finished(data, tmp_path / name, predicting(lambda key: 0.8))
    assert result.model is not None
    assert create_model(result.model).name.isprintable()
    report.write_report(tmp_path / name, tmp_path / "report.html")


def test_over_the_target_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    simulated(monkeypatch, **EXACT)
    table = predicting(lambda key: 0.05)
    table = LatencyTable(table.conditions, table.entries, space=HERE)
    out = tmp_path / "run"
    result = finished(data, out, table)
    assert result.measured_ms is not None
    over = 100 * (result.measured_ms / middle(table) - 1)
    assert over > 50
    assert f"over by {over:.1f}%" in describe_latency(result.to_dict())[0]
    report.write_report(out, tmp_path / "report.html")
    assert f"{over:.1f} % over the target" in Page(tmp_path / "report.html").text


def test_older_results_have_less_to_tell() -> None:
    old = {"predicted_ms": 2.0, "measured_ms": 2.1, "measured_noise": ["the warm-up did not settle"]}
    assert describe_latency(old) == [
        "latency: predicted 2.000 ms, measured 2.100 ms (+5.0%)", "doubt: the warm-up did not settle",
    ]  # fmt: skip
    assert describe_latency({"predicted_ms": 2.0, "measured_note": "not measured: elsewhere"}) == [
        "latency: predicted 2.000 ms, not measured: elsewhere"
    ]
    assert describe_latency({"predicted_ms": None}) == []


# ---- several processes


def work(rank: int, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        be_device(patch)
        machine = simulated(patch, **EXACT)
        table = predicting(lambda key: 0.8)
        recipe = RECIPE.replace(target_ms=middle(table))
        setup = SearchSetup(HERE, f"{folder}/data", recipe, table, True)
        settings = Settings(Path(folder) / "run", device="cpu", workers=0, console=False)
        evaluator = Searcher(setup, settings, Processes(rank, 2, torch.device("cpu"))).evaluator
        first = evaluator.derived()
        choices, tried = choose(evaluator)
        found = {"first": first, "picks": choices, "tried": len(tried), "processes": machine.processes}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_two_processes_agree_on_the_candidate(tmp_path: Path) -> None:
    """The first one alone measures, and the other follows it."""
    noise_folder(tmp_path / "data")
    in_two_processes(work, tmp_path)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["first"] == two["first"]
    assert one["picks"] == two["picks"] != one["first"]
    assert one["tried"] >= 2
    assert (two["tried"], two["processes"]) == (0, 0)
