"""Masked language modelling: hidden tokens from those on both sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from llmkit.models.logits import Head
from llmkit.models.packing import DocumentMasks
from llmkit.training.tasks.task import IGNORED, Batch, Examples, Loss, Sums

_SOME = 256  # rows that tell the share of places that are predicted
_SHOWN, _AROUND = 4, 6  # hidden tokens that are shown, and tokens on each side of one


class MaskedLoss(Loss):
    """Each hidden token from all others of its document (Devlin et al. 2019, arXiv 1810.04805)."""

    def __init__(self, head: Head | None, masks: DocumentMasks | None) -> None:
        """`head` makes logits of the predicted places alone, where a model can be parted so;
        `masks` keep the documents of a row apart."""
        self.head, self.masks = head, masks

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, and for validation how many were predicted right."""
        logits = self.logits(model, batch).flatten(0, 1)  # [rows * most, vocabulary]
        targets = batch["targets"].flatten()  # [rows * most]
        loss = functional.cross_entropy(
            logits.float(), targets, ignore_index=IGNORED, reduction="sum"
        )
        sums = {"objective": loss, "loss": loss}
        if model.training:
            return sums
        return {**sums, "hits": (logits.argmax(1) == targets).sum()}

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per hidden token, and the share of them predicted right."""
        n = max(1, predictions)
        return {"loss": float(sums["loss"]) / n, "accuracy": float(sums["hits"]) / n}

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """[rows, most, vocabulary], those of the predicted places."""
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
        if "documents" in batch:
            assert self.masks is not None
            inputs |= self.masks.inputs(batch["documents"])
        elif "attention_mask" in batch:
            inputs["attention_mask"] = batch["attention_mask"]
        places = batch["places"][..., None]  # [rows, most, 1]
        if self.head is None:
            logits: Tensor = model(**inputs).logits
            return logits.take_along_dim(places, 1)
        hidden = model.base_model(**inputs)[0]  # [rows, block, width]
        return self.head(hidden.take_along_dim(places, 1))


def share(examples: Examples) -> float:
    """The share of the places of examples that are predicted, from some of them."""
    rows = range(min(_SOME, len(examples)))
    return max(1, examples.count(rows)) / examples.batch(rows)["input_ids"].numel()


@torch.no_grad()
def filled(
    loss: MaskedLoss, model: Any, tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> list[str]:
    """A few hidden tokens of one row with what stands around them, each as
    `... [what the model says / what was there] ...`."""
    training = model.training
    model.eval()
    try:
        said = loss.logits(model, {key: value.to(model.device) for key, value in batch.items()})
    finally:
        model.train(training)
    places, targets = batch["places"][0].tolist(), batch["targets"][0].tolist()
    ids = batch["input_ids"][0].clone()
    for place, target in zip(places, targets, strict=True):
        if target != IGNORED:
            ids[place] = target
    found: list[str] = []
    for place, target, guess in zip(places, targets, said[0].argmax(-1).tolist(), strict=True):
        if target == IGNORED or len(found) == _SHOWN:
            break
        before, after = ids[max(0, place - _AROUND) : place], ids[place + 1 :][:_AROUND]
        before, guess, target, after = (
            tokenizer.decode(part, skip_special_tokens=True)
            for part in (before, [guess], [target], after)
        )
        found.append(f"{before} [{guess.strip()} / {target.strip()}] {after}")
    return found
