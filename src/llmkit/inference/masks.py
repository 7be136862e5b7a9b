"""Fill the masks of prompts with a masked model; in fp32 a filling does not depend on the others.

As in `classify`, all batches of a padded length have the same shape in fp32, and the head computes
each prompt alone. In bf16 the last digits of a probability may depend on the batch, as for other
generated text, and batches are as small as their prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config.schema import Config, GenerationConfig
from llmkit.errors import DataError
from llmkit.inference import generate
from llmkit.inference.generated import DECIMALS
from llmkit.inference.padding import padded_lengths
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.inference.sequence import non_finite_logits
from llmkit.models import build, pretrained
from llmkit.models.control_tokens import control_tokens
from llmkit.models.logits import split_head
from llmkit.models.pretrained import Pretrained
from llmkit.storage.strict_json import plain

MASK = "[MASK]"
"""Marks a place to fill for every model, besides the mask token of its tokenizer."""

_BATCH = {"cpu": 8, "cuda": 64}
"""Prompts per batch by default."""


@dataclass(frozen=True)
class Filling:
    """A token for a mask, with its probability."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class FilledPrompt:
    """A prompt with its masks filled, each independently of the others."""

    prompt: Prompt
    text: str
    """With the most likely filling of each mask, decoded from the ids."""
    masks: Sequence[Sequence[Filling]]
    """The fillings of each mask, most likely first."""
    explained: bool
    """Whether the record lists more than the first filling of each mask."""

    def record(self) -> dict[str, Any]:
        """The result as a JSON object."""
        masks = []
        for fillings in self.masks:
            each = [{**vars(one), "probability": round(one.probability, DECIMALS + 3)}
                    for one in fillings]  # fmt: skip
            masks.append({**each[0], **({"likeliest": each} if self.explained else {})})
        record = {"prompt": self.prompt.text, "text": self.text, "index": 0, "masks": masks}
        return {**record, **({"columns": dict(self.prompt.columns)} if self.prompt.columns else {})}


def encode_masked(
    requests: Sequence[PromptRequest], model: Pretrained, settings: GenerationConfig, seed: int
) -> list[Prompt]:
    """The prompts as ids, with the special tokens that the tokenizer adds around a text.

    Mask tokens are always read as the token; names of other control tokens are text, unless
    `split_special_tokens` is false. Raises DataError for a prompt without a mask, with a system
    message, or too long for the model.
    """
    control, mask = control_tokens(model.tokenizer), str(model.tokenizer.mask_token)
    names = [mask] if settings.split_special_tokens else control.names
    encoded = []
    for request in requests:
        ids = control.framed_ids(request.prompt.replace(MASK, mask), names)
        _check_prompt(request, ids, model)
        columns = plain(dict(request.extra))
        encoded.append(Prompt(request.prompt, ids, seed, 0, limit=model.context, columns=columns))
    return encoded


def without_masks(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """A prompt without its masks, whose names are not text."""
    return text.replace(MASK, "").replace(str(tokenizer.mask_token), "")


def mask_filler(config: Config, opened: Pretrained, device: torch.device | None) -> MaskFiller:
    """Loads a masked model on its device in the configured precision."""
    device = device or generate.usual_device()
    settings = generate.resolved(config, device).generation
    model = pretrained.load_model(opened, build.MASKED_MODEL).eval().to(device)
    return MaskFiller(model, opened.tokenizer, settings, opened.context)


class MaskFiller:
    """A masked model on its device. Create it with `mask_filler`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        settings: GenerationConfig,
        context: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.context = context
        size, device = settings.micro_batch_size, model.device
        self.batch_size = _BATCH.get(device.type, 8) if size == "auto" else size
        self._head = split_head(model)
        self._pad = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def write(
        self, prompts: Sequence[Prompt], tick: Callable[[], None] = lambda: None
    ) -> Iterator[FilledPrompt]:
        """The prompts in order, filled. `tick` is called before every batch and may raise.

        Raises DataError at a prompt whose logits are NaN or infinite, after those before it.
        """
        lengths = padded_lengths(np.array([len(prompt.ids) for prompt in prompts], np.int64))
        if self.context is not None:
            lengths = np.minimum(lengths, self.context)
        found: dict[int, FilledPrompt | None] = {}
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            for first in range(0, len(rows), self.batch_size):
                tick()
                some = rows[first : first + self.batch_size].tolist()
                batch = self._filled([prompts[row] for row in some], length)
                found |= zip(some, batch, strict=True)
        for row in range(len(prompts)):
            if (filled := found[row]) is None:
                raise non_finite_logits()
            yield filled

    @torch.no_grad()
    def _filled(self, prompts: Sequence[Prompt], length: int) -> list[FilledPrompt | None]:
        is_low = self.settings.precision == "bf16"
        # Copies of the first prompt fill up the batch: every batch of a length has the same shape.
        added = 0 if is_low else self.batch_size - len(prompts)
        rows = [*prompts, *[prompts[0]] * added]
        real = torch.arange(length) < torch.tensor([[len(row.ids)] for row in rows])
        ids = torch.full((len(rows), length), self._pad)
        ids[real] = torch.tensor([id for row in rows for id in row.ids])
        device = self.model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": real.long().to(device)}
        with torch.autocast(device.type, torch.bfloat16, enabled=is_low):
            logits_at = self._logits(inputs)
            return [self._result(prompt, partial(logits_at, row))
                    for row, prompt in enumerate(prompts)]  # fmt: skip

    def _logits(self, inputs: dict[str, Tensor]) -> Callable[[int, Tensor], Tensor]:
        """The function from a row and places in it [masks] to their logits [masks, vocabulary]."""
        if self._head is None:
            whole: Tensor = self.model(**inputs).logits
            return lambda row, places: whole[row, places]
        head, hidden = self._head, self.model.base_model(**inputs)[0]
        return lambda row, places: head(hidden[row, places][None])[0]

    def _result(self, prompt: Prompt, logits_at: Callable[[Tensor], Tensor]) -> FilledPrompt | None:
        """The filled prompt; None if its logits are not finite."""
        ids, mask = torch.tensor(prompt.ids), self.tokenizer.mask_token_id
        [places] = torch.where(ids == mask)
        chances = logits_at(places.to(self.model.device)).float().softmax(-1).cpu()
        if chances.isnan().any():
            return None
        most = min(max(1, self.settings.explain), chances.shape[-1])
        likeliest = chances.topk(most)
        masks = [
            [
                Filling(id, self.tokenizer.decode([id]), chance)
                for id, chance in zip(*each, strict=True)
            ]
            for each in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ]
        ids[places] = likeliest.indices[:, 0]
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return FilledPrompt(prompt, text, masks, self.settings.explain > 0)


def _check_prompt(request: PromptRequest, ids: Sequence[int], model: Pretrained) -> None:
    mask, limit = model.tokenizer.mask_token, model.context
    if model.tokenizer.mask_token_id not in ids:
        raise DataError(
            "the prompt has no mask, and a masked model only fills masks",
            where=request.where,
            next=f'write {mask} at each place to fill, as in "The cat sat on the {mask}."',
        )
    if request.system is not None:
        raise DataError(
            "a masked model takes no system message", where=request.where, next="remove it"
        )
    if limit is not None and len(ids) > limit:
        raise DataError(
            f"the prompt has {len(ids)} tokens, but the model reads at most {limit}",
            where=request.where,
            next="shorten it to the sentences around the mask",
        )
