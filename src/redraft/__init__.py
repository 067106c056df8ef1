"""redraft: train, fine-tune, sample and compare diffusion and autoregressive language models.

import redraft

model = redraft.load("translate-en-de-masked")
print(model.generate("I am tired.", steps=4)[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see
    from redraft.caches.base import CachePolicy as CachePolicy
    from redraft.compare.record import Record as Record
    from redraft.compare.run import run as run_study
    from redraft.compare.study import Study as Study
    from redraft.errors import UserError as UserError
    from redraft.families.base import Family as Family
    from redraft.guidance.base import GuidanceOptions as Guidance
    from redraft.loading import load as load
    from redraft.model import Model as Model
    from redraft.objectives.base import Objective as Objective
    from redraft.options import setting as setting
    from redraft.samplers.base import Sampler as Sampler
    from redraft.settings import Settings as Settings
    from redraft.train.loop import train as train_recipe
    from redraft.train.recipe import Recipe as Recipe
    from redraft.types import Canvas as Canvas
    from redraft.types import Forward as Forward
    from redraft.types import Generation as Generation
    from redraft.types import Request as Request
    from redraft.types import Spec as Spec
    from redraft.types import Step as Step

__version__ = "0.1.0"
__all__ = [
    "CachePolicy",
    "Canvas",
    "Family",
    "Forward",
    "Generation",
    "Guidance",
    "Model",
    "Objective",
    "Recipe",
    "Record",
    "Request",
    "Sampler",
    "Settings",
    "Spec",
    "Step",
    "Study",
    "UserError",
    "__version__",
    "load",
    "run_study",
    "setting",
    "train_recipe",
]
_WHERE = {
    "CachePolicy": "redraft.caches.base",
    "Family": "redraft.families.base",
    "Guidance": "redraft.guidance.base:GuidanceOptions",
    "Model": "redraft.model",
    "Objective": "redraft.objectives.base",
    "Recipe": "redraft.train.recipe",
    "Record": "redraft.compare.record",
    "Sampler": "redraft.samplers.base",
    "Settings": "redraft.settings",
    "Study": "redraft.compare.study",
    "UserError": "redraft.errors",
    "load": "redraft.loading",
    "run_study": "redraft.compare.run:run",
    "setting": "redraft.options",
    "train_recipe": "redraft.train.loop:train",
}
_WHERE |= dict.fromkeys(("Canvas", "Forward", "Generation", "Request", "Spec", "Step"), "redraft.types")


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that ``import redraft`` stays fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'redraft' has no attribute '{name}'")
    import importlib

    module, _, renamed = _WHERE[name].partition(":")
    return getattr(importlib.import_module(module), renamed or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
