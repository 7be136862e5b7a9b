"""`llmkit generate`: model + prompts -> text; a masked model fills masks, an encoder-decoder model
writes targets of sources."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config import checks
from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.distributed.launcher import is_main_process, n_processes
from llmkit.distributed.signals import StopSignal, stop_signal
from llmkit.errors import ConfigError
from llmkit.inference import encoder_decoder, generate, masks, prompts, requests
from llmkit.inference.batching import Engine
from llmkit.inference.encoder_decoder import TargetGenerator
from llmkit.inference.generated import Sample
from llmkit.inference.masks import FilledPrompt, MaskFiller
from llmkit.inference.prompts import Prompt
from llmkit.inference.requests import PromptRequests
from llmkit.models import directory, pretrained
from llmkit.models.control_tokens import control_tokens
from llmkit.models.directory import locate_tokenizer
from llmkit.models.pretrained import Pretrained
from llmkit.reporting import samples
from llmkit.reporting.console import Console
from llmkit.reporting.format import many
from llmkit.storage import resumable
from llmkit.storage.resumable import ResultLines
from llmkit.storage.strict_json import json_text

if TYPE_CHECKING:
    from llmkit.distributed.processes import Processes


_WINDOW = 4
"""Full batches per window. A resumed job recomputes its last window, so that the batches, and
therefore the last digits, equal those of an uninterrupted job."""

_MAY_CHANGE = {"prompts", "prompts_file", "output_file", "micro_batch_size"}
"""Keys of `generation` that may change when a job resumes; prompts are compared separately."""

_Record = dict[str, Any]
_Write = Callable[[Sequence[Prompt]], Iterator[Sample | FilledPrompt]]


@dataclass(frozen=True)
class _Work:
    """A job, as known before weights are loaded."""

    config: Config
    model: Pretrained
    requests: PromptRequests
    prompts: Sequence[Prompt]
    before: int = 0
    """Number of samples already on stdout, of earlier prompts."""

    @property
    def is_masked(self) -> bool:
        """Whether the model fills masks, rather than continuing the prompts."""
        return self.model.kind == "masked"

    @property
    def continues(self) -> bool:
        """Whether the texts continue their prompts."""
        return self.model.kind == "causal" and not self.config.generation.chat

    @property
    def n_samples(self) -> int:
        """The number of samples of all prompts."""
        return len(self.prompts) * self.config.generation.num_return_sequences


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any] | None:
    """Writes samples to stdout; or to `generation.output_file` or for the caller, and returns a
    summary."""
    started = time.monotonic()
    if _is_line_by_line(config):
        _generate_line_by_line(config, sources, console)
        return None
    work = _prepare(config, sources)
    _warn(work, console)
    with stop_signal() as stop, _processes(work) as processes, _output(work) as results:
        done = len(results.done) if results else 0
        if processes is not None:
            done = int(processes.largest([done])[0])
        if done < work.n_samples:
            engine = _engine(work, processes, console)
            _write_samples(work, engine, done, processes, results, console, stop)
    output, collected = config.generation.output_file, console.collected
    if output is None and collected is None:
        return None
    return {
        "command": "generate",
        **({} if output is None else {"output": output}),
        "prompts": len(work.prompts),
        "samples": work.n_samples,
        "samples_before": done,
        "precision": work.config.generation.precision,
        "seconds": round(time.monotonic() - started, 3),
        **({"generated": collected} if output is None else {}),
    }


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks prompts, settings and the model config, without loading weights or writing."""
    work = _prepare(config, sources)
    _warn(work, console)
    if config.generation.output_file is not None:
        resumable.check_result_settings(Path(config.generation.output_file), _identity(work))
    return {
        "command": "generate",
        "prompts": len(work.prompts),
        "blank_lines": work.requests.blank,
        "prompts_cut": sum(prompt.cut > 0 for prompt in work.prompts),
        "longest_prompt": max(len(prompt.ids) for prompt in work.prompts),
        "context": work.model.context,
        "samples": work.n_samples,
        "precision": work.config.generation.precision,
    }


def _is_line_by_line(config: Config) -> bool:
    """Whether the prompts come from a pipe and their texts go to stdout."""
    settings = config.generation
    named = settings.prompts or settings.prompts_file is not None
    return not named and settings.output_file is None


def _generate_line_by_line(config: Config, sources: Sources, console: Console) -> None:
    """Generates for the prompts of a pipe; prompts that arrive together form a batch."""
    requests.check_generation_settings(config)
    engine, number = None, 0
    seen: Counter[tuple[int, ...]] = Counter()
    config, opened = _open(config)
    for asked in requests.groups(config, sources):
        work = replace(_encoded(config, opened, asked, seen), before=number)
        _warn(work, console)
        with stop_signal() as stop:
            if work.prompts:
                engine = engine or _engine(work, None, console)
                _write_samples(work, engine, 0, None, None, console, stop)
        number += work.n_samples


def _prepare(config: Config, sources: Sources) -> _Work:
    """The encoded prompts; checks everything that can be checked without weights."""
    requests.check_generation_settings(config)
    asked = requests.read_requests(config, sources)
    return _encoded(*_open(config), asked, Counter())


def _open(config: Config) -> tuple[Config, Pretrained]:
    """The config with its precision resolved, and the model without weights; both checked.

    For a masked model, keys that do not apply to it are refused if they were given for this
    command, and have no effect otherwise.
    """
    opened, device = pretrained.to_use(config), generate.usual_device()
    if opened is not None and opened.kind == "encoder-decoder":
        opened.check_purpose(opened.purpose)
        checks.refuse_inapplicable(config, "generate/sequence_to_sequence")
        own = encoder_decoder.own_settings(opened)
        settings = encoder_decoder.generation_settings(config.generation, own)
        config = config.changed(generation=settings.changed(chat=False, weights="full"))
        requests.check_generation_settings(config)
        return generate.resolved(config, device), opened
    if opened is None or opened.kind != "masked":
        return generate.resolved(config, device), generate.checked(opened)
    opened.check_purpose(opened.purpose)
    opened.check_mask_token()
    checks.refuse_inapplicable(config, "generate/masks")
    other = {"num_return_sequences": 1, "num_beams": 1, "chat": False, "weights": "full"}
    return generate.resolved(config.changed(generation=other), device), opened


def _encoded(
    config: Config, model: Pretrained, asked: PromptRequests, seen: Counter[tuple[int, ...]]
) -> _Work:
    if model.kind == "masked":
        filled = masks.encode_masked(asked.items, model, config.generation, config.sampling_seed)
        return _Work(config, model, asked, filled)
    if model.kind == "encoder-decoder":
        pairs = encoder_decoder.pair_tokenizer(model, config.data)
        how = (pairs, model.config, config.generation, config.sampling_seed, seen)
        return _Work(config, model, asked, encoder_decoder.encode_sources(asked.items, *how))
    encoded = prompts.encode_prompts(
        asked.items, model.tokenizer, model.config, config.generation, config.sampling_seed, seen
    )
    if constrain := generate.constraint(config, model):
        for prompt in encoded:
            constrain(prompt)
    return _Work(config, model, asked, encoded)


_Engine = Engine | MaskFiller | TargetGenerator


def _engine(work: _Work, processes: Processes | None, console: Console) -> _Engine:
    loads: dict[str, Callable[..., _Engine]] = {
        "masked": masks.mask_filler,
        "encoder-decoder": encoder_decoder.target_generator,
    }
    load = loads.get(work.model.kind, generate.engine)
    device = processes.device if processes else generate.usual_device()
    with console.loading_model():
        return load(work.config, work.model, device)


def _warn(work: _Work, console: Console) -> None:
    if work.requests.blank:
        console.warn(f"skipped {many(work.requests.blank, 'blank line')}")
    _warn_of_control_tokens(work, console)
    bf16 = generate.warning_of_precision(work.config.generation, work.n_samples)
    if bf16 and bf16 not in console.warnings:
        console.warn(bf16)
    cut = [prompt.cut for prompt in work.prompts if prompt.cut]
    if cut:
        side = "at the end" if work.model.kind == "encoder-decoder" else "from the left"
        console.warn(f"cut {many(len(cut), 'prompt')} {side}, by up to {many(max(cut), 'token')}")
    limits = [prompt for prompt in work.prompts if prompt.limit is not None]
    short = sum(len(p.ids) + p.max_new_tokens > (p.limit or 0) for p in limits)
    if short:
        console.warn(
            f"{many(short, 'text')} may end early: the context holds {limits[0].limit} tokens"
        )


def _warn_of_control_tokens(work: _Work, console: Console) -> None:
    settings = work.config.generation
    if not settings.split_special_tokens and not settings.chat:
        return
    tokenizer, several = work.model.tokenizer, [prompt.text for prompt in work.prompts]
    if work.is_masked:
        several = [masks.without_masks(text, tokenizer) for text in several]
    texts = ((text,) for text in several)
    if found := control_tokens(tokenizer).warning(texts, "prompt"):
        advice = "; generation.split_special_tokens=false reads it as the token"
        console.warn(found + ("" if settings.chat else advice))


def _write_samples(
    work: _Work,
    engine: _Engine,
    done: int,
    processes: Processes | None,
    results: ResultLines | None,
    console: Console,
    stop: StopSignal,
) -> None:
    """Writes all samples except the first `done`, in order, to the results or to stdout."""
    config, before, streamed = work.config, work.before, _is_streamed(work, console)
    per_prompt = config.generation.num_return_sequences
    share = max(1, _WINDOW * engine.batch_size // per_prompt)
    window = share * (processes.count if processes else 1)
    first = done // per_prompt // window * window
    is_printed = results is None and console.collected is None
    watch = stop.watched(_no_progress if is_printed else console.watch)
    with watch("generating", work.n_samples) as advance:
        advance(done)
        tick = partial(advance, 0)
        if streamed:
            between = samples.BETWEEN if before else ""
            samples.put(between + (work.prompts[0].text if work.continues else ""))
        write: _Write
        if isinstance(engine, Engine):
            on_text = (lambda _, text: samples.put(text)) if streamed else None
            sampler = engine.sampler(config.generation)
            write = partial(
                generate.generate_samples, engine, sampler=sampler, tick=tick, on_text=on_text
            )
        else:
            write = partial(engine.write, tick=tick)
        for begin in range(first, len(work.prompts), window):
            records = _window_records(work.prompts[begin : begin + window], write, processes)
            for number, record in enumerate(records, begin * per_prompt):
                if number >= done:
                    rest = record | {"prompt": "", "text": ""} if streamed else record
                    _write_record(rest, 0 if streamed else before + number, work, results, console)
                    advance(1)


def _window_records(
    window: Sequence[Prompt],
    write: _Write,
    processes: Processes | None,
) -> Iterator[_Record]:
    """The records of some prompts in order; processes share the work, and each gets all records."""
    if processes is None:
        yield from (sample.record() for sample in write(window))
        return
    mine = processes.share(window)
    records = [sample.record() for sample in write(mine)]
    each = len(records) // max(1, len(mine))
    by_prompt = [records[first : first + each] for first in range(0, len(records), max(1, each))]
    yield from chain.from_iterable(processes.joined(by_prompt))


def _write_record(
    record: _Record, number: int, work: _Work, results: ResultLines | None, console: Console
) -> None:
    """Writes one sample: to the results, or to stdout as a JSON line or plain text."""
    if not is_main_process():
        return
    if results is not None:
        results.add(record)
    elif console.collected is not None:
        console.collected.append(record)
    elif console.json:
        samples.put(json_text(record) + "\n")
    else:
        between = samples.BETWEEN if number else ""
        before = record["prompt"] if work.continues else ""
        samples.put(between + before + record["text"] + "\n")
        samples.put(samples.steps_table(record) + samples.masks_table(record))


def _is_streamed(work: _Work, console: Console) -> bool:
    """Whether the text is streamed: a single sample, printed as plain text."""
    settings = work.config.generation
    alone = work.n_samples == 1 and settings.num_beams == 1 and settings.output_file is None
    return alone and work.model.kind == "causal" and not console.json and n_processes() == 1


@contextmanager
def _output(work: _Work) -> Iterator[ResultLines | None]:
    """The results file on the main process, if configured; its lines must match the prompts."""
    path = work.config.generation.output_file
    if path is None or not is_main_process():
        yield None
        return
    with resumable.open_result_lines(Path(path), _identity(work)) as results:
        per_prompt = work.config.generation.num_return_sequences
        for number, record in enumerate(results.done):
            place, index = divmod(number, per_prompt)
            prompt = work.prompts[place] if place < len(work.prompts) else None
            held = (record.get("prompt"), record.get("columns", {}), record.get("index"))
            if prompt is None or held != (prompt.text, prompt.columns, index):
                raise ConfigError(
                    "this line is the result of another prompt",
                    where=f"{path}:{number + 1}",
                    kept="the results, untouched",
                    next="restore the old prompts to resume, or choose another output",
                )
        yield results


def _identity(work: _Work) -> _Record:
    """What the samples depend on besides their prompts."""
    config, settings = work.config, work.config.generation.model_dump(mode="json")
    kept = {f"generation.{key}": value for key, value in settings.items() if key not in _MAY_CHANGE}
    tokenizer = config.tokenizer.name_or_path
    places = {"model": work.model.location, "tokenizer": tokenizer and locate_tokenizer(tokenizer)}
    held = {
        key: at and directory.content_identity(at, work.model.revision)
        for key, at in places.items()
    }
    return {**kept, "generation.seed": config.sampling_seed, **held}


def _processes(work: _Work) -> AbstractContextManager[Processes | None]:
    """The processes of a launcher, if any."""
    if n_processes() == 1:
        return nullcontext()
    # Imported here: accelerate takes longer to import than a short prompt to answer.
    from llmkit.distributed.processes import join_processes

    return join_processes("fp32", one_model=work.model.is_divided)


@contextmanager
def _no_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress without a display, because the results themselves are printed."""
    yield lambda amount: None
