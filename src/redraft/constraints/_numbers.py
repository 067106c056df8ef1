"""Numbers between bounds, as regular expressions over their decimal digits.

Without a bound, numbers have up to ``MOST`` digits (or as many as the other bound): readers take longer ones for
infinite, and a weak model would never stop writing digits.
"""

from __future__ import annotations

MOST = 15  # digits that a double holds exactly
FRACTION = 6  # digits behind the point of a bounded number: with more, 21.0000000000000001 would be read as 21
LARGEST = 10**9  # of a bound that is excluded, for the same reason


def integers(low: int | None, high: int | None) -> str:
    """Integers from ``low`` to ``high``, both included, without leading zeros; None: no bound. "" if there are none."""
    if low is not None and high is not None and low > high:
        return ""
    parts = []
    if low is None or low < 0:  # -5..-2 are the magnitudes 2..5 behind a minus
        parts.append(
            _signed("-", _magnitudes(1 if high is None or high >= 0 else -high, None if low is None else -low))
        )
    if high is None or high >= 0:
        parts.append(_magnitudes(max(low or 0, 0), high))
    return _either([part for part in parts if part])


def decimals(low: int | None, high: int | None, above: bool = False, below: bool = False) -> str:
    """Decimal numbers between whole bounds; ``above`` and ``below`` exclude the bound itself. "" if there are none."""
    parts = []
    if low is None or low < 0:
        least, most = (0 if high is None or high >= 0 else -high), (None if low is None else -low)
        parts.append(_signed("-", _fractions(least, most, below and high is not None and high <= 0, above)))
    if high is None or high >= 0:
        parts.append(_fractions(max(low or 0, 0), high, above and low is not None and low >= 0, below))
    return _either([part for part in parts if part])


def _fractions(low: int, high: int | None, above: bool, below: bool) -> str:
    """Decimals of a magnitude from ``low`` to ``high``: whole part below the upper bound, then any fraction."""
    if high is not None and (low > high or (low == high and (above or below))):
        return ""
    fraction, positive = rf"(?:\.[0-9]{{1,{FRACTION}}})?", rf"\.[0-9]{{0,{FRACTION - 1}}}[1-9]"
    parts = []
    if high is None or low < high:
        parts.append(f"{low}{positive}" if above else f"{low}{fraction}")
        inner = _magnitudes(low + 1, None if high is None else high - 1)
        parts.append(f"{inner}{fraction}" if inner else "")
    if high is not None and not below:
        parts.append(rf"{high}(?:\.0)?")
    return _either([part for part in parts if part])


def _magnitudes(low: int, high: int | None) -> str:
    """Integers from ``low`` >= 0 to ``high``, by number of digits and then digit by digit."""
    if high is not None and low > high:
        return ""
    if high is None:
        digits = len(str(low))
        longer = [f"[1-9][0-9]{{{digits},{MOST - 1}}}"] if digits < MOST else []
        return _either([_digits(str(low), "9" * digits), *longer])
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        parts.append(_digits(str(first), str(min(high, 10**digits - 1))))
    return _either(parts)


def _digits(low: str, high: str) -> str:
    """Numbers from ``low`` to ``high``, which have equally many digits."""
    if not low:
        return ""
    if low[0] == high[0]:
        return low[0] + _digits(low[1:], high[1:])
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return _span(low[0], high[0]) + (f"[0-9]{{{rest}}}" if rest else "")
    parts = [low[0] + _digits(low[1:], "9" * rest)]
    if int(high[0]) - int(low[0]) > 1:
        parts.append(_span(str(int(low[0]) + 1), str(int(high[0]) - 1)) + f"[0-9]{{{rest}}}")
    return _either([*parts, high[0] + _digits("0" * rest, high[1:])])


def _span(first: str, last: str) -> str:
    return first if first == last else f"[{first}-{last}]"


def _signed(sign: str, pattern: str) -> str:
    return sign + pattern if pattern else ""


def _either(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})" if parts else ""
