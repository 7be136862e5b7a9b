"""`llmkit finetune train.objective=completion`: prompts with responses -> model that responds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llmkit.config.schema import Config
from llmkit.data import fingerprints, lengths, order
from llmkit.data.conversations import Conversation
from llmkit.data.sources import Sources
from llmkit.distributed.signals import stop_signal
from llmkit.evaluation import outputs, references
from llmkit.evaluation.baselines import unigram_figures
from llmkit.evaluation.pairs import Pairs
from llmkit.evaluation.scored_rows import measure_responses
from llmkit.inference import generate, prompts
from llmkit.inference.batching import Engine
from llmkit.models import build, load, logits, moe, packing
from llmkit.models.pretrained import open_model
from llmkit.progress import Watch
from llmkit.reporting import verdicts
from llmkit.reporting.console import Console
from llmkit.reporting.data_report import readable
from llmkit.storage import atomic
from llmkit.training import completing
from llmkit.training import directory as run_directory
from llmkit.training import run as training
from llmkit.training.budget import Clock
from llmkit.training.checkpoint import Checkpoint
from llmkit.training.completing import Inputs
from llmkit.training.session import Session
from llmkit.training.tasks.completion import CompletionLoss

COMMAND = "finetune"


def run(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Trains the model, or goes on training it, measures what it makes of held-out prompts, and
    returns the figures of the run."""
    run_directory.check(config, COMMAND)
    with stop_signal() as stop, training.start(config, COMMAND) as processes:
        watch = stop.watched(console.watch)
        inputs = completing.gather(config, sources, console, watch)
        with run_directory.opened(config, COMMAND) as directory:
            resumed = training.resume_point(directory, config, inputs.content, processes, console)
            model = completing.begin(inputs, resumed, console)
            if not packing.isolates(model):
                console.say(f"{type(model).__name__} gets a row for each conversation: it cannot "
                            "keep packed ones apart")  # fmt: skip
                inputs = completing.unpacked(inputs, config)
            trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
            console.say(
                f"model: {type(model).__name__}, {model.num_parameters():,} parameters, "
                f"{trained:,} of them trained"
            )
            clock = Clock(resumed.state.seconds if resumed else 0.0)
            session = Session(processes, console, clock, stop)
            job = _job(config, inputs, model, resumed)
            figures = training.carry_out(job, session, partial(_sample, job, inputs, console))
            if processes.is_main and "validation" in inputs.packs:
                figures |= _measured(inputs, figures, processes.device, console, watch)
                figures |= _judged(job, figures, console)
            return {**figures, "seconds": round(clock.seconds(), 3)}


def check(config: Config, sources: Sources, console: Console) -> dict[str, Any]:
    """Checks all that a run needs, without weights and without writing, and says what it found."""
    run_directory.check(config, COMMAND)
    inputs = completing.gather(config, sources, console, console.watch)
    with torch.device("meta"):
        parameters = build.causal_model(inputs.shape, seed=0).num_parameters()
    report = {
        "command": COMMAND,
        "run_dir": str(run_directory.locate(config, COMMAND)),
        "architecture": inputs.shape.model_type,
        "parameters": parameters,
        "max_length": inputs.config.data.max_length,
        "block_size": inputs.config.data.block_size,
        "global_batch_size": inputs.config.train.global_batch_size,
        **inputs.data.report,
    }
    return report if console.json else readable(report)


def _job(
    requested: Config, inputs: Inputs, model: PreTrainedModel, resumed: Checkpoint | None
) -> training.Job:
    rows, seed = inputs.packs["train"], inputs.config.seed
    rows_of_step = (
        partial(lengths.rows_of_step, lengths=rows.lengths, seed=seed)
        if rows.width is None
        else partial(order.rows_of_step, n_examples=len(rows), seed=seed)
    )
    loss = CompletionLoss(logits.has_linear_head(model), moe.balance(model))
    return training.Job(
        command=COMMAND,
        requested=requested,
        config=inputs.config,
        directory=run_directory.locate(requested, COMMAND),
        content=inputs.content,
        model=model,
        tokenizer=inputs.tokenizer,
        from_scratch=False,
        loss=loss,
        examples=rows,
        tokens_per_example=int(rows.lengths.mean()),
        rows_of_step=rows_of_step,
        validation=inputs.packs.get("validation"),
        loss_of_validation=lambda validation: loss,
        resumed=resumed,
        seen=partial(
            fingerprints.of_rows, [each.opening for each in inputs.data.train], inputs.tokenizer
        ),
        unit="tokens",
    )


def _sample(job: training.Job, inputs: Inputs, console: Console) -> dict[str, Any]:
    """What the model responds to a held-out prompt by now, shown and noted."""
    messages = _messages((inputs.data.validation or inputs.data.train)[:1])
    settings = job.config.generation
    seed = job.config.seed if settings.seed is None else settings.seed
    ids = prompts.chat_ids(messages[0][:-1], inputs.tokenizer)
    texts = generate.continuations(job.model, job.tokenizer, ids, settings, seed)
    for text in texts:
        console.say(f"  sample: {messages[0][-2]['content']!r} -> {text!r}")
    return {"samples": texts}


def _measured(
    inputs: Inputs,
    figures: dict[str, Any],
    device: torch.device,
    console: Console,
    watch: Watch,
) -> dict[str, Any]:
    """The finished model, read back from `final/`, on the responses that were held out, and as many
    of its own as are asked for; everything goes to `evaluation.json`."""
    directory = Path(figures["run_dir"])
    final = load.load_model(open_model(figures["model_dir"])).to(device).eval()
    measured = measure_responses(final, inputs.packs["validation"], watch)
    if asked := _answerable(inputs, console):
        measured["answers"] = _answered(inputs, final, asked, directory, watch)
    text = json.dumps({"validation": measured}, ensure_ascii=False, indent=1)
    atomic.replace_text(directory / "evaluation.json", text + "\n")
    shown = dict(measured)
    if "answers" in measured:
        numbers = measured["answers"].items()
        shown["answers"] = {name: each for name, each in numbers if isinstance(each, int | float)}
    return {"validation": shown}


def _judged(job: training.Job, figures: dict[str, Any], console: Console) -> dict[str, Any]:
    """The baseline beside the figures; warns where they show that little was learned."""
    assert job.validation is not None
    unigram = unigram_figures(job.loss.figures, job.examples, job.validation)
    for text in verdicts.of_language_model(figures["validation"], unigram, figures["train_loss"]):
        console.warn(text)
    return {"baseline": {"unigram": unigram}}


def _answered(
    inputs: Inputs,
    final: PreTrainedModel,
    asked: Sequence[Conversation],
    directory: Path,
    watch: Watch,
) -> dict[str, Any]:
    """The figures of what the model itself responds to held-out prompts; each goes to
    `samples.jsonl`."""
    config, settings = inputs.config, inputs.config.generation
    seed = config.seed if settings.seed is None else settings.seed
    engine = Engine(final, inputs.tokenizer, settings.micro_batch_size)
    sampler = engine.sampler(settings)
    with watch("responding", len(asked)) as advance:
        texts = generate.answers(engine, _messages(asked), sampler, seed, advance)
    pairs = Pairs(
        references=[each.contents[-1] for each in asked],
        prompts=[each.contents[-2] for each in asked],
        places=[(each.path, each.number) for each in asked],
    )
    outputs.write_lines(directory / "samples.jsonl", references.samples(pairs, texts))
    made_by = {**settings.model_dump(mode="json"), "precision": "fp32"}
    protocol = {"words": references.WORDS, "generation": made_by}
    return {**references.score(texts, pairs.references, config.seed), "protocol": protocol}


def _answerable(inputs: Inputs, console: Console) -> list[Conversation]:
    """The first held-out conversations whose last prompt the model can read as a whole."""
    length, held_out = inputs.config.data.max_length, inputs.data.validation
    assert isinstance(length, int)
    asked: list[Conversation] = []
    too_long = 0
    for each, messages in zip(held_out, _messages(held_out), strict=True):
        if len(asked) == inputs.config.evaluation.responses:
            break
        if len(prompts.chat_ids(messages[:-1], inputs.tokenizer)) < length:
            asked.append(each)
        else:
            too_long += 1
    if too_long:
        console.warn(f"{too_long:,} held-out prompts are too long to be answered, and passed over")
    return asked


def _messages(some: Sequence[Conversation]) -> list[list[dict[str, str]]]:
    """Conversations as chat templates take them."""
    return [[message._asdict() for message in each.messages] for each in some]
