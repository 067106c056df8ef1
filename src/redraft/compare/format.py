"""Numbers as text for reports, plans and verdicts."""

from __future__ import annotations


def quantity(value: float | None) -> str:
    """A number with the prefix of its unit at the end: ``1234567`` -> ``1.23 M``."""
    if value is None:
        return "? "
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def flops(value: float | None) -> str:
    """Operations: ``1234567`` -> ``1.23 MFLOP``; a dash where none were counted, such as per token of an empty text."""
    return "–" if value is None else f"{quantity(value)}FLOP"


def seconds(value: float) -> str:
    """A duration: ``0.0123`` -> ``12.3 ms``."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def clock(value: float) -> str:
    """Seconds as on a clock: ``75`` -> ``1:15``."""
    whole = round(value)
    minutes = f"{whole % 3600 // 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return (f"{whole // 3600}:" if whole >= 3600 else "") + f"{minutes}:{whole % 60:02d}"


def memory(value: int | None) -> str:
    """Bytes in MB or GB."""
    if not value:
        return ""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def shortened(text: str, most: int = 80) -> str:
    """A text on one line; the middle of a long one is left out."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def probability(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign: two decimals below ten, one from there on."""
    text = f"{value:+.2f}" if abs(value) < 10 else f"{value:+.1f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def plain(value: float) -> str:
    """A value without a sign: two decimals below ten, one from there on."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def times(value: float) -> str:
    """A factor: ``3.14159`` -> ``3.1x``."""
    digits = 2 if value < 0.995 else 1 if value < 99.5 else 0
    return f"{value:.{digits}f}x"
