"""An engine for a model that is split across processes: rank 0 decides what to do, and the other
ranks repeat its calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from llmkit.config.schema import GenerationConfig
from llmkit.errors import LlmkitError
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.inference.sequence import Sequence

_IDLE = timedelta(days=365)
"""How long a process waits for the next order: a server may have nothing to do."""

Order = Mapping[str, Any]


class Orders:
    """Brings orders from rank 0 to all others, as JSON. All processes must create it."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_IDLE)

    def send(self, order: Order) -> None:
        """Sends an order; for rank 0."""
        content = json.dumps(order).encode()
        dist.broadcast(torch.tensor([len(content)]), 0, group=self._group)
        dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, self._group)

    def receive(self) -> Order:
        """Waits for the next order; for all other ranks."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._group)
        content = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self._group)
        order: Order = json.loads(content.numpy().tobytes())
        return order


class LeadingEngine(Engine):
    """The engine of rank 0, which sends each call to the other ranks before making it."""

    def __init__(self, engine: Engine, orders: Orders) -> None:
        super().__init__(engine.model, engine.tokenizer, engine.batch_size)
        self._orders, self._running = orders, _Numbered()

    def add(self, prompt: Prompt, sampler: Sampler, is_streamed: bool = False) -> list[Sequence]:
        """Queues continuations of a prompt."""
        self._announce({
            "add": {
                "ids": prompt.ids, "seed": prompt.seed, "limit": prompt.limit,
                "max_new_tokens": prompt.max_new_tokens, "occurrence": prompt.occurrence,
            },
            "settings": sampler.settings.model_dump_json(), "schema": sampler.schema,
        })  # fmt: skip
        added = super().add(prompt, sampler, is_streamed)
        self._running.add(added)
        return added

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Ends sequences."""
        ended = list(sequences)
        if numbers := self._running.numbers_of(ended):
            self._announce({"abort": numbers})
        super().abort(ended)

    def step(self) -> list[Sequence]:
        """Generates tokens; raises the fault of a forward pass, and that of a lost process."""
        self._orders.send({"step": True})
        moved = super().step()
        self._running.drop(moved)
        return moved

    def _announce(self, order: Order) -> None:
        """Sends an order. A lost process is not the fault of one request, so the next step raises
        that error instead."""
        with suppress(RuntimeError):
            self._orders.send(order)


def follow_orders(engine: Engine, orders: Orders) -> None:
    """Repeats the calls of rank 0's engine on this rank's, until rank 0 stops."""
    running = _Numbered()
    while "stop" not in (order := orders.receive()):
        if "step" in order:
            running.drop(engine.step())
        elif "abort" in order:
            engine.abort([running.sequences[number] for number in order["abort"]])
        else:
            settings = GenerationConfig.model_validate_json(order["settings"])
            given = order["add"]
            prompt = Prompt("", **{**given, "ids": tuple(given["ids"])})
            try:
                running.add(engine.add(prompt, engine.sampler(settings, order["schema"])))
            except LlmkitError:  # rank 0 has the same and reports it
                continue


class _Numbered:
    """Sequences by number, in the order in which they were added."""

    def __init__(self) -> None:
        self.sequences: dict[int, Sequence] = {}
        self._next = 0

    def add(self, added: Iterable[Sequence]) -> None:
        for sequence in added:
            self.sequences[self._next] = sequence
            self._next += 1

    def numbers_of(self, wanted: Iterable[Sequence]) -> list[int]:
        """The numbers of those that have not ended."""
        known = {id(sequence): number for number, sequence in self.sequences.items()}
        return [known[id(each)] for each in wanted if each.ended is None and id(each) in known]

    def drop(self, moved: Iterable[Sequence]) -> None:
        """Forgets the ended ones of those that have moved, and those that were aborted."""
        if any(each.ended is not None for each in moved):
            self.sequences = {n: each for n, each in self.sequences.items() if each.ended is None}
