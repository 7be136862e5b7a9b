"""Continuous batching: sequences run together, each as if alone, and more may join at any time.

A prompt is computed once for all its sequences. When a sequence ends, the next one takes its row of
the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmkit.config.schema import GenerationConfig
from llmkit.inference.decoding.forward_pass import ForwardPass
from llmkit.inference.decoding.kv_cache import KVCache
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler, end_ids
from llmkit.inference.sequence import Sequence, append_tokens

AUTO_BATCH = 64
"""Sequences per batch if `micro_batch_size` is `auto`: a constant, so that a resumed job has the
same batches."""
PROMPT_TOKENS = 4096
"""Maximum number of prompt tokens, padding included, in one forward pass."""
CACHE_BYTES = 2 << 30
"""Memory limit of the KV cache on a CPU; on an accelerator, a third of its memory."""
REFILL_SHARE = 8
"""Refill once one row in this many is free: prefilling single prompts is inefficient."""


@dataclass(frozen=True)
class _Prefilled:
    """A sequence whose prompt is computed, with its row of a cache and the logits of its first
    token."""

    sequence: Sequence
    cache: KVCache | None
    row: int
    logits: Tensor


class Engine:
    """A model that generates any number of sequences together, each with its own settings.

    `add` queues a prompt, also while others run; each `step` generates the first tokens of waiting
    sequences, or one token for every sequence of the running batch. In fp32 a sequence does not
    depend on the rest of its batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.batch_size = AUTO_BATCH if batch_size == "auto" else batch_size
        self._waiting: deque[list[Sequence]] = deque()
        self._prefilled: deque[_Prefilled] = deque()
        self._batch = _Batch(ForwardPass(model))
        self._fitting = self.batch_size
        """Maximum number of sequences that fit in memory."""
        self._is_due = False
        """Whether the batch continues before others join it."""
        self._is_divided = bool(getattr(model, "_tp_size", None))
        """Whether other processes hold parts of the model: they could not know of a pass that has
        failed here and is repeated, so a fault is raised."""
        self.failures = 0
        """Number of forward passes that have failed since the last one that succeeded."""

    def sampler(
        self, settings: GenerationConfig, schema: Mapping[str, Any] | None = None
    ) -> Sampler:
        """A sampler for this model; raises the errors of `constraints.constrain`."""
        own = getattr(self.model, "generation_config", None)
        ends = own.eos_token_id if own is not None else self.model.config.eos_token_id
        ends = end_ids(ends, self.tokenizer.eos_token_id)
        return Sampler(settings, self.tokenizer, ends, self.model.device, schema)

    def add(self, prompt: Prompt, sampler: Sampler, is_streamed: bool = False) -> list[Sequence]:
        """Queues `num_return_sequences` continuations of a prompt.

        Raises ConfigError if the prompt cannot be combined with a constraint.
        """
        if self.is_idle:
            self._fitting = self.batch_size
        settings = sampler.settings
        count = settings.num_return_sequences if settings.do_sample else 1
        added = [Sequence(prompt, index, sampler, is_streamed) for index in range(count)]
        self._waiting.append(added)
        return added

    @torch.inference_mode()
    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Ends the sequences that are still running or waiting, and frees their rows."""
        for sequence in sequences:
            if sequence.ended is None:
                sequence.end("aborted")
        left = ([each for each in group if each.ended is None] for group in self._waiting)
        self._waiting = deque(group for group in left if group)
        self._prefilled = deque(each for each in self._prefilled if each.sequence.ended is None)
        self._batch.release_ended()

    @property
    def is_idle(self) -> bool:
        """Whether no sequence is waiting or running."""
        return not (self._waiting or self._prefilled or self._batch.sequences)

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Generates the first tokens of waiting sequences that there is room for; if there are
        none, or after such a step, a token for each sequence of the batch. Returns all sequences
        that got a token or ended.

        So first tokens are known before the batch continues, and it continues before others join.
        A fault of a sequence ends it alone; one of a forward pass ends the sequences in it. None is
        raised here: `Sequence.sample` raises it. But for a model that is divided among processes, a
        fault of a forward pass is raised.
        """
        failures, is_due, self._is_due = self.failures, self._is_due, False
        try:
            moved = [] if is_due else self._admit()
            if moved:
                self._is_due = bool(self._batch.sequences)
            elif self._batch.sequences:
                moved = self._batch.step(is_last=not self._waiting and not self._prefilled)
        except Exception as fault:
            moved = self._fail(fault)
        if self.failures == failures and not self._is_due:
            self.failures = 0
        return moved

    def _fail(self, fault: Exception) -> list[Sequence]:
        """Ends and returns all sequences whose prompt is computed; the waiting ones stay."""
        if self._is_divided:
            raise fault
        self.failures += 1
        lost = [*self._batch.sequences, *(each.sequence for each in self._prefilled)]
        for sequence in lost:
            if sequence.ended is None:
                sequence.fail(fault)
        self._prefilled.clear()
        self._batch.release_ended()
        return lost

    def _admit(self) -> list[Sequence]:
        """Fills free rows of the batch; returns the sequences that got their first token, and those
        whose prompt cannot be computed."""
        running = len(self._batch.sequences)
        free = self._fitting - running
        if not self._waiting and not self._prefilled:
            return []
        if running and free < max(1, self._fitting // REFILL_SHARE):
            return []
        failed: list[Sequence] = []
        if self._waiting and len(self._prefilled) < free:
            failed = self._prefill(free - len(self._prefilled))
            free = max(1, self._fitting - running)
        if not self._prefilled:
            return failed
        chosen = list(islice(self._prefilled, free))
        logits = torch.stack([each.logits for each in chosen])
        append_tokens([each.sequence for each in chosen], logits)
        self._batch.join([each for each in chosen if each.sequence.ended is None])
        for _ in chosen:  # only now: those of a batch that cannot be joined are not lost
            self._prefilled.popleft()
        return failed + [each.sequence for each in chosen]

    def _prefill(self, wanted: int) -> list[Sequence]:
        """Computes prompts until at least `wanted` sequences are prefilled, or the pass is full;
        returns the sequences whose prompt cannot be computed."""
        groups: list[list[Sequence]] = []
        longest = count = 0
        while self._waiting and count < wanted:
            longest = max(longest, len(self._waiting[0][0].prompt.ids))
            if groups and longest * (len(groups) + 1) > PROMPT_TOKENS:
                break
            groups.append(self._waiting.popleft())
            count += len(groups[-1])
        return self._compute_prompts(groups)

    def _compute_prompts(self, groups: list[list[Sequence]]) -> list[Sequence]:
        """Computes the prompts of groups of sequences, together or, if that fails, each by itself;
        returns the sequences of those that fail even then."""
        try:
            logits, cache = self._batch.forward.of_prompts(
                [group[0].prompt.ids for group in groups]
            )
        except Exception as fault:
            if self._is_divided:
                raise
            self.failures += 1
            if len(groups) > 1:
                return [each for group in groups for each in self._compute_prompts([group])]
            for sequence in groups[0]:
                sequence.fail(fault)
            return groups[0]
        self._prefilled += (
            _Prefilled(sequence, cache, row, logits[row])
            for row, group in enumerate(groups)
            for sequence in group
        )
        if cache is not None:
            self._fitting = self._fitting_in_memory(cache.n_bytes_per_token)
        return []

    def _fitting_in_memory(self, n_bytes_per_token: int) -> int:
        """The number of sequences whose KV cache fits in memory, each as long as the longest."""
        budget = CACHE_BYTES
        if self.model.device.type == "cuda":
            budget = torch.cuda.get_device_properties(self.model.device).total_memory // 3
        sequences = [*self._batch.sequences, *(each.sequence for each in self._prefilled)]
        sequences += (group[0] for group in self._waiting)
        longest = max(sequence.prompt.max_length for sequence in sequences)
        return max(1, min(self.batch_size, budget // (n_bytes_per_token * longest)))


class _Batch:
    """The running sequences, each in its row of the KV cache."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward
        self.cache: KVCache | None = None
        self.rows: list[Sequence | None] = []

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences in the order of their rows."""
        return [sequence for sequence in self.rows if sequence is not None]

    def join(self, prefilled: list[_Prefilled]) -> None:
        """Adds sequences, to free rows first."""
        rest = prefilled
        while rest:
            source = rest[0].cache
            group = [each for each in rest if each.cache is source]
            rest = [each for each in rest if each.cache is not source]
            sources = torch.tensor([each.row for each in group])
            free = [row for row, taken in enumerate(self.rows) if taken is None][: len(group)]
            rows = [*free, *range(len(self.rows), len(self.rows) + len(group) - len(free))]
            if source is not None and self.cache is None:
                self.cache = source.copy_of(sources)
            elif source is not None and self.cache is not None:
                self.cache.put(torch.tensor(rows), source, sources)
            self.rows += [None] * (max(rows) + 1 - len(self.rows))
            for row, each in zip(rows, group, strict=True):
                self.rows[row] = each.sequence

    def step(self, is_last: bool) -> list[Sequence]:
        """Generates a token for each sequence and frees the rows of those that ended; `is_last` if
        no sequence is waiting for a row."""
        sequences = self.sequences
        guesses = self._guesses()
        logits = self._logits(guesses)
        append_tokens(sequences, logits[:, 0])
        for place, guess in enumerate(guesses, 1):
            if sequences[0].ended is not None or sequences[0].tokens[-1] != guess:
                if self.cache is not None:
                    self.cache.shorten(len(guesses) + 1 - place)
                break
            append_tokens(sequences, logits[:, place])
        self.release_ended()
        if is_last and self.sequences and len(self.sequences) < len(self.rows):
            kept = [row for row, sequence in enumerate(self.rows) if sequence is not None]
            if self.cache is not None:
                self.cache.keep(torch.tensor(kept))
            self.rows = [self.rows[row] for row in kept]
        return sequences

    def release_ended(self) -> None:
        """Frees the rows of ended sequences, and the cache once all have ended."""
        for row, sequence in enumerate(self.rows):
            if sequence is not None and sequence.ended is not None:
                self.rows[row] = None
                if self.cache is not None:
                    self.cache.release(row)
        if not self.sequences:
            self.cache, self.rows = None, []

    def _guesses(self) -> list[int]:
        """Tokens that may follow in the text of a sequence that runs alone."""
        alone, cache = self.rows[0] if len(self.rows) == 1 else None, self.cache
        if alone is None or cache is None or not self.forward.can_forget(cache):
            return []
        return alone.guesses()[: self.forward.most_tokens - 1]

    def _logits(self, guesses: list[int]) -> Tensor:
        """The logits [sequences, 1 + guesses, vocabulary] after each sequence's newest token, and
        after each of the guesses that follow it."""
        if self.cache is None:
            return self.forward.recomputed(each.ids for each in self.sequences)[:, None]
        self._cross_border(self.cache)
        self.cache.make_room(1 + len(guesses))
        newest = [[each.tokens[-1] if each else 0, *guesses] for each in self.rows]
        logits = self.forward.of_newest(torch.tensor(newest), self.cache)
        taken = [row for row, sequence in enumerate(self.rows) if sequence is not None]
        return logits if len(taken) == len(logits) else logits[taken]

    def _cross_border(self, cache: KVCache) -> None:
        """Recomputes sequences that have just outgrown the RoPE frequencies of short texts, as
        transformers does: their cached keys use the short frequencies."""
        if self.forward.border is None:
            return
        for row, sequence in enumerate(self.rows):
            if sequence is not None and len(sequence.ids) == self.forward.border + 1:
                _, again = self.forward.of_prompts([sequence.ids])
                assert again is not None
                again.shorten(1)  # the newest token is computed together with the other rows
                cache.put(torch.tensor([row]), again, torch.tensor([0]))
