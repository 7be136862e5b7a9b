"""Generate target texts from source texts with an encoder-decoder model; in fp32 a text does not
depend on the others.

Beam search is that of transformers. A sampled text draws its numbers from its own generator.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationConfig as OwnSettings
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from llmkit.config.schema import Config, DataConfig, GenerationConfig
from llmkit.data.examples.encoded import Encoded
from llmkit.data.examples.pair_tokenizer import PairTokenizer
from llmkit.errors import DataError
from llmkit.inference.generated import FinishReason, Sample
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequest
from llmkit.inference.sampler import EXCLUDED, Sampler, draw, end_ids
from llmkit.inference.sequence import non_finite_logits
from llmkit.models import build
from llmkit.models.classifier import remembered
from llmkit.models.kernels import int8
from llmkit.models.pretrained import Pretrained, load_model
from llmkit.storage.strict_json import plain

if TYPE_CHECKING:
    from llmkit.distributed.processes import Processes

_BATCH = 32
"""Sequences per batch by default, beams included: a constant, so that a resumed job has the same
batches."""

_BEAMS = 4
"""Beams of a model that was trained here, if `generation.num_beams` is not given."""

_LONGEST = 256
"""Maximum number of new tokens if neither the settings nor the model state one."""

_SHARED = (
    "repetition_penalty", "no_repeat_ngram_size", "num_beams", "temperature", "top_k", "top_p",
    "min_p", "typical_p", "max_new_tokens",
)  # fmt: skip
"""Settings that transformers' generation config has too, under the same names."""


def generation_settings(given: GenerationConfig, own: OwnSettings) -> GenerationConfig:
    """The settings that texts are generated with: those that are given, else the model's own, and
    without sampling unless the model's own settings ask for it.

    Sampling that is given turns the model's own beam search off, and the reverse.
    """
    asked = given.model_fields_set
    values = {name: getattr(own, name, None) for name in _SHARED}
    values["do_sample"] = bool(own.do_sample)
    if "do_sample" in asked and given.do_sample:
        values["num_beams"] = 1
    if "num_beams" in asked and given.num_beams > 1:
        values["do_sample"] = False
    if values["max_new_tokens"] is None:
        values["max_new_tokens"] = max(1, (own.max_length or _LONGEST + 1) - 1)
    return given.changed(
        **{name: each for name, each in values.items() if name not in asked and each is not None}
    )


def source_limit(config: PretrainedConfig) -> int | None:
    """The maximum number of tokens of a text; None for a model with relative positions."""
    return getattr(config, "max_position_embeddings", None)


def encode_sources(
    requests: Sequence[PromptRequest],
    pairs: PairTokenizer,
    config: PretrainedConfig,
    settings: GenerationConfig,
    seed: int,
    seen: Counter[tuple[int, ...]] | None = None,
) -> list[Prompt]:
    """The source texts as ids, in order; `seen` counts earlier ones.

    Raises DataError for one that is too long for the model, unless `truncate_prompt` cuts it, and
    for one with a system message.
    """
    seen, limit = Counter() if seen is None else seen, source_limit(config)
    encoded = pairs.sources([each.prompt for each in requests], limit)
    prompts = []
    for row, request in enumerate(requests):
        cut = int(encoded.uncut[row] - encoded.lengths[row])
        if request.system is not None:
            raise DataError("a source takes no system message", where=request.where, next="remove")
        if cut and not settings.truncate_prompt:
            raise DataError(
                f"the source has {encoded.uncut[row]} tokens, but the model reads at most {limit}",
                where=request.where,
                next="shorten it, or set generation.truncate_prompt=true to cut its end",
            )
        ids = tuple(encoded.ids[encoded.starts[row] : encoded.starts[row + 1]].tolist())
        own = seed if request.seed is None else request.seed
        most = request.max_new_tokens or settings.max_new_tokens
        most = most if limit is None else min(most, limit - 1)
        columns = plain(dict(request.extra))
        place = seen[(own, *ids)]
        prompts.append(Prompt(request.prompt, ids, own, most, place, cut, columns=columns))
        seen[(own, *ids)] += 1
    return prompts


def pair_tokenizer(opened: Pretrained, data: DataConfig) -> PairTokenizer:
    """The tokenizer of an encoder-decoder model with the prefix and the languages that are given,
    else with those that the model remembers."""
    given = (data.prefix, data.source_lang, data.target_lang)
    names = ("prefix", "source_lang", "target_lang")
    prefix, source, target = (
        remembered(opened.config, name) if value is None else value
        for name, value in zip(names, given, strict=True)
    )
    return PairTokenizer(opened.tokenizer, prefix or "", (source, target))


def own_settings(opened: Pretrained) -> OwnSettings:
    """The generation config of a model, without its weights; raises DataError if it does not state
    how a target begins."""
    try:
        own = OwnSettings.from_pretrained(opened.location, revision=opened.revision or "main")
    except OSError:  # an older model has none
        own = OwnSettings.from_model_config(opened.config)
    if own.decoder_start_token_id is None and own.bos_token_id is None:
        raise DataError(
            "the model does not state with which token a target begins",
            where=f"{opened.name} (config.json: decoder_start_token_id)",
            next="write the id there that it was trained with, for T5 that of its padding token",
        )
    return own


def target_generator(config: Config, opened: Pretrained, device: torch.device) -> TargetGenerator:
    """Loads an encoder-decoder model on its device in the configured precision, which is
    resolved."""
    settings = config.generation
    own_settings(opened)  # checks them before weights are loaded
    model = load_model(opened, build.SEQ2SEQ_MODEL).eval()
    if settings.precision == "bf16":
        model = int8.to_bf16(model)
    return TargetGenerator(model.to(device), pair_tokenizer(opened, config.data), settings)


class TargetGenerator:
    """An encoder-decoder model on its device that writes a text for each source."""

    def __init__(
        self, model: PreTrainedModel, pairs: PairTokenizer, settings: GenerationConfig
    ) -> None:
        self.model, self.pairs = model, pairs
        self.settings = generation_settings(settings, model.generation_config)
        size = settings.micro_batch_size
        self.batch_size = _BATCH if size == "auto" else size
        ends = end_ids(model.generation_config.eos_token_id, pairs.tokenizer.eos_token_id)
        self.sampler = Sampler(self.settings, pairs.tokenizer, ends, model.device)

    @property
    def per_source(self) -> int:
        """Number of texts for each source."""
        can_differ = self.settings.do_sample or self.settings.num_beams > 1
        return self.settings.num_return_sequences if can_differ else 1

    def write(
        self, prompts: Sequence[Prompt], tick: Callable[[], None] = lambda: None
    ) -> Iterator[Sample]:
        """The texts of each source, source by source. `tick` is called before every batch and may
        raise to stop."""
        found: dict[int, list[Sample]] = {}
        for some in self.batches(prompts):
            tick()
            found |= zip(some, self.batch_texts([prompts[n] for n in some]), strict=True)
        for place in range(len(prompts)):
            yield from found[place]

    def batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """The numbers of the sources of each batch: the longest first, with equal maximum
        lengths."""
        size = max(1, self.batch_size // max(self.settings.num_beams, self.per_source))
        order = sorted(
            range(len(prompts)), key=lambda n: (-len(prompts[n].ids), prompts[n].max_new_tokens)
        )
        while order:
            most = prompts[order[0]].max_new_tokens
            some = [n for n in order if prompts[n].max_new_tokens == most][:size]
            taken = set(some)
            order = [n for n in order if n not in taken]
            yield some

    @torch.inference_mode()
    def batch_texts(self, prompts: Sequence[Prompt]) -> list[list[Sample]]:
        """The texts of sources with the same maximum length."""
        settings, each = self.settings, self.per_source
        copies = 1 if settings.num_beams > 1 else each
        rows = [(prompt, index) for prompt in prompts for index in range(copies)]
        inputs = self._inputs([prompt for prompt, _ in rows])
        rules = LogitsProcessorList(self.sampler.history_rules(1))
        if settings.do_sample and settings.num_beams == 1:
            rules += self.sampler.warpers
            rules.append(_Draw([prompt.generator(index) for prompt, index in rows]))
        made = self.model.generate(
            **inputs,
            generation_config=self._config(prompts[0].max_new_tokens),
            logits_processor=rules,
        )
        tokens = [self._until_end(row) for row in made[:, 1:].tolist()]
        given = self._inputs([prompt for prompt in prompts for _ in range(each)])
        logprobs = self._logprobs(given, made, [len(row) for row in tokens])
        samples = [
            self._sample(prompts[n // each], n % each, row, logprob)
            for n, (row, logprob) in enumerate(zip(tokens, logprobs, strict=True))
        ]
        return [samples[first : first + each] for first in range(0, len(samples), each)]

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        found = Encoded.of_ids([prompt.ids for prompt in prompts], self.pairs.pad_id)
        batch = found.batch(range(len(prompts)))
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _config(self, max_new_tokens: int) -> OwnSettings:
        """The model's own settings, such as its start token and its length penalty, with those
        that are given here; other rules are applied as for other models."""
        settings, own = self.settings, copy.deepcopy(self.model.generation_config)
        neutral: dict[str, Any] = {"repetition_penalty": None, "no_repeat_ngram_size": None}
        neutral |= dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "typical_p"))
        beams = settings.num_beams
        own.update(
            **neutral,
            num_beams=beams,
            num_return_sequences=settings.num_return_sequences if beams > 1 else 1,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            max_length=None,
            eos_token_id=list(self.sampler.end_ids) or None,
            pad_token_id=self.pairs.pad_id,
        )
        own.update(**self.pairs.own_settings)
        if beams == 1:
            own.update(length_penalty=None, early_stopping=None)
        return own

    def _until_end(self, row: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(row) if token in self.sampler.end_ids]
        return row[: ends[0] + 1] if ends else row

    def _logprobs(
        self, inputs: dict[str, Tensor], made: Tensor, lengths: Sequence[int]
    ) -> list[float]:
        """[texts], the log-probability of each under the model, before any settings."""
        logits = self.model(**inputs, decoder_input_ids=made[:, :-1], use_cache=False).logits
        each = logits.float().log_softmax(-1).gather(2, made[:, 1:, None])[..., 0].cpu()
        sums = [float(row[:length].sum()) for row, length in zip(each, lengths, strict=True)]
        if any(value != value for value in sums):
            raise non_finite_logits()
        return sums

    def _sample(self, prompt: Prompt, index: int, tokens: list[int], logprob: float) -> Sample:
        tokenizer, stop = self.pairs.tokenizer, self.settings.stop
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        found = [at for each in stop if (at := text.find(each)) >= 0]
        reason: FinishReason = "length"
        if found:
            text, reason = text[: min(found)], "stop"
        elif tokens and tokens[-1] in self.sampler.end_ids:
            reason = "eos"
        return Sample(prompt, index, text, tuple(tokens), reason, logprob)


def first_texts(
    generator: TargetGenerator,
    requests: Sequence[PromptRequest],
    seed: int,
    advance: Callable[[int], None] = lambda n: None,
    processes: Processes | None = None,
) -> tuple[list[str], int]:
    """The first text for each source, and the number of sources that are cut to fit the model.

    Several processes share the sources, and each gets all texts. `advance` is called with the
    number of processes after each text, and with 0 before every batch, and may raise."""
    settings = generator.settings.changed(truncate_prompt=True)
    sources = encode_sources(requests, generator.pairs, generator.model.config, settings, seed)
    mine = sources if processes is None else processes.share(sources)
    texts = []
    for sample in generator.write(mine, tick=lambda: advance(0)):
        if sample.index == 0:
            texts.append(sample.text)
            advance(1 if processes is None else processes.count)
    texts = texts if processes is None else processes.joined(texts)
    return texts, sum(source.cut > 0 for source in sources)


class _Draw(LogitsProcessor):  # type: ignore[misc]  # transformers comes without types
    """Leaves one token for each row: the one that its own generator draws."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [rows, vocabulary], 0 for the drawn token."""
        numbers = [torch.rand((), generator=one, dtype=torch.float64) for one in self.generators]
        tokens = draw(scores, torch.stack(numbers).to(scores.device))
        return torch.full_like(scores, EXCLUDED).scatter_(1, tokens[:, None], 0.0)


def generation_of(config: Config, own: OwnSettings, longest: int) -> Config:
    """The config of a run with the settings of its texts resolved: `longest` is the number of
    tokens of the longest target."""
    start = copy.deepcopy(own)
    if start.max_new_tokens is None:
        start.update(max_new_tokens=longest)
    if start.num_beams in (None, 1) and not start.do_sample:
        start.update(num_beams=_BEAMS)
    return config.changed(generation=generation_settings(config.generation, start))
