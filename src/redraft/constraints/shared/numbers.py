"""Regular expressions for decimal numbers between bounds.

Without a bound, numbers have up to ``MAX_DIGITS`` digits (or as many as the other bound): JSON parsers convert longer
ones to infinity, and a weak model would not stop generating digits.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

MAX_DIGITS = 15  # digits that a double represents exactly
FRACTION = 6  # digits after the point of a bounded number: with more, 21.0000000000000001 would be parsed as 21
MAX_EXCLUDED = 10**9  # largest bound that can be excluded, for the same reason


def integers(low: int | None, high: int | None) -> str:
    """Integers from ``low`` to ``high``, both included, without leading zeros. None: no bound. "" if there are none."""
    if low is not None and high is not None and low > high:
        return ""
    parts = []
    if low is None or low < 0:  # -5..-2 are the magnitudes 2..5 after a minus
        parts.append(
            _signed("-", _magnitudes(1 if high is None or high >= 0 else -high, None if low is None else -low))
        )
    if high is None or high >= 0:
        parts.append(_magnitudes(max(low or 0, 0), high))
    return _either([part for part in parts if part])


def decimals(low: float | None, high: float | None, above: bool = False, below: bool = False) -> str:
    """Decimal numbers between bounds; ``above`` and ``below`` exclude the bound itself. "" if there are none.

    Bounds are converted to units of the last digit and rounded inwards, so that a bound may have any number of digits.
    """
    least, most = _units(low, ROUND_CEILING), _units(high, ROUND_FLOOR)
    if least is not None and above and Decimal(least) == _scaled(low):
        least += 1
    if most is not None and below and Decimal(most) == _scaled(high):
        most -= 1
    parts = []
    if least is None or least < 0:
        nearest = 0 if most is None or most >= 0 else -most
        parts.append(_signed("-", _between(nearest, None if least is None else -least)))
    if most is None or most >= 0:
        parts.append(_between(max(least or 0, 0), most))
    return _either([part for part in parts if part])


def _scaled(bound: float | None) -> Decimal:
    return Decimal(repr(bound)).scaleb(FRACTION)


def _units(bound: float | None, rounding: str) -> int | None:
    return None if bound is None else int(_scaled(bound).to_integral_value(rounding))


def _between(low: int, high: int | None) -> str:
    """Decimals from ``low`` >= 0 to ``high`` units of 10^-FRACTION: by integer part, then by fraction."""
    if high is not None and low > high:
        return ""
    unit, last = 10**FRACTION, 10**FRACTION - 1
    (first, rest), (final, end) = divmod(low, unit), (None, last) if high is None else divmod(high, unit)
    if first == final:
        return f"{first}{_fraction(rest, end)}"
    inner = _magnitudes(first + 1, None if final is None else final - 1)
    parts = [f"{first}{_fraction(rest, last)}", f"{inner}{_fraction(0, last)}" if inner else ""]
    if final is not None:
        parts.append(f"{final}{_fraction(0, end)}")
    return _either([part for part in parts if part])


def _fraction(low: int, high: int) -> str:
    """A point and up to ``FRACTION`` digits, of ``low`` to ``high`` units. Trailing zeros are optional."""
    digits = _ending(f"{low:0{FRACTION}d}", f"{high:0{FRACTION}d}")
    return rf"(?:\.{digits})?" if low == 0 else rf"\.{digits}"


def _ending(low: str, high: str) -> str:
    """At least one digit and at most as many as ``low`` and ``high`` have; missing digits count as zeros."""
    rest = len(low) - 1
    if set(low) == {"0"} and set(high) in ({"9"}, {"0"}):
        return f"[0-{high[0]}]{{1,{rest + 1}}}"

    def after(digit: str, least: str, most: str) -> str:
        if not rest:
            return digit
        return digit + (f"(?:{_ending(least, most)})?" if set(least) == {"0"} else _ending(least, most))

    if low[0] == high[0]:
        return after(low[0], low[1:], high[1:])
    parts = [after(low[0], low[1:], "9" * rest)]
    if int(high[0]) - int(low[0]) > 1:
        parts.append(after(_span(str(int(low[0]) + 1), str(int(high[0]) - 1)), "0" * rest, "9" * rest))
    return _either([*parts, after(high[0], "0" * rest, high[1:])])


def _magnitudes(low: int, high: int | None) -> str:
    """Integers from ``low`` >= 0 to ``high``: by number of digits, then digit by digit."""
    if high is not None and low > high:
        return ""
    if high is None:
        digits = len(str(low))
        longer = [f"[1-9][0-9]{{{digits},{MAX_DIGITS - 1}}}"] if digits < MAX_DIGITS else []
        return _either([_digits(str(low), "9" * digits), *longer])
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        parts.append(_digits(str(first), str(min(high, 10**digits - 1))))
    return _either(parts)


def _digits(low: str, high: str) -> str:
    """Numbers from ``low`` to ``high``, which have the same number of digits."""
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
