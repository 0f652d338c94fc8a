"""A search's log is read as far as it goes, and becomes a movie and a page."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_tools import TINY, Page, lines_of, probs_of, search_folder, write_lines

from proxylessnas import report
from proxylessnas.errors import DataError, ProxylessError
from proxylessnas.report.compare import _verdict
from proxylessnas.report.draw_search import spread


@pytest.fixture(autouse=True)
def _matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search_folder(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """The report of a finished search with another one to compare with."""
    other = search_folder(folder.parent / "chance", algorithm="random", table=False, seed=7)
    file = folder.parent / "report.html"
    assert report.write_report(folder, file, compare=[other]) == []
    return Page(file)


# ---- the log


def test_a_run(folder: Path) -> None:
    run = report.read_run(folder)
    assert run == report.read_run(folder / "search.jsonl")
    assert (run.space, run.target, run.notes) == (TINY, ("latency", 0.8, "ms"), ())
    assert [m.step for m in run.snapshots] == [
        *range(10, 101, 10),
        100,
        *range(110, 201, 10),
        200,
        *range(210, 301, 10),
        300,
    ]
    assert run.blocks == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert run.tokens(run.snapshots[-1].choices) == ["k3e2"] * 6
    assert [m.probs[0][0] for m in run.snapshots][-1] == probs_of(TINY, 30)[0][0]


def test_a_log_that_was_cut_off(folder: Path, tmp_path: Path) -> None:
    """After any byte: a run of what there is, with notes, or one clear error."""
    whole = (folder / "search.jsonl").read_bytes()
    first = whole.index(b"\n")
    told = 0
    for end in [0, 1, first - 1, first, first + 1, *random.Random(0).sample(range(first, len(whole)), 12)]:
        (tmp_path / "search.jsonl").write_bytes(whole[:end])
        if end < first:
            with pytest.raises(DataError, match="does not begin as the log of a search does"):
                report.read_run(tmp_path)
            continue
        run = report.read_run(tmp_path)
        assert "the search has not ended, or its log was cut off: this is what there is" in run.notes
        told += any("is incomplete and left out" in note for note in run.notes)
        assert run.done is None
    assert told > 8


ODD: list[Any] = [None, True, -1, 1e999, float("nan"), 10**400, "x", [], [1], {}, {"latency": "x"}, [[2.0]]]


@pytest.mark.parametrize("pages", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_lines_that_make_no_sense(tmp_path: Path, pages: int) -> None:
    """Whatever a field holds, nothing but the package's own errors comes out, and mostly a page."""
    rng = random.Random(pages)
    lines = lines_of(steps=10)
    sound = 0
    for _ in range(max(30, pages)):
        odd = json.loads(json.dumps(lines))
        for row in (odd[0], rng.choice(odd), odd[-1]):
            row[rng.choice(list(row))] = rng.choice(ODD)
        write_lines(tmp_path, odd)
        try:
            run = report.read_run(tmp_path)
        except DataError as e:
            message = str(e)
        else:
            sound, message = sound + 1, ""
            assert all(0 <= p <= 1 for m in run.snapshots for row in m.probs for p in row)
            if sound <= pages:  # drawing takes its time
                report.write_report(tmp_path, tmp_path / "report.html")
                Page(tmp_path / "report.html")
        assert message == "" or (str(tmp_path) in message and "\n" not in message)
    assert sound > 10


def test_damaged_lines_are_counted(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "search.jsonl").read_text().splitlines()
    lines[3], lines[5] = "rubbish", "[1, 2]"
    lines[7] = json.dumps({**json.loads(lines[7]), "probs": [[1.0]]})
    (tmp_path / "search.jsonl").write_text("\n".join(lines))
    notes = report.read_run(tmp_path).notes
    assert notes == (
        "2 damaged lines of search.jsonl are left out",
        "1 line of search.jsonl not fitting the space is left out",
    )


# ---- the movie


def test_a_movie(folder: Path, tmp_path: Path) -> None:
    run = report.read_run(folder)
    assert report.write_movie(run, tmp_path / "a.gif", frames=4, seconds=1.0) == 4
    with Image.open(tmp_path / "a.gif") as movie:
        assert movie.n_frames == 4
        assert movie.info["loop"] == 0
        seen, pauses = [], []
        for i in range(4):
            movie.seek(i)
            seen.append(movie.convert("RGB").tobytes())
            pauses.append(movie.info["duration"])
    assert len(set(seen)) == 4
    assert pauses == [250, 250, 250, 3000]
    assert (tmp_path / "a.gif").stat().st_size < 200_000


def test_frames_are_spread_over_the_search(folder: Path) -> None:
    snapshots = report.read_run(folder).snapshots
    shown = spread(snapshots, 5)
    assert (len(shown), shown[0], shown[-1]) == (5, snapshots[0], snapshots[-1])
    assert spread(snapshots[:3], 5) == list(snapshots[:3])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")
def test_a_movie_as_mp4(folder: Path, tmp_path: Path) -> None:
    report.write_movie(report.read_run(folder), tmp_path / "a.mp4", frames=3)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_movies_that_cannot_be_made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = report.read_run(folder)
    with pytest.raises(DataError, match=r"a movie's suffix is \.gif or \.mp4"):
        report.write_movie(run, tmp_path / "a.avi")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProxylessError, match="needs the program ffmpeg, which is not installed"):
        report.write_movie(run, tmp_path / "a.mp4")
    warm = report.read_run(write_lines(tmp_path / "warm", lines_of(done=False)[:1]))
    for write, name in ((report.write_movie, "a.gif"), (report.write_movie_page, "a.html")):
        with pytest.raises(DataError, match="no arch step or epoch with probabilities yet"):
            write(warm, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["warm"]


# ---- the report


def test_what_a_report_says(page: Page) -> None:
    assert page.headings() == [
        "What was asked", "What was found", "The search, step by step", "Curves",
        "Latency: predicted and measured", "Comparison at equal cost", "Do it again", "Versions",
    ]  # fmt: skip
    for text in (
        "gradient (ProxylessNAS-G)", "8,000 models", "91.50 %", "0.78 ms",
        "+4.0 % of the prediction; the target is kept", "1:01",
        "predicted 0.750 ms, measured 0.780 ms (+4.0%), target 0.800 ms: kept",
        "half of the calls take over 0.819 ms (disturbance 1.05)",
        "1 other candidate measured above the target: 0.840 ms (predicted 0.780)",
        "at most 0.8 ms; models of the space go from 0.5 ms to 1.1 ms", 'Stage(16, 1, "k3e2 k3e2")',
        "chance used no latency table", "+0.00 points", "--data digits", "torch 2.15.0",
    ):  # fmt: skip
        assert text in page.text, text
    assert "0.0.0" not in page.text


def test_a_report_needs_nothing_else(page: Page) -> None:
    """No request, no script but the page's own, and a policy that would stop any."""
    for tag, given in page.tags:
        for name in ("src", "href", "xlink:href", "action", "poster"):
            start = "data:" if tag == "link" else "#"
            assert (given.get(name) or start).startswith(start)
    policy = next(given["content"] for _, given in page.tags if given.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")
    assert "@import" not in page.source
    assert "url(http" not in page.source
    assert len(page.source) < 400_000


def test_a_report_for_those_who_do_not_see_it(page: Page) -> None:
    """Every image says in words what it shows; tables have captions; scrolling takes keys."""
    svgs = [given for tag, given in page.tags if tag == "svg"]
    assert len(svgs) >= 9
    for given in svgs:
        assert given["role"] == "img"
        assert all(name in page.ids for name in str(given["aria-labelledby"]).split())
    assert page.source.count("<desc") == len(svgs)
    assert "from input to output: 3×3 conv to 8 channels" in page.source
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")
    assert all(given.get("tabindex") == "0" for tag, given in page.tags if given.get("class") == "scroll")
    assert ("html", {"lang": "en"}) in page.tags
    assert {"header", "main", "footer", "h1"} <= set(tags)


def contrast(a: str, b: str) -> float:
    """Return the contrast of two colours (WCAG 2.1)."""

    def light(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_read(page: Page, dark: bool) -> None:
    """AA: 4.5 for texts on every ground that they stand on."""
    style = page.source.split(":root {")[2 if dark else 1].split("}")[0]
    colors = dict(pair.strip().split(": ") for pair in style.replace("--", "").split(";") if "#" in pair)
    for ink in ("ink", "soft", "accent", "blue", "orange", "green"):
        for ground in ("page", "card"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    assert contrast(colors["warn"], colors["warn-tint"]) >= 4.5
    assert contrast(colors["card"], colors["accent"]) >= 4.5


def test_names_are_not_taken_for_markup(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
    lines = lines_of(
        data=bad, algorithm=bad, versions={bad: bad}, targets={bad: 0.8}, units={bad: bad}, steps=3
    )
    folder = write_lines(tmp_path / "<b>'\"", lines)
    report.write_report(folder, tmp_path / "a.html")
    page = Page(tmp_path / "a.html")
    assert [tag for tag, _ in page.tags].count("script") == 2  # the data, and the page's own
    assert not any("onerror" in given or tag == "img" for tag, given in page.tags)
    assert "</script><script>alert(1)" in page.text


def test_names_that_no_figure_could_draw(tmp_path: Path) -> None:
    """Half a character, and what looks like mathematics: on a page and in a movie."""
    bad = "$x_{ \ud800 \x07"
    lines = lines_of(data=bad, algorithm=bad, targets={bad: 0.8}, units={bad: bad}, steps=3)
    folder = write_lines(tmp_path / "$x_{", lines)
    report.write_report(folder, tmp_path / "a.html", compare=[folder])
    assert "$x_{ ? \ufffd" in Page(tmp_path / "a.html").text
    assert report.write_movie(report.read_run(folder), tmp_path / "a.gif", frames=2) == 2


def test_a_search_that_has_not_ended(tmp_path: Path) -> None:
    """In its warm-up, and after an epoch: a page of what there is."""
    lines = lines_of(done=False, table="0" * 64)
    for count, texts in (
        (1, ["No arch step and no epoch of the search proper has been logged yet"]),
        (
            12,
            [
                "70.00 % on the held-out images",
                "not yet: the model is measured when the search ends",
                "this is the model that was derived, within the target, after epoch",
                "The search, step by step",
            ],
        ),
    ):
        write_lines(tmp_path, lines[:count])
        notes = report.write_report(tmp_path, tmp_path / "a.html")
        page = Page(tmp_path / "a.html")
        assert "the search has not ended, or its log was cut off: this is what there is" in notes
        assert all(text in page.text for text in (*texts, *notes))


def test_a_damaged_table_is_left_out(tmp_path: Path) -> None:
    search_folder(tmp_path / "run", steps=0)
    (tmp_path / "run" / "table.json").write_text("{")
    (note,) = report.write_report(tmp_path / "run", tmp_path / "a.html")
    assert note.startswith("the latency table is left out")
    assert "0.78 ms" in Page(tmp_path / "a.html").text


def test_latencies_of_other_tables_are_not_compared(folder: Path, tmp_path: Path) -> None:
    """Nor are files named that are not there."""
    lines = lines_of(table="1" * 64)
    other = write_lines(tmp_path / "other", lines)
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    (mine / "child.safetensors").unlink()
    notes = report.write_report(mine, tmp_path / "a.html", compare=[other])
    assert "not in the folder any more: child.safetensors" in notes
    text = Page(tmp_path / "a.html").text
    assert "+0.00 points, by multiply-accumulates" in text, "that can be compared"
    assert "other is of another latency table: its latencies are of other conditions, and" in text
    assert "Accuracy against multiply-accumulates" in text, "and drawn"
    assert "proxylessnas finetune" not in text
    assert f"proxylessnas report {mine} --compare {other} -o {tmp_path / 'a.html'}" in text
    report.write_report(other, tmp_path / "b.html")
    assert "the search cannot be run again as it was: space.toml" in Page(tmp_path / "b.html").text


def test_baselines_evaluate_models(tmp_path: Path) -> None:
    lines = lines_of(steps=0, algorithm="random", done=False)
    for i in range(1, 7):
        row = {
            "event": "judged",
            "step": i,
            "number": i,
            "top1": 50.0 + i,
            "best": 50.0 + i,
            "picks": [i % 4] * 6,
        }
        lines.append({**row, "costs": {"latency": 0.6 + 0.05 * i}})
    report.write_report(write_lines(tmp_path, lines), tmp_path / "a.html")
    page = Page(tmp_path / "a.html")
    assert "random models (baseline)" in page.text
    assert "evaluated, 4 keep to its target: from 51.00 to 54.00 %" in page.text
    assert "step by step" not in page.text


def test_what_has_no_report(folder: Path, tmp_path: Path) -> None:
    for run, message in (
        (tmp_path / "absent", "no such folder"),
        (folder / "search.jsonl", "is no folder of a run"),
        (tmp_path, "holds no run; expected is search.jsonl of a search, or epochs.csv"),
    ):
        with pytest.raises(DataError, match=message):
            report.write_report(run, tmp_path / "a.html")
    with pytest.raises(OSError, match="nowhere"):
        report.write_report(write_lines(tmp_path / "run", lines_of(steps=1)), tmp_path / "nowhere" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("changes", "result", "verdict"),
    [
        ({}, {}, "+0.00 points"),
        ({}, {"top1_held_out": 93.0}, "+1.50 points"),
        ({}, {"costs": {"latency": 0.9}}, "costs +20%: not equal"),
        ({"table": "1" * 64}, {"top1_held_out": 90.0}, "-1.50 points, by multiply-accumulates"),
        (
            {"table": "1" * 64},
            {"costs": {"latency": 0.75, "macs": 2.1}},
            "costs +50%, by multiply-accumulates: not equal",
        ),
        ({"table": "1" * 64}, {"costs": {"latency": 0.75, "params": 0.03}}, "+0.00 points, by parameters"),
        ({"table": "1" * 64}, {"costs": {"latency": 0.75}}, "another table"),
        ({}, {"costs": {"macs": 1.4}}, "+0.00 points, by multiply-accumulates"),
        ({}, {"costs": {}}, "not known"),
        ({"data": "photos"}, {"costs": {"latency": 0.9}}, "other images; costs +20%"),
        ({"data": "photos", "table": "1" * 64}, {}, "other images; costs +0%, by multiply-accumulates"),
    ],
)
def test_runs_are_compared_by_what_can_be(
    changes: dict[str, Any], result: dict[str, Any], verdict: str, tmp_path: Path
) -> None:
    mine = report.read_run(write_lines(tmp_path / "mine", lines_of(table="0" * 64)))
    lines = lines_of(**{"table": "0" * 64, **changes})
    lines[-1] |= result
    other = report.read_run(write_lines(tmp_path / "other", lines))
    assert _verdict(mine, other, "latency") == verdict
