"""Parity of schedules and conversions of latent diffusion (Lovelace et al. 2023, arXiv:2212.09462)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redraft.noise import gaussian
from redraft.noise.gaussian import Gaussian
from redraft.noise.schedules.cosine import Cosine
from redraft.noise.schedules.exponential import Exponential
from redraft.noise.schedules.linear import Linear
from redraft.noise.schedules.sigmoid import Sigmoid
from redraft.parity.reference import Check, Reference, Suite
from redraft.types import AttentionPattern, Continuous, FamilyFacts, NetworkFacts, Spec, TokenIds


def checks(reference: Reference) -> Iterator[Check]:
    """Schedules with their scaled log-SNR, and conversions between clean, noisy and v."""
    values = reference.tensors("schedules")
    t = values["t"].double()
    ours: dict[str, Any] = {
        "simple_linear": Linear(),
        "cosine": Cosine(power=2),
        "sigmoid": Sigmoid(),
        "beta_linear": Exponential(1e-4, 1e-4 + 10),
    }
    ours["sigmoid.start-2_end4_tau0.9"] = Sigmoid(-2, 4, 0.9)
    for name, schedule in ours.items():
        expected = values[name if "." in name else f"{name}.alpha2"]
        yield reference.close(f"schedule, {name}", schedule.alpha(t), expected, 1e-4, 1e-5)
        for scale in (0.5, 1.0):
            if "." in name:
                continue
            found, of = gaussian.log_snr(_spec(schedule, scale), t), f"{name}.scale{scale}"
            yield reference.close("log-SNR of scaled vectors", found, values[f"{of}.logsnr"], 1e-4, 1e-3)
            yield reference.close("signal of scaled vectors", found.sigmoid(), values[f"{of}.alpha2"], 1e-4, 1e-5)
    data = reference.tensors("conversions")
    g = gaussian.log_snr(_spec(Cosine(power=2), 0.5), data["t"].double())[:, None].expand(data["x"].shape[:2])
    x, noise, z, v = (data[name].double() for name in ("x", "noise", "z_t", "v"))
    yield reference.close("noisy vectors", Gaussian().corrupt(x, g, noise), z, 1e-3, 1e-4)
    yield reference.close("v", gaussian.v_of(x, noise, g), v, 1e-3, 1e-4)
    yield reference.close("clean vectors from v", gaussian.clean_of(v, z, g), data["start_from_v"], 1e-3, 1e-4)


def _spec(schedule: Any, scale: float) -> Spec:
    latents = Continuous(8, 4, False, 15.0, -15.0, scale)
    return Spec(
        TokenIds(8, 0, 1, 2),
        NetworkFacts(AttentionPattern(), outputs="vectors"),
        FamilyFacts(schedule, Gaussian(), latents),
    )


_NOISE = "redraft does not predict noise: models predict v, or tokens"
SUITE = Suite(
    checks,
    {
        "schedules.cosine.start*": "redraft's cosine has no start, end and tau",
        "conversions.*noise*": _NOISE,
    },
)
