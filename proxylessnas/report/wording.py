"""How reports put costs and accuracies into words."""

from __future__ import annotations

WORDS = {"latency": "latency", "macs": "multiply-accumulates", "params": "parameters"}
UNITS = {"latency": "ms", "macs": "M", "params": "M"}


def amount(value: object, unit: str = "") -> str:
    """Return a cost to three digits, with its unit."""
    if not isinstance(value, (int, float)):
        return "not known"
    text = f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def percent(value: object) -> str:
    """Return an accuracy in percent."""
    return f"{value:.2f} %" if isinstance(value, (int, float)) else "not known"
