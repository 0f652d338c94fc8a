"""The machine's own pace: is it as fast now as it is most of the time? A reference net tells.

What other programs use of the processors can be seen (``machine_load.py``); why a machine changes its pace
cannot: the processors of a virtual machine may share one core of the host for some minutes, a laptop gets
hot. Runs are steady all the while, only at another level, and a table made at two levels fits neither. So
what was measured at another pace than most counts as disturbed, is measured again where there is time, and
whoever knows the usual pace waits for it, as long as patience lasts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

#: A reference net this much slower or faster means another pace; by chance it moves by a few percent.
OFF = 0.10
_KNOWN_AFTER = 12  # readings
_LOOK_EVERY_S = 1.0


def is_off(reading_ms: float, usual_ms: float) -> bool:
    """Tell whether the reference net took another time than usual, by more than chance."""
    return max(reading_ms, usual_ms) > (1 + OFF) * min(reading_ms, usual_ms)


class Pace:
    """Knows the usual pace, and waits for it.

    Args:
        readings: latencies of the reference net so far, in milliseconds.
        usual_ms: the usual one, where an earlier measurement tells; None takes the median of the readings.
        patience_s: seconds to wait, all in all.
        clock: seconds.
        sleep: lets seconds pass.
    """

    def __init__(
        self,
        readings: Sequence[float] = (),
        *,
        usual_ms: float | None = None,
        patience_s: float = 0.0,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.readings = list(readings)
        self.given_ms, self.patience_s, self.waited_s = usual_ms, patience_s, 0.0
        self._clock, self._sleep = clock, sleep

    @property
    def usual_ms(self) -> float | None:
        """Latency of the reference net at the usual pace; None while too little is known."""
        if self.given_ms is not None or len(self.readings) < _KNOWN_AFTER:
            return self.given_ms
        return statistics.median(self.readings)

    def settled(self, read: Callable[[], float], waiting: Callable[[], None]) -> float:
        """Return a reading of the reference net, at the usual pace unless patience ends first.

        Args:
            read: times the reference net, in milliseconds.
            waiting: called when it has to wait, to tell whoever looks on.
        """
        begin, told = self._clock(), False
        while True:
            reading = read()
            usual, spent = self.usual_ms, self._clock() - begin
            if usual is None or not is_off(reading, usual) or spent >= self.left_s:
                break
            if not told:
                waiting()
                told = True
            self._sleep(_LOOK_EVERY_S)
        if told:
            self.waited_s += self._clock() - begin
        return reading

    @property
    def left_s(self) -> float:
        """Seconds it may still wait."""
        return max(0.0, self.patience_s - self.waited_s)
