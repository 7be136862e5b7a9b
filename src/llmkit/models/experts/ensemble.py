"""An ensemble of domain experts as one causal language model.

Its probability of a token is the mean of the experts' probabilities, weighted by how well each has
predicted the document so far (Gururangan et al. 2021, arXiv 2108.05036, section 4): a Bayesian
mixture, which loses at most log(number of experts) nats per document to the best expert.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast

import llmkit.models.transformer  # noqa: F401 (an expert may be one)
from llmkit.config.types import EXPERT_NAME
from llmkit.models.directory import ENSEMBLE, EXPERTS_DIRECTORY


@strict
class EnsembleConfig(PretrainedConfig):  # type: ignore[misc]  # transformers comes without types
    """The settings of an ensemble; sizes are those of one expert."""

    model_type = ENSEMBLE
    keys_to_ignore_at_inference = ("past_key_values",)

    experts: list[str] | None = None
    """The names of the experts, which are also their directories."""
    vocab_size: int = 1
    hidden_size: int = 1
    num_hidden_layers: int = 1
    max_position_embeddings: int = 1
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def validate_experts(self) -> None:
        """Raises ValueError for a name that may lead to a directory outside the ensemble."""
        for name in self.experts or ():
            if not EXPERT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name an expert")


_SHARED = (
    "vocab_size", "hidden_size", "max_position_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip


def ensemble_config(names: Sequence[str], dense: PretrainedConfig) -> EnsembleConfig:
    """The config of an ensemble of experts with this config."""
    own = {name: getattr(dense, name) for name in _SHARED if hasattr(dense, name)}
    # The KV cache has the layers of all experts.
    own["num_hidden_layers"] = len(names) * int(dense.num_hidden_layers)
    return EnsembleConfig(experts=list(names), architectures=[EnsembleForCausalLM.__name__], **own)


@dataclass
class EnsembleOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """What an ensemble returns."""

    shares: Tensor | None = None
    """[rows, experts, columns], the weight of each expert in the logits of each column."""


class EnsembleForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Several causal language models with one tokenizer, read together."""

    config_class = EnsembleConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: EnsembleConfig, experts: Sequence[PreTrainedModel] = ()) -> None:
        """`experts` are in the order of `config.experts`."""
        super().__init__(config)
        self.experts = nn.ModuleList(experts)
        with no_init_weights():  # the experts have theirs
            self.post_init()

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **options: Any) -> Any:
        """Loads each expert from its directory, with the options of transformers."""
        config = options.pop("config", None) or AutoConfig.from_pretrained(name)
        wants_report = options.pop("output_loading_info", False)
        for key in ("subfolder", "_from_auto", "adapter_kwargs"):
            options.pop(key, None)
        experts, report = [], dict[str, Any]()
        for expert in config.experts:
            model, found = AutoModelForCausalLM.from_pretrained(
                name, subfolder=f"{EXPERTS_DIRECTORY}/{expert}", output_loading_info=True, **options
            )
            experts.append(model)
            for key, weights in found.items():
                report.setdefault(key, set()).update(weights)
        made = cls(config, experts).eval()
        return (made, report) if wants_report else made

    def save_pretrained(self, directory: str | Path, *args: Any, **options: Any) -> None:
        """Writes the config, and each expert into its directory."""
        self.config.save_pretrained(directory)
        experts: Any = self.experts
        for name, expert in zip(self.config.experts, experts, strict=True):
            expert.save_pretrained(Path(directory) / EXPERTS_DIRECTORY / name, **options)

    def get_input_embeddings(self) -> nn.Module:
        """The input embeddings of the first expert."""
        first: Any = self.experts[0]
        found: nn.Module = first.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module | None:
        """None: there is no single output layer."""
        return None

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> EnsembleOutput:
        """Log probabilities [rows, columns, vocabulary] as logits, without gradients.

        A document begins where `position_ids` [rows, columns] are 0: there, all experts have the
        same weight. `logits_to_keep` as in transformers.
        """
        known = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            columns = torch.arange(known, known + input_ids.shape[1], device=input_ids.device)
            position_ids = columns.expand_as(input_ids)
        kept, seen, last = [], [], []
        for number, expert in enumerate(self.experts):
            cache = self._cache_of(number, past_key_values)
            logits = expert(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
            chances = _normalised(logits)
            if past_key_values is not None and cache is not None:
                first = number * len(cache.layers)
                past_key_values.layers[first : first + len(cache.layers)] = cache.layers
            seen.append(chances[:, :-1].gather(2, input_ids[:, 1:, None])[..., 0])
            last.append(chances[:, -1].clone())
            kept.append(chances[:, -logits_to_keep:].clone() if logits_to_keep else chances)
        memory = getattr(past_key_values, "memory", None) if known else None
        evidence = _evidence(torch.stack(seen, 1), memory, input_ids, position_ids)
        if past_key_values is not None:
            past_key_values.memory = torch.cat([evidence[:, :, -1:], torch.stack(last, 1)], dim=2)
        shares = evidence.log_softmax(1)[:, :, -kept[0].shape[1] :].to(kept[0].dtype)
        mixed = _mixed(kept, shares)
        return EnsembleOutput(logits=mixed, past_key_values=past_key_values, shares=shares.exp())

    def _cache_of(self, number: int, cache: Cache | None) -> Cache | None:
        """The part of the KV cache that belongs to one expert."""
        if cache is None:
            return None
        own = copy.copy(cache)
        n_layers = int(self.config.num_hidden_layers) // len(self.experts)
        own.layers = cache.layers[number * n_layers : (number + 1) * n_layers]
        return own

    def _reorder_cache(self, cache: Cache, beams: Tensor) -> Cache:
        """The cache with the rows of these beams; transformers calls this in beam search."""
        cache.reorder_cache(beams)
        cache.memory = cache.memory.index_select(0, beams.to(cache.memory.device))
        return cache


_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Number of logits that are computed on at once: on a CPU they should fit into its L2 cache."""


def _normalised(logits: Tensor) -> Tensor:
    """fp32 log probabilities [rows, columns, vocabulary]; those of fp32 logits replace them."""
    chances = logits.float().contiguous()
    for some in _parts(chances):
        some.copy_(some.log_softmax(-1))
    return chances


def _mixed(chances: Sequence[Tensor], shares: Tensor) -> Tensor:
    """The log of the mean of probabilities, weighted by `shares` [rows, experts, columns], a log
    too. Uses up the memory of `chances`, [rows, columns, vocabulary] of each expert."""
    weighted = [
        zip(_parts(each), _parts(share[..., None], each.shape[-1]), strict=True)
        for each, share in zip(chances, shares.unbind(1), strict=True)
    ]
    for (total, share), *others in zip(*weighted, strict=True):
        total.add_(share)
        for some, weight in others:
            torch.logaddexp(total, some.add_(weight), out=total)
    return chances[0]


def _parts(values: Tensor, width: int = 0) -> Sequence[Tensor]:
    """Values [rows, columns, n] in parts [places, n], as many as there are logits of `width`, n by
    default."""
    most = _ENTRIES.get(values.device.type, _ENTRIES["cpu"])
    return torch.split(values.flatten(0, 1), max(1, most // (width or values.shape[-1])))


def _evidence(seen: Tensor, memory: Tensor | None, ids: Tensor, positions: Tensor) -> Tensor:
    """fp64 [rows, experts, columns], the log probability that each expert gave to the document up
    to each column.

    `seen` [rows, experts, columns - 1] holds the log probabilities of the ids but the first, and
    `memory` [rows, experts, 1 + vocabulary] the evidence before the columns, and the log
    probabilities of the first.
    """
    seen = seen.double()
    if memory is None:
        first = seen.new_zeros(*seen.shape[:2], 1)
    else:
        chosen = ids[:, None, :1].expand(-1, memory.shape[1], 1)
        first = memory[:, :, :1].double() + memory[:, :, 1:].gather(2, chosen).double()
    summed = torch.cat([first, seen], dim=2).cumsum(2)
    begins = (positions == 0).expand(len(ids), -1)
    columns = torch.arange(ids.shape[1], device=ids.device)
    latest = torch.where(begins, columns, -1).cummax(1).values  # where the document began, or -1
    before = summed.gather(2, latest.clamp(min=0)[:, None].expand_as(summed))
    return torch.where((latest < 0)[:, None], summed, summed - before)


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModelForCausalLM.register(EnsembleConfig, EnsembleForCausalLM)
