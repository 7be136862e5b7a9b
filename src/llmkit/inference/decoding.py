"""The decoding loop: many texts at once, each as if it were alone.

A prompt is computed once for all its samples. A text that ends leaves its slot, and the next
one takes it. Prompts begin by length, so that little is padding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.inference.cache import SlotCache
from llmkit.inference.prompts import Prompt
from llmkit.inference.sample import Sample
from llmkit.inference.writer import Desk, Writer, advance

PROMPT_TOKENS = 4096
"""Tokens of prompts, padding included, that are computed at once."""
CACHE_BYTES = 2 << 30
"""Memory that keys and values may take on a CPU; on an accelerator a third of its own."""
REFILL_SHARE = 8
"""Slots wait until one in so many is free: a prompt alone would use the machine badly."""
PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose whole state is keys and values."""

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Beginning:
    """A text whose prompt is computed: the row of a cache, and the logits of its first token."""

    writer: Writer
    cache: SlotCache | None
    row: int
    logits: Tensor


def write(
    desk: Desk,
    prompts: Sequence[Prompt],
    batch_size: int,
    tick: Callable[[], None] = lambda: None,
    on_text: OnText | None = None,
) -> Iterator[Sample]:
    """All samples of the prompts, as they are finished.

    `tick` is called at every token and may raise to stop; `on_text` is told the text as it comes,
    in whole characters, which makes sense for one sample only.
    """
    queue = deque(sorted(prompts, key=lambda prompt: -len(prompt.ids)))
    begun: deque[Beginning] = deque()
    slots = Slots(desk)
    most = batch_size
    while queue or begun or slots.writers:
        tick()
        free = most - len(slots.writers)
        if (queue or begun) and (not slots.writers or free >= max(1, most // REFILL_SHARE)):
            if queue and len(begun) < free:
                begun += _begin(desk, queue, free - len(begun), on_text is not None)
                most = _fitting(batch_size, begun[-1].cache, prompts, desk.model)
                free = max(1, most - len(slots.writers))
            chosen = [begun.popleft() for _ in range(min(free, len(begun)))]
            advance(desk, [each.writer for each in chosen], torch.stack([e.logits for e in chosen]))
            yield from _spoken([each.writer for each in chosen], on_text)
            slots.join([each for each in chosen if each.writer.ended is None])
        if slots.writers:
            yield from _spoken(slots.step(last=not queue and not begun), on_text)


class Slots:
    """The texts that are being written, each in its slot of the cache."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.cache: SlotCache | None = None
        self.at: list[Writer | None] = []

    @property
    def writers(self) -> list[Writer]:
        """The texts in the order of their slots."""
        return [writer for writer in self.at if writer is not None]

    @torch.inference_mode()
    def join(self, beginnings: Sequence[Beginning]) -> None:
        """Takes texts in, into empty slots first."""
        if not self.writers:
            self.cache, self.at = None, []
        rest = list(beginnings)
        while rest:
            source = rest[0].cache
            group = [each for each in rest if each.cache is source]
            rest = [each for each in rest if each.cache is not source]
            rows = torch.tensor([each.row for each in group])
            empty = [slot for slot, writer in enumerate(self.at) if writer is None][: len(group)]
            slots = [*empty, *range(len(self.at), len(self.at) + len(group) - len(empty))]
            if source is not None and self.cache is None:
                self.cache = source.copy_of(rows)
            elif source is not None and self.cache is not None:
                self.cache.put(torch.tensor(slots), source, rows)
            self.at += [None] * (max(slots) + 1 - len(self.at))
            for slot, each in zip(slots, group, strict=True):
                self.at[slot] = each.writer

    @torch.inference_mode()
    def step(self, last: bool) -> list[Writer]:
        """Gives each text a token and its place up if it ended; `last`: nobody waits for one."""
        writers = self.writers
        advance(self.desk, writers, self._logits())
        for slot, writer in enumerate(self.at):
            if writer is not None and writer.ended is not None:
                self.at[slot] = None
                if self.cache is not None:
                    self.cache.release(slot)
        if last and self.writers and len(self.writers) < len(self.at):
            kept = [slot for slot, writer in enumerate(self.at) if writer is not None]
            if self.cache is not None:
                self.cache.keep(torch.tensor(kept))
            self.at = [self.at[slot] for slot in kept]
        return writers

    def _cross(self) -> None:
        """Computes again the texts that have just become too long for the frequencies of short
        ones, as transformers does: their keys were made with others."""
        if self.desk.border is None or self.cache is None:
            return
        for slot, writer in enumerate(self.at):
            ids = () if writer is None else (*writer.prompt.ids, *writer.tokens)
            if len(ids) == self.desk.border + 1:
                again = SlotCache()
                _forward(self.desk, torch.tensor([ids]), torch.zeros(1, dtype=torch.long), again)
                again.starts = torch.zeros(1, dtype=torch.long)
                again.shorten(1)  # the newest token is computed with those of the other texts
                self.cache.put(torch.tensor([slot]), again, torch.tensor([0]))

    def _logits(self) -> Tensor:
        """The logits [texts, vocabulary] of what follows the newest token of each text."""
        if self.cache is None:
            rows = [(*writer.prompt.ids, *writer.tokens) for writer in self.writers]
            return torch.cat([_recomputed(self.desk.model, row) for row in rows])
        self._cross()
        self.cache.make_room()
        newest = torch.tensor([[writer.tokens[-1] if writer else 0] for writer in self.at])
        logits = _forward(self.desk, newest, self.cache.begins(), self.cache)
        live = [slot for slot, writer in enumerate(self.at) if writer is not None]
        return logits if len(live) == len(logits) else logits[live]


@torch.inference_mode()
def _begin(desk: Desk, queue: deque[Prompt], wanted: int, is_heard: bool) -> list[Beginning]:
    """Computes the next prompts, for as many texts as are wanted or a few more."""
    samples = desk.settings.num_return_sequences if desk.settings.do_sample else 1
    longest = len(queue[0].ids)
    count = min(len(queue), -(-wanted // samples), max(1, PROMPT_TOKENS // longest))
    prompts = [queue.popleft() for _ in range(count)]
    cache: SlotCache | None = None
    if _has_plain_cache(desk.model):
        cache = SlotCache()
        begins = torch.tensor([longest - len(prompt.ids) for prompt in prompts])
        ids = torch.tensor([[0] * (longest - len(p.ids)) + list(p.ids) for p in prompts])
        logits = _forward(desk, ids, begins, cache)
        cache.starts = begins
    else:
        logits = torch.cat([_recomputed(desk.model, prompt.ids) for prompt in prompts])
    return [
        Beginning(Writer(desk, prompt, index, is_heard), cache, row, logits[row])
        for row, prompt in enumerate(prompts)
        for index in range(samples)
    ]


def _forward(desk: Desk, ids: Tensor, begins: Tensor, cache: SlotCache) -> Tensor:
    """The logits [rows, vocabulary] after the ids [rows, new columns] behind those of the cache.

    The columns before a row's begin are padding. Where there is none, no mask is given: attention
    takes its fastest way then.
    """
    device, columns = desk.model.device, torch.arange(cache.length + ids.shape[1])
    options: dict[str, Any] = {}
    if "logits_to_keep" in desk.accepts:
        options["logits_to_keep"] = 1
    if "position_ids" in desk.accepts:
        positions = columns[cache.length :] - begins[:, None]
        options["position_ids"] = positions.clamp(min=0).to(device)
    if begins.any():
        options["attention_mask"] = (columns >= begins[:, None]).to(device)
    outputs = desk.model(input_ids=ids.to(device), past_key_values=cache, use_cache=True, **options)
    logits: Tensor = outputs.logits[:, -1]
    return logits


def _recomputed(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The logits [1, vocabulary] after a text, computed whole: for models whose state is more than
    keys and values."""
    row = torch.tensor([list(ids)], device=model.device)
    logits: Tensor = model(input_ids=row, use_cache=False).logits[:, -1]
    return logits


def _has_plain_cache(model: PreTrainedModel) -> bool:
    kinds = set(getattr(model.config, "layer_types", None) or PLAIN_LAYERS)
    # A model of a user's own may compute every text whole.
    caches = model.can_generate() and model._supports_default_dynamic_cache()
    return kinds <= PLAIN_LAYERS and bool(caches)


def _fitting(
    batch_size: int, cache: SlotCache | None, prompts: Sequence[Prompt], model: PreTrainedModel
) -> int:
    """How many texts may be written at once with the memory for keys and values."""
    if cache is None:
        return batch_size
    budget = CACHE_BYTES
    if model.device.type == "cuda":
        budget = torch.cuda.get_device_properties(model.device).total_memory // 3
    longest = max(len(prompt.ids) + prompt.max_new_tokens for prompt in prompts)
    longest = min([longest, *(p.limit for p in prompts if p.limit is not None)])
    return max(1, min(batch_size, budget // (cache.n_bytes_per_token * longest)))


def _spoken(writers: Sequence[Writer], on_text: OnText | None) -> Iterator[Sample]:
    """The samples of the texts that ended; tells what is new of all."""
    for writer in writers:
        sample = None if writer.ended is None else writer.sample()
        if on_text is not None and (new := writer.transcript.say(final=sample is not None)):
            on_text(new)
        if sample is not None:
            yield sample
