"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _plans_count_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Counting what a run keeps in memory takes a second, and collecting garbage before it another. The tests of plans
    do both; all others plan with nothing counted."""
    if "plan" in request.path.stem or "scaling" in request.path.stem:
        yield
        return
    from redraft.planning import activations, training
    from redraft.planning.twin import Linear

    nothing = activations.Activations(*[Linear(0.0, 0.0, 0.0, 0.0)] * 3, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "_activations", lambda case: nothing)
        patch.setattr(training, "process_bytes", lambda fresh=False: 1 << 29)
        yield
