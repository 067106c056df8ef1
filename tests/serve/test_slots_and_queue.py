"""Key-value slots and the request queue."""

from __future__ import annotations

import pytest
import torch

from redraft.models.parts.store import KeyValueStore
from redraft.serve.kv_slots import KvSlots
from redraft.serve.scheduler import FairQueue, QueueFull


def test_a_prompt_of_another_length_clears_a_slot() -> None:
    """With a prompt encoder, keys and values depend on the length of the prompt."""
    store = KeyValueStore([(1, 2)], 2, 8, torch.device("cpu"), torch.float32)
    slots = KvSlots(2, {("main", 0): store})
    store.tokens[1, :4] = [5, 6, 7, 4]
    slots._encoded[1] = 4
    assert slots.acquire(1, [5, 6, 7, 4], 4) == [1]
    slots.release([1])
    assert slots.acquire(1, [5, 6], 2) == [0], "no known prefix fits: the lowest slot"
    assert slots.acquire(1, [5, 6, 7], 3) == [1]
    assert (store.tokens[1] == -1).all()
    slots.release([0, 1])
    store.tokens[:, :3] = [5, 6, 7]
    assert slots.acquire(1, [5, 6, 7], 3, exact=False) == [0], "an approximate policy must not read it"
    assert (store.tokens[0] == -1).all()
    store.tokens[0, :3] = [5, 6, 7]
    slots.release([0])
    assert slots.acquire(1, [5, 6, 7], 3) == [1], "others must not read what it left"


def test_clients_are_served_round_robin() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.put("greedy", ["g1", "g2", "g3"])
    queue.put("modest", ["m1"])
    queue.put("third", ["t1", "t2"])
    assert [queue.take() for _ in range(6)] == ["g1", "m1", "t1", "g2", "t2", "g3"]
    assert queue.head() is None
    with pytest.raises(QueueFull):
        queue.put("greedy", ["x"] * 11)
    queue.put("greedy", ["x", "y"])
    assert queue.discard(lambda item: item == "x") == ["x"]
    assert [queue.take()] == ["y"] and len(queue) == 0
