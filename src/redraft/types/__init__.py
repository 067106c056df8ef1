"""Core data types shared by all modules.

    canvas.py     sequences being generated, and what each step changed
    request.py    the input of one forward pass, how its output is sampled, and what a cache may skip
    spec.py       token ids, network and family facts that samplers and objectives may rely on
    batch.py      training rows, corrupted batches and losses
    protocols.py  interfaces that have no base class: networks, noise schedules, noise processes

Dimension legend, used in every shape comment of the package:

    B  rows of a batch or canvas        L  length in positions
    R  rows of one request              Q  positions that a request runs through the network
    W  target positions of a request, padded with -1
    N  real target positions of a request (``targets >= 0``), flattened row by row
    V  vocabulary   D  width   H  heads   C  positions of the key-value store
    Z  width of the vectors of continuous diffusion
"""

from redraft.types.attention import AttentionPattern
from redraft.types.batch import Batch, LossTerms, Prepared
from redraft.types.canvas import (
    DELETE,
    DRAFT,
    FREE,
    GIVEN,
    INSERT,
    PAD,
    SEALED,
    SET,
    Canvas,
    Generation,
    NoiseStream,
    Sampling,
    Step,
)
from redraft.types.protocols import Constraint, Network, NoiseProcess, Schedule
from redraft.types.request import (
    CacheHint,
    CleanStream,
    DraftBlocks,
    DraftQuery,
    Drawing,
    Extra,
    Forward,
    Output,
    QueryMask,
    Request,
    SelfConditioning,
    StateQuery,
    VectorQuery,
)
from redraft.types.spec import Continuous, FamilyFacts, NetworkFacts, Spec, TokenIds

__all__ = [
    "DELETE",
    "DRAFT",
    "FREE",
    "GIVEN",
    "INSERT",
    "PAD",
    "SEALED",
    "SET",
    "AttentionPattern",
    "Batch",
    "CacheHint",
    "Canvas",
    "CleanStream",
    "Constraint",
    "Continuous",
    "DraftBlocks",
    "DraftQuery",
    "Drawing",
    "Extra",
    "FamilyFacts",
    "Forward",
    "Generation",
    "LossTerms",
    "Network",
    "NetworkFacts",
    "NoiseProcess",
    "NoiseStream",
    "Output",
    "Prepared",
    "QueryMask",
    "Request",
    "Sampling",
    "Schedule",
    "SelfConditioning",
    "Spec",
    "StateQuery",
    "Step",
    "TokenIds",
    "VectorQuery",
]
