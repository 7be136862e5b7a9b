"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.config import jobs
from llmkit.config.schema import Config
from llmkit.data.examples import order
from llmkit.data.examples.blocks import Blocks
from llmkit.data.examples.mixture import Mixture
from llmkit.data.text.excerpts import excerpts
from llmkit.data.text.token_file import TokenFile
from llmkit.evaluation.passages import text_passages
from llmkit.inference import generate, prompts
from llmkit.models import build, logits, packing, rope
from llmkit.models import directory as directories
from llmkit.models import tokenizer as tokenizers
from llmkit.models.experts import balance, twins
from llmkit.models.experts import record as records
from llmkit.models.experts.balance import Balance
from llmkit.models.kernels.cross_entropy import LinearCrossEntropy
from llmkit.models.pretrained import Pretrained
from llmkit.models.tokenizer import prompt_ids
from llmkit.reporting.held_out import HeldOut
from llmkit.training.tasks import branch, defaults
from llmkit.training.tasks.pretraining import Pretraining
from llmkit.training.tasks.task import IGNORED, Batch, Loss, Rows, Sums, summed_cross_entropy


class CausalLoss(Loss):
    """Cross entropy of each token, given those before it in its document."""

    def __init__(
        self, n_bytes: int, linear_head: bool = False, balance: Balance | None = None
    ) -> None:
        """`n_bytes` is the size of the validation text; `linear_head` says that the logits are a
        matrix times the last hidden states (`logits.has_linear_head`); `balance` is the
        load-balancing loss of a mixture of experts."""
        self.n_bytes, self.linear_head, self.balance = n_bytes, linear_head, balance
        self.cross_entropy = LinearCrossEntropy(IGNORED)
        self.compilable = (self.cross_entropy.chunk,)

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, and for a mixture of experts the sums of its load-balancing loss,
        see `Balance.sums`."""
        whole = model.base_model if self.linear_head else model
        outputs: Any = self._outputs(model, whole, batch)
        if self.linear_head:
            loss = self._chunked(model, outputs.last_hidden_state.flatten(0, 1), batch)
        else:
            logits = outputs.logits.flatten(0, 1)  # [batch * block, vocabulary]
            loss = summed_cross_entropy(logits.float(), batch["targets"].flatten())
        sums = {"objective": loss, "loss": loss}
        if self.balance is not None:
            sums |= self.balance.sums(outputs.router_logits, batch.get("real"))
        return sums

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tokens routed to each expert, see `Balance.sums`, without the cost of logits."""
        assert self.balance is not None
        outputs: Any = self._outputs(model, model.base_model, batch)
        return self.balance.sums(outputs.router_logits, batch.get("real"))["routed"]

    def _outputs(self, model: Any, part: Any, batch: Batch) -> Any:
        inputs = {key: value for key, value in batch.items() if key not in ("targets", "places")}
        inputs = rope.with_positions(model, inputs)
        options = {} if self.balance is None else {"output_router_logits": True}
        # Without use_cache=False, transformers silently ignores position_ids that restart.
        return part(**inputs, use_cache=False, **options)

    def _chunked(self, model: Any, hidden: Tensor, batch: Batch) -> Tensor:
        targets = batch["targets"].flatten()  # [batch * block]
        if "places" in batch:  # other positions need no logits
            hidden, targets = hidden.index_select(0, batch["places"]), targets[batch["places"]]
        loss: Tensor = self.cross_entropy(hidden, model.get_output_embeddings().weight, targets)
        return loss

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per token, perplexity, bits per byte, and for a mixture of experts the
        load-balancing loss, which is not part of the others."""
        loss = float(sums["loss"]) / max(1, predictions)
        found = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": float(sums["loss"]) / math.log(2) / max(1, self.n_bytes),
        }
        if self.balance is not None and "routed" in sums:
            routed, probability = (torch.from_numpy(sums[name]) for name in Balance.SUMS)
            found["router_aux_loss"] = float(self.balance.loss(routed, probability))
        return found


class Causal(Pretraining):
    """Pretraining of causal language models."""

    unit = "tokens"
    purpose = build.LANGUAGE_MODEL
    objective = "causal"
    metrics = jobs.CAUSAL_METRICS

    @classmethod
    def special_ids(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """The special tokens around texts."""
        return tokenizers.special_ids(tokenizer, "bos", "eos", "pad")

    @classmethod
    def resolve_objective(cls, config: Config, pretrained: Pretrained | None) -> Config:
        """The config with the objective resolved; an expert begins with a dense model."""
        if config.data.expert is not None and pretrained is not None:
            branch.check_seed(pretrained)
        return super().resolve_objective(config, pretrained)

    @property
    def content(self) -> dict[str, str]:
        """The hashes of the data, and of the seed of an expert: a resumed run has the same."""
        return {**super().content, **self._seed}

    @cached_property
    def _seed(self) -> dict[str, str]:
        if self.config.data.expert is None or self.pretrained is None:
            return {}
        seed = self.pretrained
        return {branch.SEED: directories.content_identity(seed.location, seed.revision)}

    def limit_length(self) -> Self:
        """Limit the epochs of a new model, however long its time limit."""
        if not self.from_scratch:
            return self
        train = defaults.bounded(
            self.config.train, len(self.examples), self.sizes.global_batch_size
        )
        return replace(self, config=self.config.changed(train=train))

    def blocks(self, file: TokenFile, held_out: bool) -> Blocks:
        """Blocks, the same for training and validation."""
        return Blocks(file, self.sizes.block_size, self.config.data.isolate_documents)

    def losses_of(self, model: PreTrainedModel, isolated: bool) -> Callable[[Any], CausalLoss]:
        """Makes the loss for given examples."""
        if isolated:
            packing.check_isolation(model)
        linear, routed = logits.has_linear_head(model), balance.balance_of(model)
        return lambda examples: CausalLoss(examples.n_bytes if examples else 0, linear, routed)

    def equip(self, model: PreTrainedModel, begun: bool) -> PreTrainedModel:
        """Freeze the weights that are not trained."""
        twins.freeze_weights(model, self.config.train.freeze)
        return model

    def accompany(self, model: PreTrainedModel, directory: Path) -> None:
        """Write what a merge needs to know of a domain expert."""
        super().accompany(model, directory)
        expert = self.config.data.expert
        text = None if expert is None else self.blocks(self.learned[expert], held_out=False)
        if record := branch.record_of(self, text, model):
            records.write_experts(directory, record)

    def passages(self, model: PreTrainedModel, examples: Any) -> HeldOut:
        """The likelihood of held-out text in segments or blocks."""
        return text_passages(model, examples, self.tokenizer, self.session.watch)

    def draw(self, step: int, **how: Any) -> Rows:
        """Every example once in each epoch."""
        return order.rows_of_step(step, **how)

    def samples(self, model: PreTrainedModel, loss: Loss, step: int) -> dict[str, Any]:
        """Continuations of a few excerpts of held-out text."""
        shown = self.representative or self.examples
        parts = shown.domains.values() if isinstance(shown, Mixture) else [shown]
        texts = excerpts([part.tokens for part in parts], self.tokenizer)
        limit = prompts.context(model.config)
        ids = [prompt_ids(self.tokenizer, text) for text in texts]
        if limit is not None:  # half of the context is for the continuation
            ids = [each[-max(1, limit // 2) :] for each in ids]
        settings, seed = self.config.generation, self.config.sampling_seed
        made = generate.continuations(model, self.tokenizer, ids, settings, seed)
        return {
            "samples": [
                {"prompt": text, "continuation": each}
                for text, some in zip(texts, made, strict=True)
                for each in some
            ]
        }
