"""The search as a movie: how the probabilities of the paths, and with them the model, took shape."""

from __future__ import annotations

import io
import math
import os
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ProxylessError
from ..figures.probability_map import ProbabilityMap
from ..utils.files import write_atomically
from ..utils.plotting import BLUE, GREEN, GREY, GRID, ORANGE, require_matplotlib
from ..utils.subprocesses import find_program
from .runs import SearchRun, Snapshot

if TYPE_CHECKING:
    from PIL import Image

_FRAMES = 60  # at most: more make the file large and tell nothing new
_LAST_S = 3.0  # that the last frame stays
_DPI = 110


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
    if not shown:
        raise DataError(
            "the search has no arch step or epoch with probabilities yet: there is nothing to show"
        )
    pause_ms = max(20, round(1000 * seconds / len(shown)))
    images = draw_frames(run, shown)
    if path.suffix.lower() == ".gif":
        _write_gif(images, path, pause_ms)
    else:
        _write_mp4(images, path, pause_ms)
    return len(shown)


def spread(snapshots: Sequence[Snapshot], most: int) -> list[Snapshot]:
    """Return at most so many of the moments, evenly spread, the first and the last among them."""
    if len(snapshots) <= most:
        return list(snapshots)
    return [snapshots[round(i * (len(snapshots) - 1) / (most - 1))] for i in range(most)]


def draw_frames(run: SearchRun, snapshots: Sequence[Snapshot]) -> Iterator[Image.Image]:
    """Yield an image of every moment, all of one size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.style import context
    from PIL import Image

    rows = len(run.blocks)
    with context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(9.2, max(5.4, 1.7 + 0.25 * rows)), dpi=_DPI, facecolor="white")
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
        self.run, columns = run, len(run.candidate_ops)
        height_in = figure.get_figheight()
        grid = figure.add_gridspec(
            3, 2, width_ratios=(max(1.0, columns / 7), 1.15), height_ratios=(1, 1, 0.9),
            wspace=0.2, hspace=0.6, left=0.075, right=0.975, top=1 - 0.86 / height_in,
            bottom=0.45 / height_in,
        )  # fmt: skip
        self._title = figure.text(0.015, 1 - 0.1 / height_in, "", va="top", fontsize=12, fontweight="bold")
        self._below = figure.text(0.015, 1 - 0.36 / height_in, "", va="top", fontsize=9, color=GREY)
        self._map = ProbabilityMap(figure.add_subplot(grid[:, 0]), run.space)
        self._cost = self._line_panel(
            figure.add_subplot(grid[0, 1]), self._cost_points(), *self._cost_words()
        )
        self._top1 = self._line_panel(
            figure.add_subplot(grid[1, 1]),
            self._top1_points(),
            "held-out accuracy of the derived model",
            "top-1 (%)",
        )
        words = figure.add_subplot(grid[2, 1])
        words.set_axis_off()
        words.set_title("most probable model now", loc="left", fontsize=9)
        self._model = words.text(
            0, 0.94, "", family="monospace", fontsize=8, va="top", transform=words.transAxes, parse_math=False
        )

    def _cost_points(self) -> list[tuple[float, float]]:
        return [(m.step, m.expected) for m in self.run.snapshots if m.expected is not None]

    def _cost_words(self) -> tuple[str, str]:
        target = self.run.target
        return (f"expected {target[0]}", target[2]) if target else ("expected cost: no target", "")

    def _top1_points(self) -> list[tuple[float, float]]:
        found = [(float(e["step"]), e.get("top1")) for e in self.run.epochs]
        found += [(float(e["step"]), e.get("top1")) for e in self.run.evaluated]
        return [(x, float(y)) for x, y in found if y is not None and math.isfinite(y)]

    def _line_panel(self, axes: Any, points: list[tuple[float, float]], title: str, unit: str) -> Any:
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        steps = [m.step for m in self.run.snapshots]
        axes.set_xlim(min(steps), max(steps) + 1)
        values = [y for _, y in points]
        target = self.run.target
        if target and title.startswith("expected"):
            axes.axhline(target[1], color=ORANGE, linewidth=1.4, linestyle="--")
            values.append(target[1])
            axes.annotate(
                f"target {target[1]:.4g} {target[2]}", (1, target[1]), xycoords=("axes fraction", "data"),
                xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8, color=ORANGE,
            )  # fmt: skip
        if values:
            room = 0.12 * (max(values) - min(values)) or 1.0
            axes.set_ylim(min(values) - room, max(values) + room)
        if not title.startswith("expected"):
            axes.set_xlabel("weight steps", fontsize=8, labelpad=1)
        (line,) = axes.plot(
            [], [], "-", marker="o" if len(points) < 40 else "", markersize=3, linewidth=1.6, color=BLUE
        )
        (dot,) = axes.plot([], [], "o", markersize=5, color=GREEN)
        return points, line, dot

    def show(self, snapshot: Snapshot) -> None:
        """Change the figure to a moment."""
        run, choices = self.run, snapshot.choices
        self._map.show(snapshot.probs)
        for points, line, dot in (self._cost, self._top1):
            past = [p for p in points if p[0] <= snapshot.step]
            line.set_data([x for x, _ in past], [y for _, y in past])
            dot.set_data([x for x, _ in past[-1:]], [y for _, y in past[-1:]])
        self._title.set_text(f"{run.begin.get('algorithm', '')} search in the space {run.space.name!r}")
        expected = (
            f", expected {snapshot.expected:.4g} {run.target[2]}" if run.target and snapshot.expected else ""
        )
        self._below.set_text(
            f"{run.begin.get('data', '')}; epoch {snapshot.epoch}, step {snapshot.step:,}{expected}"
        )
        self._model.set_text(model_lines(run, choices))


def model_lines(run: SearchRun, choices: Sequence[int]) -> str:
    """Return a choice in words, a line a stage."""
    lines: dict[int, list[str]] = {}
    for search_block, token in zip(run.space.search_blocks, run.tokens(choices), strict=True):
        lines.setdefault(search_block.stage, []).append(token)
    widths = [stage.width for stage in run.space.stages]
    return "\n".join(
        f"{widths[stage]:>4} ch  " + " ".join(f"{token:<4}" for token in tokens)
        for stage, tokens in lines.items()
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
        file,
        format="GIF",
        save_all=True,
        append_images=small[1:],
        duration=pauses,
        loop=0,
        optimize=True,
        disposal=1,
    )
    write_atomically(path, file.getbuffer())


def _write_mp4(images: Iterator[Image.Image], path: Path, pause_ms: int) -> None:
    """Hand the frames to ffmpeg; players want even sides and 4:2:0 colours."""
    frames = list(images)
    width, height = (side // 2 * 2 for side in frames[0].size)
    frames += [frames[-1]] * max(1, round(1000 * _LAST_S / pause_ms))
    temporary = path.with_name(f".{path.name}.part.mp4")
    command = [
        find_program("ffmpeg") or "ffmpeg",
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
    ]
    command += ["-s", f"{width}x{height}", "-r", f"{1000 / pause_ms:.4f}", "-i", "-", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", str(temporary)]
    try:
        data = b"".join(frame.crop((0, 0, width, height)).tobytes() for frame in frames)
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()
            raise ProxylessError(f"{path}: ffmpeg failed ({reason[-1] if reason else done.returncode})")
        write_atomically(path, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)
