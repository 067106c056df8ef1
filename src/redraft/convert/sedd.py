"""SEDD: score entropy over absorbing or uniform noise, with a diffusion transformer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _dit
from redraft.convert._keys import Keys
from redraft.convert.llada import MASKED
from redraft.data.vocabulary import Ids
from redraft.models.dit import Config


class Sedd:
    """Lou et al. 2024 (arXiv:2310.16834). The network answers with scores, in the terms of ``objectives.score``."""

    summary = "SEDD, absorbing and uniform"
    citation = "arXiv:2310.16834"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return isinstance(config.get("graph"), dict) and isinstance(config.get("noise"), dict) and "tokens" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        keys.silent("ngpus", "training", "data", "sampling", "eval", "optim", "hydra", "wandb_name", "work_dir")
        graph, noise, model = keys.table("graph"), keys.table("noise"), keys.table("model")
        graph.silent("file", "report_all")
        absorbing = graph.choose("type", {"absorb": True, "uniform": False})
        schedule: Any = noise.choose("type", {"loglinear": "linear", "geometric": "geometric"})
        low, high = noise.get("sigma_min", float, 1e-4), noise.get("sigma_max", float, 20.0)
        model.must("type", "ddit")
        model.silent("name", "dropout")
        c = Config(
            vocab_size=keys.get("tokens", int) + absorbing,
            dim=model.get("hidden_size", int),
            condition_dim=model.get("cond_dim", int),
            layers=model.get("n_blocks", int),
            heads=model.get("n_heads", int),
            max_length=model.get("length", int),
            noise=schedule,
            sigma_min=low,
            sigma_max=high,
            score="absorbing" if absorbing else "uniform",
            scale_by_sigma=model.get("scale_by_sigma", bool),
        )
        for table in (graph, noise, model):
            table.finish()
        process = "absorbing" if absorbing else "uniform"
        family = {**MASKED, "name": "sedd", "process": process, "timed": True, "schedule": schedule}
        described = {"name": "dit", **config.to_mapping(c)}
        mask = c.vocab_size - 1 if absorbing else None
        return Plan(described, family, _dit.layout(c), forbid_mask=True, mask=mask)
