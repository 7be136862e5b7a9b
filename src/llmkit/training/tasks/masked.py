"""Masked language modelling: predict hidden tokens from those on both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples import order
from llmkit.data.examples.blocks import MaskedBlocks, Vocabulary
from llmkit.data.text.token_file import TokenFile
from llmkit.errors import ConfigError
from llmkit.evaluation.likelihood import batch_tokens_for
from llmkit.evaluation.passages import masked_passages
from llmkit.inference.blanks import fill_blanks
from llmkit.models import build, logits, packing
from llmkit.models import tokenizer as tokenizers
from llmkit.models.logits import LogitsHead
from llmkit.models.packing import DocumentMasks
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.held_out import HeldOut
from llmkit.training.tasks import by_domain
from llmkit.training.tasks.pretraining import Pretraining
from llmkit.training.tasks.task import Batch, Examples, Loss, Rows, Sums, summed_cross_entropy

MODERN = {"modernbert": 0.3, "nomic_bert": 0.3, "transformer": 0.3}
"""Share of hidden tokens for models newer than BERT (Wettig et al. 2023, arXiv 2202.08005; Warner
et al. 2024, arXiv 2412.13663)."""

USUAL_PROBABILITY = 0.15

_FEWEST = 4  # minimum tokens of a masked block, two of which are special

_SOME = 256  # rows used to estimate the share of predicted positions
_ROWS = 2  # rows of samples


_READ = ("input_ids", "attention_mask", "token_type_ids")


def masked_sums(logits: Tensor, targets: Tensor, training: bool) -> dict[str, Tensor]:
    """Cross entropy in nats, and in validation the number of correct predictions, from logits
    [rows, most, vocabulary] and targets [rows, most]."""
    logits, targets = logits.flatten(0, 1), targets.flatten()
    loss = summed_cross_entropy(logits.float(), targets)
    sums = {"objective": loss, "loss": loss}
    return sums if training else {**sums, "hits": (logits.argmax(1) == targets).sum()}


class HiddenLoss(Loss):
    """Cross entropy of hidden tokens."""

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per hidden token, and accuracy."""
        n = max(1, predictions)
        return {"loss": float(sums["loss"]) / n, "accuracy": float(sums["hits"]) / n}


class MaskedLoss(HiddenLoss):
    """Cross entropy of hidden tokens, given their document (Devlin et al. 2019, arXiv
    1810.04805)."""

    def __init__(self, head: LogitsHead | None, masks: DocumentMasks | None) -> None:
        """`head` computes logits only at predicted positions, if the model's head can be separated;
        `masks` isolate the documents of a row."""
        self.head, self.masks = head, masks

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, and in validation the number of correct predictions."""
        return masked_sums(self.logits(model, batch), batch["targets"], model.training)

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """[rows, most, vocabulary], the logits at the predicted positions."""
        inputs = {name: batch[name] for name in _READ if name in batch}
        if "documents" in batch:
            assert self.masks is not None
            inputs |= self.masks.inputs(batch["documents"])
        places = batch["places"][..., None]  # [rows, most, 1]
        if self.head is None:
            logits: Tensor = model(**inputs).logits
            return logits.take_along_dim(places, 1)
        hidden = model.base_model(**inputs)[0]  # [rows, block, width]
        return self.head(hidden.take_along_dim(places, 1))


class Masked(Pretraining):
    """Pretraining of masked language models."""

    unit = "predictions"
    purpose = build.MASKED_MODEL
    objective = "masked"
    metrics = jobs.MASKED_METRICS
    framing = 2
    architecture: ClassVar[str] = "modernbert"
    """Architecture of a new model."""

    @classmethod
    def special_ids(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """The special tokens around texts, and BERT's names for them."""
        return tokenizers.special_ids(tokenizer, "bos", "eos", "pad", "cls", "sep")

    @classmethod
    def resolve_objective(cls, config: Config, pretrained: Pretrained | None) -> Config:
        """Also resolves the share of hidden tokens and the architecture of a new model."""
        config = super().resolve_objective(config, pretrained)
        if pretrained is None:
            config = config.changed(model=config.model.filled(architecture=cls.architecture))
        share = _hidden_share(config, pretrained)
        return config.changed(train={"mask_probability": share})

    @classmethod
    def prepare_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, config: Config, block_size: int
    ) -> None:
        """Set the end token and maximum length of a tokenizer; raises ConfigError for one without
        a mask or padding token, and for a block that is too small."""
        for name in ("mask", "pad"):
            if getattr(tokenizer, f"{name}_token_id") is None:
                named = config.tokenizer.name_or_path or config.model.name_or_path
                raise ConfigError(
                    f"the tokenizer {named} has no {name} token, and train.objective is masked",
                    where="tokenizer.name_or_path",
                    next="use one that has it, or remove tokenizer.name_or_path for a new model",
                )
        if block_size < _FEWEST:
            raise ConfigError(
                f"a block of {block_size} tokens has no room between its two special tokens",
                where="data.block_size",
                next=f"set data.block_size={_FEWEST} or more",
            )
        tokenizers.set_frame(tokenizer)
        if config.model.name_or_path is None:
            tokenizer.model_max_length = block_size

    def blocks(self, file: TokenFile, held_out: bool) -> MaskedBlocks:
        """Masked blocks; validation masks are the same in every run."""
        return MaskedBlocks(**self.masking(file, held_out))

    def masking(self, file: TokenFile, held_out: bool) -> dict[str, Any]:
        """The fields of masked blocks."""
        tokenizer, whole = self.tokenizer, self.config.train.whole_word_masking
        vocabulary = Vocabulary(
            mask_id=tokenizer.mask_token_id,
            pad_id=tokenizer.pad_token_id,
            special=tokenizers.special_tokens(tokenizer),
            word_edges=tokenizers.word_edges(tokenizer) if whole else None,
        )
        return {
            "tokens": file,
            "block_size": self.sizes.block_size,
            "isolate_documents": self.config.data.isolate_documents,
            "probability": _hidden_share(self.config, self.pretrained),
            "vocabulary": vocabulary,
            "seed": "validation" if held_out else f"training/{self.config.seed}",
        }

    def losses_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], MaskedLoss]:
        """Makes the same loss for all examples."""
        masks = packing.document_masks(model) if isolated else None
        loss = MaskedLoss(logits.split_head(model), masks)
        return lambda examples: loss

    def passages(self, model: PreTrainedModel, examples: Any) -> HeldOut:
        """The likelihood of the hidden tokens of each held-out block."""
        loss = by_domain.whole(self.losses(model)(None))
        assert isinstance(loss, MaskedLoss)
        # A quarter, since each token may be predicted: all logits are held at once.
        size = batch_tokens_for(logits.ChosenLogits(model)) // 4

        def predict(batch: dict[str, Tensor]) -> Tensor:
            return loss.logits(model, batch)

        return masked_passages(predict, model.device, examples, size, self.session.watch)

    def draw(self, step: int, **how: Any) -> Rows:
        """Every example once per epoch, with different masks each time."""
        return order.occurrences_of_step(step, **how)

    def samples(self, model: PreTrainedModel, loss: Loss, step: int) -> dict[str, Any]:
        """Excerpts of held-out text with blanks, and what the model fills in."""
        examples = self.representative or self.examples
        whole = by_domain.whole(loss)
        assert isinstance(whole, MaskedLoss)

        def logits_of(batch: Batch) -> Tensor:
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            return whole.logits(model, inputs)

        training, found = model.training, list[dict[str, str]]()
        model.eval()
        try:
            for row in sorted({n * len(examples) // _ROWS for n in range(_ROWS)}):
                found += fill_blanks(logits_of, self.tokenizer, examples.batch([row]))
        finally:
            model.train(training)
        return {"samples": found}

    def speeds(self, figures: Mapping[str, Any]) -> dict[str, float]:
        """Speed in tokens read, of which only a share is predicted."""
        if "predictions_per_second" not in figures:
            return {}
        speed = figures["predictions_per_second"] / _share(self.examples)
        return {"tokens_per_second": round(speed, 1)}


def _hidden_share(config: Config, pretrained: Pretrained | None) -> float:
    """The share of hidden tokens: as configured, or the default of the architecture."""
    asked = config.train.mask_probability
    kind = config.model.architecture if pretrained is None else pretrained.config.model_type
    return MODERN.get(kind, USUAL_PROBABILITY) if asked == "auto" else asked


def _share(examples: Examples) -> float:
    """The share of predicted positions, estimated from some examples."""
    rows = range(min(_SOME, len(examples)))
    return max(1, examples.count(rows)) / examples.batch(rows)["input_ids"].numel()
