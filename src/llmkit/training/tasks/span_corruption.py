"""Span corruption: T5's pretraining of encoder-decoder models (Raffel et al. 2020, arXiv
1910.10683)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples import order
from llmkit.data.examples.paired import shift_of
from llmkit.data.examples.spans import CorruptedBlocks
from llmkit.data.text.token_file import TokenFile
from llmkit.errors import ConfigError
from llmkit.evaluation.passages import masked_passages
from llmkit.models import build
from llmkit.models import tokenizer as tokenizers
from llmkit.models.pretrained import Pretrained
from llmkit.reporting.held_out import HeldOut
from llmkit.training.tasks.masked import HiddenLoss, masked_sums
from llmkit.training.tasks.pretraining import Pretraining
from llmkit.training.tasks.task import Batch, Loss, Rows

_ARCHITECTURE = "bart"

_BATCH_TOKENS = 4096  # of a validation batch of the finished model

_ROWS = 2  # rows of samples


class SpanLoss(HiddenLoss):
    """Cross entropy of the hidden spans and their sentinels, given the rest of the block."""

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, and in validation the number of correct predictions."""
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        logits = model(**inputs, use_cache=False).logits
        return masked_sums(logits, batch["targets"], model.training)


class SpanCorruption(Pretraining):
    """Pretraining of encoder-decoder models."""

    unit = "predictions"
    purpose = build.SEQ2SEQ_MODEL
    objective = "span_corruption"
    metrics = jobs.MASKED_METRICS

    @classmethod
    def special_ids(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """The special tokens around texts, and the token that starts a decoder."""
        found = tokenizers.special_ids(tokenizer, "bos", "eos", "pad")
        return {**found, "decoder_start_token_id": int(tokenizer.pad_token_id or 0)}

    @classmethod
    def resolve_objective(cls, config: Config, pretrained: Pretrained | None) -> Config:
        """Also resolves the architecture of a new model. Documents of a block are not isolated: the
        encoders of transformers cannot keep them apart."""
        config = super().resolve_objective(config, pretrained)
        if pretrained is None:
            config = config.changed(model=config.model.filled(architecture=_ARCHITECTURE))
        return config.changed(data={"isolate_documents": False})

    @classmethod
    def prepare_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, config: Config, block_size: int
    ) -> None:
        """Raises ConfigError for a tokenizer without sentinels or a padding token."""
        train = config.train
        needed = round(block_size * train.noise_density / train.mean_span_length)
        found = len(_sentinels(tokenizer))
        if tokenizer.pad_token_id is None or found < max(1, needed):
            raise ConfigError(
                f"the tokenizer has {found} sentinels (<extra_id_0>, <extra_id_1>, ...); a block "
                f"of {block_size} tokens needs {max(1, needed)}, and a padding token",
                where="tokenizer.name_or_path, data.block_size",
                next="use a tokenizer of T5, or a smaller block; or train a new one",
            )

    def blocks(self, file: TokenFile, held_out: bool) -> CorruptedBlocks:
        """Blocks with spans to predict; those of validation are the same in every run."""
        train, tokenizer = self.config.train, self.tokenizer
        with torch.device("meta"):
            shift = shift_of(build.new_model(self.model_config, 0, self.purpose))
        return CorruptedBlocks(
            file,
            self.sizes.block_size,
            train.noise_density,
            train.mean_span_length,
            _sentinels(tokenizer),
            int(tokenizer.eos_token_id),
            int(tokenizer.pad_token_id),
            shift,
            seed="validation" if held_out else f"training/{self.config.seed}",
        )

    def losses_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], SpanLoss]:
        """Makes the same loss for all examples."""
        loss = SpanLoss()
        return lambda examples: loss

    def passages(self, model: PreTrainedModel, examples: Any) -> HeldOut:
        """The likelihood of the hidden spans of each held-out block."""

        def predict(batch: dict[str, Tensor]) -> Tensor:
            inputs = {name: value for name, value in batch.items() if name != "targets"}
            logits: Tensor = model(**inputs, use_cache=False).logits
            return logits

        return masked_passages(predict, model.device, examples, _BATCH_TOKENS, self.session.watch)

    def draw(self, step: int, **how: Any) -> Rows:
        """Every block once per epoch, with different spans each time."""
        return order.occurrences_of_step(step, **how)

    @torch.no_grad()
    def samples(self, model: PreTrainedModel, loss: Loss, step: int) -> dict[str, Any]:
        """Held-out text with hidden spans, and what the model writes for them."""
        examples, training = self.representative or self.examples, model.training
        rows, found = sorted({n * len(examples) // _ROWS for n in range(_ROWS)}), []
        model.eval()
        try:
            for row in rows:
                batch = examples.batch([row])
                inputs = {name: batch[name].to(model.device) for name in _READ}
                most = batch["targets"].shape[1]
                made = model.generate(**inputs, max_new_tokens=most, do_sample=False)[0, 1:]
                sides = {"source": batch["input_ids"][0], "prediction": made}
                sides["target"] = batch["targets"][0]
                found.append({name: self.tokenizer.decode(ids) for name, ids in sides.items()})
        finally:
            model.train(training)
        return {"samples": found}


_READ = ("input_ids", "attention_mask")


def _sentinels(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The ids of <extra_id_0>, <extra_id_1>, ..., as many as the tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    names = takewhile(vocabulary.__contains__, (f"<extra_id_{n}>" for n in count()))
    return tuple(vocabulary[name] for name in names)
