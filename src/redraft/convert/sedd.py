"""SEDD: score entropy with absorbing or uniform noise, with a diffusion transformer.

Source: louaaron/Score-Entropy-Discrete-Diffusion, class ``SEDD``. Paper: Lou et al. 2024, arXiv:2310.16834.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.shared import dit
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.dit import Config


class Sedd(Format):
    """Checkpoints ``louaaron/sedd-*``. The network outputs scores, as ``objectives.score`` defines them.

    Tables of training and evaluation are ignored. Other graphs, schedules and networks are not supported.
    """

    summary = "SEDD, absorbing and uniform"
    citation = "arXiv:2310.16834"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return isinstance(config.get("graph"), dict) and isinstance(config.get("noise"), dict) and "tokens" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.ignore("ngpus", "training", "data", "sampling", "eval", "optim", "hydra", "wandb_name", "work_dir")
        graph, noise, model = keys.table("graph"), keys.table("noise"), keys.table("model")
        graph.ignore("file", "report_all")
        absorbing = graph.translate("type", {"absorb": True, "uniform": False})
        schedule: Any = noise.translate("type", {"loglinear": "linear", "geometric": "geometric"})
        low, high = noise.get("sigma_min", float, 1e-4), noise.get("sigma_max", float, 20.0)
        model.require("type", "ddit")
        model.ignore("name", "dropout")
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
        return Translation(described, family, dit.layout(c), forbid_mask=True, mask=mask)
