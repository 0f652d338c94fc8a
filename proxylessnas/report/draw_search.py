"""How the probabilities of a search, and with them its model, took shape: as a movie, and as a slider."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ProxylessError
from ..figures.probability_map import ProbabilityMap, map_size_in
from ..utils.files import write_atomically
from ..utils.plotting import BLUE, GREEN, GREY, ORANGE, clean_axes, finite, plot_style, require_matplotlib
from ..utils.subprocesses import find_program
from .page import Figure, Line, line_chart, word
from .runs import SearchRun, Snapshot, Target

if TYPE_CHECKING:
    from PIL import Image

_FRAMES = 60  # at most: more make the file large and tell nothing new
_LAST_S = 3.0  # that the last frame stays
_DPI = 110
_SNAPSHOTS = 160  # at most: about what a slider on a screen can tell apart
_LONG = 10  # blocks from which there is more room below the charts than below the probabilities


def write_movie(
    run: SearchRun, path: str | os.PathLike[str], *, frames: int = _FRAMES, seconds: float = 8.0
) -> int:
    """Write the movie of a search, and return its number of frames.

    Left the probability of every candidate in every block, with the most probable one marked; right the
    expected cost against the target, the accuracy of the model that would be derived, and that model in
    words.

    Args:
        run: of :func:`~proxylessnas.report.runs.read_run`.
        path: of the file: ``.gif``, or ``.mp4`` where the program ffmpeg is installed; it is replaced as a
            whole, or not at all.
        frames: at most so many, evenly spread over the search.
        seconds: that the movie takes, without the last frame, which stays a while.

    Raises:
        DataError: the log has no probabilities, or the suffix is neither.
        MissingExtraError: matplotlib is not installed.
        ProxylessError: ffmpeg is missing or failed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise DataError(f"{path}: a movie's suffix is .gif or .mp4")
    if path.suffix.lower() == ".mp4" and find_program("ffmpeg") is None:
        raise ProxylessError(
            f"{path}: writing MP4 needs the program ffmpeg, which is not installed; use .gif"
        )
    shown = spread(run.snapshots, max(2, frames))
    pause_ms = max(20, round(1000 * seconds / len(shown)))
    images = draw_frames(run, shown)
    if path.suffix.lower() == ".gif":
        _write_gif(images, path, pause_ms)
    else:
        _write_mp4(images, path, pause_ms)
    return len(shown)


def spread(snapshots: Sequence[Snapshot], most: int) -> list[Snapshot]:
    """Return at most so many, evenly spread, the first and the last among them.

    Raises:
        DataError: there are none.
    """
    if not snapshots:
        raise DataError(
            "the search has no arch step or epoch with probabilities yet: there is nothing to show"
        )
    if len(snapshots) <= most:
        return list(snapshots)
    return [snapshots[round(i * (len(snapshots) - 1) / (most - 1))] for i in range(most)]


def draw_frames(run: SearchRun, snapshots: Sequence[Snapshot]) -> Iterator[Image.Image]:
    """Yield an image of every snapshot, all of one size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    width_in, height_in = map_size_in(run.space)
    width_in = 9.2 if run.space.group == 1 else 5.0 + width_in
    with plot_style():
        figure = Figure(figsize=(width_in, max(5.4, 1.7 + height_in)), dpi=_DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        scene = _Scene(figure, run)
        for snapshot in snapshots:
            scene.show(snapshot)
            canvas.draw()
            size = canvas.get_width_height()
            yield Image.frombuffer("RGBA", size, bytes(canvas.buffer_rgba()), "raw", "RGBA", 0, 1).convert(
                "RGB"
            )


class _Scene:
    """A figure whose parts are changed from frame to frame, which is much quicker than drawing anew."""

    def __init__(self, figure: Any, run: SearchRun) -> None:
        self.run, columns = run, len(run.candidate_ops) * (1 if run.space.group == 1 else 3)
        height_in = figure.get_figheight()
        grid = figure.add_gridspec(
            3, 2, width_ratios=(max(1.0, columns / 7), 1.15), height_ratios=(1, 1, 0.9),
            wspace=0.2, hspace=0.6, left=0.075, right=0.975, top=1 - 0.86 / height_in,
            bottom=0.45 / height_in,
        )  # fmt: skip
        self._title = figure.text(0.015, 1 - 0.1 / height_in, "", va="top", fontsize=12, fontweight="bold")
        self._below = figure.text(0.015, 1 - 0.36 / height_in, "", va="top", fontsize=9, color=GREY)
        self._map = ProbabilityMap(figure.add_subplot(grid[:, 0]), run.space)
        target = run.target
        self._cost = self._line_panel(
            figure.add_subplot(grid[0, 1]), finite((m.step, m.expected) for m in run.snapshots),
            f"expected {target.kind}" if target else "expected cost: no target",
            target.unit if target else "", target,
        )  # fmt: skip
        self._top1 = self._line_panel(
            figure.add_subplot(grid[1, 1]),
            finite((row.get("step"), row.get("top1")) for row in (*run.epochs, *run.evaluated)),
            "held-out accuracy of the derived model", "top-1 (%)",
        )  # fmt: skip
        self._top1[1].axes.set_xlabel("weight steps", fontsize=8, labelpad=1)
        words = figure.add_subplot(grid[2, 1])
        words.set_axis_off()
        words.set_title("most probable model now", loc="left", fontsize=9)
        self._model = words.text(
            0, 0.94, "", family="monospace", fontsize=8, va="top", transform=words.transAxes
        )

    def _line_panel(
        self,
        axes: Any,
        points: list[tuple[float, float]],
        title: str,
        unit: str,
        target: Target | None = None,
    ) -> Any:
        """Prepare a panel; return its points, and the line and the dot that will show them."""
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        clean_axes(axes)
        steps = [m.step for m in self.run.snapshots]
        axes.set_xlim(min(steps), max(steps) + 1)
        values = [y for _, y in points]
        if target:
            axes.axhline(target.limit, color=ORANGE, linewidth=1.4, linestyle="--")
            values.append(target.limit)
            axes.annotate(
                f"target {target.limit:.4g} {target.unit}", (1, target.limit), (-2, 3),
                xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=8,
                color=ORANGE,
            )  # fmt: skip
        if values:
            room = 0.12 * (max(values) - min(values)) or 1.0
            axes.set_ylim(min(values) - room, max(values) + room)
        (line,) = axes.plot(
            [], [], "-", marker="o" if len(points) < 40 else "", markersize=3, linewidth=1.6, color=BLUE
        )
        (dot,) = axes.plot([], [], "o", markersize=5, color=GREEN)
        return points, line, dot

    def show(self, snapshot: Snapshot) -> None:
        """Change the figure to a snapshot."""
        run, target = self.run, self.run.target
        self._map.show(snapshot.probs)
        for points, line, dot in (self._cost, self._top1):
            past = [p for p in points if p[0] <= snapshot.step]
            line.set_data([x for x, _ in past], [y for _, y in past])
            dot.set_data([x for x, _ in past[-1:]], [y for _, y in past[-1:]])
        self._title.set_text(f"{run.begin.get('algorithm', '')} search in the space {run.space.name!r}")
        about = f"{run.begin.get('data', '')}; epoch {snapshot.epoch}, step {snapshot.step:,}"
        if target and snapshot.expected:
            about += f", expected {snapshot.expected:.4g} {target.unit}"
        self._below.set_text(about)
        self._model.set_text(model_lines(run, snapshot.choices))


def model_lines(run: SearchRun, choices: Sequence[int]) -> str:
    """Return a choice in words, a line a stage."""
    lines: dict[int, list[str]] = {}
    tokens, group = run.tokens(choices), run.space.group
    for search_block in run.space.search_blocks[::group]:
        word = "".join(tokens[search_block.index : search_block.index + group])
        lines.setdefault(search_block.stage, []).append(word)
    widths = [stage.width for stage in run.space.stages]
    return "\n".join(
        f"{widths[stage]:>4} ch  " + " ".join(f"{word:<4}" for word in words)
        for stage, words in lines.items()
    )


def _write_gif(images: Iterator[Image.Image], path: Path, pause_ms: int) -> None:
    from PIL import Image

    # One palette for all frames, that of the last: else colours flicker, and files grow.
    frames = list(images)
    palette = frames[-1].quantize(128, dither=Image.Dither.NONE)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pauses = [pause_ms] * (len(small) - 1) + [round(1000 * _LAST_S)]
    file = io.BytesIO()
    small[0].save(
        file, format="GIF", save_all=True, append_images=small[1:], duration=pauses, loop=0, optimize=True,
        disposal=1,
    )  # fmt: skip
    write_atomically(path, file.getbuffer())


def _write_mp4(images: Iterator[Image.Image], path: Path, pause_ms: int) -> None:
    """Hand the frames to ffmpeg; players want even sides and 4:2:0 colours."""
    frames = list(images)
    width, height = (side // 2 * 2 for side in frames[0].size)
    frames += [frames[-1]] * max(1, round(1000 * _LAST_S / pause_ms))
    temporary = path.with_name(f".{path.name}.part.mp4")
    command = [
        find_program("ffmpeg") or "ffmpeg", *"-y -loglevel error -f rawvideo -pix_fmt rgb24 -s".split(),
        f"{width}x{height}", "-r", f"{1000 / pause_ms:.4f}",
        *"-i - -pix_fmt yuv420p -movflags +faststart".split(), str(temporary),
    ]  # fmt: skip
    try:
        data = b"".join(frame.crop((0, 0, width, height)).tobytes() for frame in frames)
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()
            raise ProxylessError(f"{path}: ffmpeg failed ({reason[-1] if reason else done.returncode})")
        write_atomically(path, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


def slider(run: SearchRun, most: int = _SNAPSHOTS) -> dict[str, Any]:
    """Return what a page's slider over a search shows, at the end of the search and wherever it is moved.

    Args:
        run: of the search.
        most: snapshots, evenly spread over the search.

    Raises:
        DataError: the log has no probabilities.
    """
    snapshots = spread(run.snapshots, most)
    last, target = snapshots[-1], run.target
    ends = (float(snapshots[0].step), float(last.step))
    top1 = finite((row.get("step"), row.get("top1")) for row in run.epochs)
    charts = []
    if target is not None:
        name = word(target.kind)
        expected = [Line("", finite((m.step, m.expected) for m in run.snapshots))]
        title = f"Expected {name} of a model drawn now"
        chart = line_chart(title, target.unit, expected, x_range=ends, target=target, cursor=True)
        charts.append((chart, f"Expected {name} of a model drawn from the probabilities"))
    title = "Accuracy of the model derived then"
    chart = line_chart(title, "top-1 (%)", [Line("", top1)], x_range=ends, cursor=True)
    charts.append((chart, "Accuracy on the held-out images of the model derived after each epoch"))
    search = {  # for the script; probabilities in thousandths
        "columns": ["skip" if c == "-" else c for c in run.candidate_ops],
        "stage": [block.stage for block in run.space.search_blocks],
        "stages": [stage.width for stage in run.space.stages],
        "group": run.space.group,
        "range": ends,
        "cost": "" if target is None else word(target.kind),
        "unit": "" if target is None else target.unit,
        "target": None if target is None else float(f"{target.limit:.4g}"),
        "top1": top1,
        "moments": [
            (
                m.step, m.epoch, None if m.expected is None or target is None else float(f"{m.expected:.4g}"),
                [[round(1000 * p) for p in line] for line in m.probs],
            )
            for m in snapshots
        ],
    }  # fmt: skip
    return {
        "now": f"epoch {last.epoch}, step {last.step:,}", "search": search, "blocks": _blocks(run, last),
        "model": model_lines(run, last.choices), "long": len(run.blocks) > _LONG,
        "charts": [Figure(chart, caption) for chart, caption in charts if chart],
    }  # fmt: skip


def _blocks(run: SearchRun, snapshot: Snapshot) -> list[tuple[str, bool, list[float | None], int]]:
    """Return of each block its name, whether a stage begins with it, probabilities, and the choice."""
    found = []
    for block, name, line, choice in zip(
        run.space.search_blocks, run.blocks, snapshot.probs, snapshot.choices, strict=True
    ):
        candidates = zip(run.candidate_ops, line, strict=True)
        probs = [p if op in block.candidate_ops else None for op, p in candidates]
        found.append((name, block.block == 0 and block.index > 0, probs, choice))
    return found
