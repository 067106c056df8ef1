"""Cost per request, from a measured throughput and the price of the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Cost of a thousand requests on a busy machine: 1000 * price per hour / (3600 * requests per second)."""

    price_per_hour: float  # in any currency

    def per_thousand(self, requests_per_second: float) -> float:
        """In the currency of ``price_per_hour``; infinite if nothing was served."""
        if requests_per_second <= 0:
            return float("inf")
        return 1000.0 * self.price_per_hour / (3600.0 * requests_per_second)
