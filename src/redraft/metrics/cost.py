"""Money per request, from a measured throughput and a price that the user gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Price per thousand requests = 1000 * price per hour / (3600 * requests per second), the machine kept busy."""

    price_per_hour: float  # in any currency

    def per_thousand(self, requests_per_second: float) -> float:
        """In the currency of ``price_per_hour``; infinite where nothing was served."""
        if requests_per_second <= 0:
            return float("inf")
        return 1000.0 * self.price_per_hour / (3600.0 * requests_per_second)
