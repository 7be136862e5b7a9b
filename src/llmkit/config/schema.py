"""Every key that a config may hold, with its type, its default and what it means.

The field docstrings are the documentation: the README's table, the JSON schema and the error
messages are made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llmkit.config.generation import GenerationConfig as GenerationConfig
from llmkit.config.types import (
    Auto,
    Column,
    Columns,
    Count,
    Delimiter,
    Faults,
    Files,
    Fraction,
    Positive,
    Rate,
    Revision,
    Section,
    Trackers,
    Whole,
    several,
)


class LoraConfig(Section):
    """Low-rank updates beside the weights of a classifier, which stay as they are."""

    r: Count | None = None
    """Rank of the updates (Hu et al. 2021); without it every weight is trained."""
    alpha: Positive | Auto = "auto"
    """The updates are scaled by alpha / r; `auto` is twice the rank."""
    dropout: Fraction = 0.0
    """Dropout of what goes into the updates."""
    target_modules: (
        Annotated[
            tuple[str, ...],
            BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
            Field(strict=False, min_length=1),
        ]
        | Auto
    ) = "auto"
    """Names of the layers that get updates, such as `query`; `auto` is every linear one."""


class ModelConfig(Section):
    """Which model: one that exists, or an architecture of transformers built anew."""

    name_or_path: str | None = None
    """Hub name, directory, or run directory of a model to continue from; none builds a new one."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    architecture: str = "auto"
    """Model type of transformers to build when `name_or_path` is not given; `auto` is `llama` to
    pretrain and `modernbert` to finetune."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the transformers config class (`hidden_size`, `num_hidden_layers`, ...); of a
    model that exists, `finetune` can set the dropout."""
    code: str | None = None
    """File of Python that registers an architecture of your own; runs only with `--allow-code`."""
    lora: LoraConfig = LoraConfig()


class TokenizerConfig(Section):
    """Which tokenizer: one that exists, or a byte-level BPE trained on the training text."""

    name_or_path: str | None = None
    """Hub name or directory; the model's own when a model is named; none trains one."""
    vocab_size: Annotated[int, Field(strict=True, ge=257)] | Auto = "auto"
    """Size of a trained vocabulary; `auto` goes by the amount of text."""


class DataConfig(Section):
    """Which text, and how it becomes examples."""

    train_files: Files = ()
    """Files, directories, globs, or hub data sets (`hub:NAME`, `hub:NAME:CONFIG@SPLIT`)."""
    validation_files: Files = ()
    """Held-out data; without it a part of the training data is held out."""
    test_files: Files = ()
    """Data that is only measured: what `evaluate` reads."""
    validation_fraction: Fraction | Auto = "auto"
    """Share of the training data that is held out; `auto` is a tenth, of text at most 2 MB."""
    format: Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet", "label_text", "fasttext"] = (
        "auto"
    )
    """What the files are; `auto` goes by their names, and for labelled text by their lines."""
    delimiter: Delimiter | Auto = "auto"
    """What parts the fields of a csv or tsv, such as `;` or `tab`; `auto` finds it."""
    header: bool | Auto = "auto"
    """Whether the first row of a csv or tsv names its columns; `auto` looks at it."""
    text_column: Column | Columns | None = None
    """Column of the text, by name or by number from 0; of two, the classifier gets a pair, more are
    joined by a space; found, if not given, where only one column can be meant."""
    label_column: Column | Columns | None = None
    """Column of the label, by name or by number from 0; white space around a label is no part of
    it; several columns of 0 and 1 are one label each."""
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    """What parts the labels of one row, such as `,`: a row may have none, one or several."""
    label_names: str | None = None
    """File with the name of label 0 in its first line, of label 1 in its second, and so on."""
    problem_type: Literal[
        "auto", "single_label_classification", "multi_label_classification", "regression"
    ] = "auto"
    """What a label is; `auto` goes by the labels."""
    max_length: Annotated[int, Field(strict=True, ge=3)] | Auto = "auto"
    """Tokens of a classified text, the rest is cut; `auto` is what the model takes."""
    allow: Faults = ()
    """Faults of labelled data that need not stop the run."""
    document: Literal["file", "line", "blank_line"] = "file"
    """What one document of a plain text file is; in tables a row is a document."""
    encoding: str = "utf-8"
    """Encoding of text files."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that the encoding does not allow."""
    block_size: Annotated[int, Field(strict=True, ge=2)] | Auto = "auto"
    """Tokens in one training example."""
    isolate_documents: bool = True
    """Documents packed into one block do not see each other."""


class TrainConfig(Section):
    """How the weights are trained."""

    max_steps: Whole | None = None
    """Stop after this many optimizer steps."""
    num_train_epochs: Positive | None = None
    """Stop after this many passes over the training data; a fraction will do."""
    max_minutes: Positive | None = None
    """Stop after this many minutes, everything included; the schedule ends with them."""
    plan: tuple[Revision, ...] = Field(default=(), strict=False)
    """Recorded plan of a run that was limited by minutes, `[step, total steps]` each: it is
    followed instead of the clock, and gives the same weights again."""
    global_batch_size: Count | Auto = "auto"
    """Sequences per optimizer step over all processes."""
    micro_batch_size: Count | Auto = "auto"
    """Sequences that one device computes at once; changes no result."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """`muon` for the hidden matrices with AdamW for the rest, or AdamW for all."""
    learning_rate: Positive | Auto = "auto"
    """Highest learning rate of the schedule."""
    lr_scheduler_type: Literal["auto", "constant", "linear", "cosine", "warmup_stable_decay"] = (
        "auto"
    )
    """Shape of the learning rate after its warm-up."""
    warmup_steps: Whole | Fraction | Auto = "auto"
    """Steps of linear warm-up; a number below 1 is a share of all steps."""
    weight_decay: Rate | Auto = "auto"
    """Decoupled weight decay of matrices, biases and norms have none; `auto` is 0.1 to pretrain and
    0.01 to finetune."""
    adam_beta1: Fraction = 0.9
    """Decay rate of AdamW's first moment."""
    adam_beta2: Fraction | Auto = "auto"
    """Decay rate of AdamW's second moment; `auto` is 0.95 to pretrain and 0.999 to finetune."""
    adam_epsilon: Rate = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; `null` leaves them."""
    max_nonfinite_steps: Count = 5
    """Steps in a row refused for a loss or gradient that is no number before the run stops."""
    loss_spike: Literal["warn", "skip", "stop"] = "warn"
    """What to do with a step whose loss is six standard deviations above the 128 before it: note
    it, note it and leave the weights as they are, or stop the run there."""
    ddp_timeout: Count = 1800
    """Seconds that one of several processes waits for the others before the run ends."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; weights are always kept in fp32."""
    compile: bool | Auto = "auto"
    """torch.compile; `auto` uses it where it earns back its own time."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    logging_steps: Count | Auto = "auto"
    """Steps between two lines of the training loss."""
    eval_steps: Count | Auto = "auto"
    """Steps between two measurements on the validation data."""
    save_steps: Count | Auto = "auto"
    """Steps between two checkpoints."""
    save_total_limit: Annotated[int, Field(strict=True, ge=2)] = 2
    """Newest checkpoints kept; the best one is kept besides."""
    metric_for_best_model: str = "auto"
    """Validation figure that the best checkpoint is best in; `auto` is `f1_macro` for a classifier
    and `loss` for everything else."""
    load_best_model_at_end: bool | Auto = "auto"
    """Whether `final/` is the best checkpoint or the last; `auto` is `true` to finetune only."""
    early_stopping_patience: Count | None = None
    """Stop after this many validations in a row that were not the best."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs a class by the inverse of its frequency."""
    label_smoothing_factor: Fraction = 0.0
    """Share of each label that is spread over all labels of a classifier."""
    freeze: Literal["none", "embeddings", "body"] = "none"
    """Weights of a classifier that stay as they are; `body` is all but its head."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on a classifier's learning rate from each layer to the one below."""


class PredictConfig(Section):
    """How `predict` reads and writes."""

    output: str | None = None
    """File for the predictions, `.jsonl` or `.csv`; without it they go to stdout."""
    format: Literal["auto", "jsonl", "csv"] = "auto"
    """`auto` goes by the name of the output, and is `jsonl` for stdout."""
    columns: Files = ()
    """Columns of the input to repeat in the output; `*` is all that are not text."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto` is bf16 where the hardware has it, which moves probabilities by about
    0.01. fp32 gives what plain transformers gives."""


class EvaluationConfig(Section):
    """What `evaluate` measures, and how."""

    window: Annotated[int, Field(strict=True, ge=2)] | Auto = "auto"
    """Tokens that the model sees at once; `auto` is its whole context, at most 4096."""
    stride: Count | Auto = "auto"
    """Tokens by which the window moves on; `auto` is the window, so that no two overlap."""
    documents: Literal["packed", "separate", "joined"] = "packed"
    """`packed`: windows are cut from all documents in a row, as in pretraining, and none sees
    another; `separate`: each begins a window; `joined`: all are one text."""
    bos: Literal["document", "window"] = "document"
    """Where the opening token stands: before each document, or before each window."""
    score_end: bool = True
    """Score the end of each document too, as in pretraining."""
    batch_tokens: Count | Auto = "auto"
    """Tokens that one device reads at once; changes no result."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; `auto` is bf16 where the hardware has it, fp32 gives what transformers gives."""
    compare_with: Files = ()
    """More models, measured on the same bytes and compared in pairs."""
    by_document: bool = False
    """A table with a row for each document."""
    by_domain: bool = False
    """A table with a row for each domain: each file, or each value of `domain_column`."""
    domain_column: str | Whole | None = None
    """Column of the domain, by name or by number from 0."""
    per_token: str | None = None
    """File for a web page that shades each token by its surprise."""
    log_samples: str | None = None
    """File for everything that was scored, as JSON lines."""
    output: str | None = None
    """File for the result: `.json` for machines, any other name for people."""
    prompt_column: str | Whole | None = None
    """Column of prompts, to which the model writes what `reference_column` is compared with."""
    prediction_column: str | Whole | None = None
    """Column of texts that were written already."""
    reference_column: str | Whole | None = None
    """Column of the text that should have been written; with it, texts are compared."""
    worst: Whole = 10
    """Worst mistakes of a classifier that are shown with their text."""
    tasks: Files = ()
    """Tasks of lm-evaluation-harness: names, or files and directories of task definitions."""
    task_limit: Count | None = None
    """Examples of each task that are run; all if not given."""


class Config(Section):
    """The whole config of a command."""

    output_dir: str | None = None
    """The run directory; without it `runs/` and a name made from the command and its config."""
    seed: Whole = 0
    """Seed of weights, order of examples, dropout and sampling."""
    resume: str = "auto"
    """`auto` goes on from the newest good checkpoint, `never` starts anew, or a checkpoint."""
    report_to: Trackers = ()
    """Trackers besides the run directory's own files: `tensorboard`, `wandb`."""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    generation: GenerationConfig = GenerationConfig()
    predict: PredictConfig = PredictConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
