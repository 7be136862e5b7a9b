"""The config schema: type, default, meaning and scope of every key.

The docstring of a field documents its key, and `For` names the commands and tasks that the key, or
its section, applies to. The key tables, the JSON schema, `llmkit keys` and error messages are
generated from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from llmkit.config.inference import EvaluationConfig as EvaluationConfig
from llmkit.config.inference import GenerationConfig as GenerationConfig
from llmkit.config.inference import PredictConfig as PredictConfig
from llmkit.config.jobs import TASKS, For
from llmkit.config.types import (
    AllowedFaults,
    Auto,
    Column,
    ColumnNames,
    Count,
    Delimiter,
    Encoding,
    FilePath,
    Files,
    Fraction,
    NameOrPath,
    PlanRevision,
    Positive,
    Rate,
    Section,
    Trackers,
    Whole,
    rule,
    several,
)

EVERYWHERE = For(*TASKS)
NOT_PREDICT = For("pretrain", "finetune", "generate", "chat", "evaluate")
TRAINING = For("pretrain", "finetune")
NEW_MODEL = For("pretrain", "finetune/classification")
MASKED = For("pretrain/masked")
CLASSIFIER = For("finetune/classification")
COMPLETION = For("finetune/completion")
LABELS = For("finetune/classification", "evaluate/labels")
TABLES = For("pretrain", "finetune", "predict", "generate", "evaluate")
"""The commands that read files of text or rows."""


class LoraConfig(Section):
    """Low-rank updates that are trained beside the frozen weights of a pretrained model."""

    r: Count | None = None
    """Rank of the low-rank updates (Hu et al. 2021); by default all weights are trained."""
    alpha: Positive | Auto = "auto"
    """The updates are scaled by alpha / r; `auto` is twice the rank."""
    dropout: Fraction = 0.0
    """Dropout on the input of the updates."""
    target_modules: (
        Annotated[
            tuple[str, ...],
            BeforeValidator(several, json_schema_input_type=str | tuple[str, ...]),
            Field(strict=False, min_length=1),
        ]
        | Auto
    ) = "auto"
    """Names of the layers to update, such as `query`; `auto` is every linear layer."""


class ModelConfig(Section):
    """The model: a pretrained one, or a new one of any transformers architecture."""

    name_or_path: Annotated[NameOrPath | None, EVERYWHERE] = None
    """Hub name, directory or run directory of a pretrained model; by default a new model is
    built."""
    revision: Annotated[str | None, EVERYWHERE] = None
    """Branch, tag or commit of a model on the hub."""
    architecture: Annotated[str, NEW_MODEL] = "auto"
    """Model type of transformers for a new model. `auto` is `qwen3` for a causal model, or `llama`
    if the text calls for a very small one, and `modernbert` for a masked model or a classifier."""
    config: Annotated[dict[str, Any], NEW_MODEL] = Field(default_factory=dict)
    """Settings of the transformers config class (`hidden_size`, `num_hidden_layers`, ...). For a
    pretrained model, `finetune` accepts its dropout settings."""
    code: Annotated[FilePath | None, EVERYWHERE] = None
    """Python file that registers your own architecture; runs only with `--allow-code`."""
    lora: Annotated[LoraConfig, For("finetune")] = LoraConfig()


class TokenizerConfig(Section):
    """The tokenizer: an existing one, or a byte-level BPE trained on the training text."""

    name_or_path: Annotated[NameOrPath | None, NOT_PREDICT] = None
    """Hub name or directory; by default the pretrained model's tokenizer, or a new one that is
    trained for a new model."""
    vocab_size: Annotated[Annotated[int, Field(strict=True, ge=257)] | Auto, NEW_MODEL] = "auto"
    """Vocabulary size of a new tokenizer; `auto` depends on the amount of text."""
    chat_template: Annotated[NameOrPath, COMPLETION] = "auto"
    """How conversations are formatted: a Jinja file, `plain` (prompt and response unchanged), or
    `auto`: the tokenizer's own template, otherwise one with headings."""


class DomainConfig(Section):
    """One domain of a mixture."""

    files: Files = ()
    """Text of the domain: files, directories, globs, or hub data sets."""
    validation_files: Files = ()
    """Held-out text of the domain; by default a part of its text is held out."""
    weight: Rate | Auto = "auto"
    """The domain's share of the training examples is its weight divided by the sum of all weights;
    a domain of weight 0 is only evaluated. `auto`, for all domains or none, weights by size: see
    `data.mixture_temperature`."""


class DataConfig(Section):
    """The data, and how it becomes examples."""

    train_files: Annotated[Files, For("pretrain", "finetune", "evaluate/labels")] = ()
    """Files, directories, globs, or hub data sets (`hub:NAME`, `hub:NAME:CONFIG@SPLIT`)."""
    validation_files: Annotated[Files, TRAINING] = ()
    """Held-out data; by default a part of the training data is held out."""
    test_files: Annotated[Files, For("finetune/classification", "predict", "evaluate")] = ()
    """Data to predict or evaluate; `finetune` evaluates a classifier on it at the end."""
    mixture: Annotated[dict[str, DomainConfig], For("pretrain", "evaluate/text")] = Field(
        default_factory=dict
    )
    """Domains to mix, instead of `train_files`."""
    mixture_temperature: Annotated[
        float, Field(ge=1, allow_inf_nan=False), For("pretrain", "evaluate/text")
    ] = 1.0
    """Domains without weights are sampled in proportion to tokens ^ (1 / temperature): 1 samples
    all texts equally often, a large number all domains."""
    validation_fraction: Annotated[
        Fraction | Auto, For("pretrain", "finetune", "evaluate/text")
    ] = "auto"
    """Fraction of the training data to hold out; `auto` is 0.1, for text at most 2 MB."""
    format: Annotated[
        Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet", "label_text", "fasttext"], TABLES
    ] = "auto"
    """Format of the files; `auto` recognises it by content, otherwise by file name."""
    delimiter: Annotated[Delimiter | Auto, TABLES] = "auto"
    """Field separator of CSV and TSV files, such as `;` or `tab`; `auto` detects it."""
    header: Annotated[bool | Auto, TABLES] = "auto"
    """Whether the first row of a CSV or TSV file names the columns; `auto` detects it."""
    text_column: Annotated[
        Column | ColumnNames | None,
        For(
            "pretrain", "finetune/classification", "predict", "generate", "evaluate/text",
            "evaluate/labels",
        ),
    ] = None  # fmt: skip
    """Column of the text, by name or by number from 0. Two columns are a text pair for a
    classifier; more are joined by a space. By default detected if only one column is possible."""
    label_column: Annotated[Column | ColumnNames | None, LABELS] = None
    """Column of the label, by name or by number from 0; white space around labels is removed.
    With several columns of 0 and 1, each is one label."""
    label_separator: Annotated[Annotated[str, Field(min_length=1)] | None, LABELS] = None
    """Separator of several labels in one field, such as `,`; a row may have none."""
    label_names: Annotated[FilePath | None, LABELS] = None
    """File with label names: label 0 in the first line, label 1 in the second, and so on."""
    prompt_column: Annotated[Column | ColumnNames | None, COMPLETION] = None
    """Column of the prompt, by name or by number from 0; several are joined by a blank line. By
    default detected by common names."""
    response_column: Annotated[Column | None, COMPLETION] = None
    """Column of the response to the prompt, by name or by number from 0."""
    messages_column: Annotated[Column | None, COMPLETION] = None
    """Column of conversations, instead of prompts and responses: lists of messages, each with
    `role` and `content`."""
    problem_type: Annotated[
        Literal["auto", "single_label_classification", "multi_label_classification", "regression"],
        LABELS,
    ] = "auto"
    """Kind of label; `auto` detects it from the labels."""
    max_length: Annotated[Annotated[int, Field(strict=True, ge=3)] | Auto, For("finetune")] = "auto"
    """Maximum number of tokens of a text or conversation; longer ones are truncated. `auto` is the
    maximum length of the model."""
    allow: Annotated[AllowedFaults, LABELS] = ()
    """Data problems to tolerate instead of stopping."""
    document: Annotated[Literal["file", "line", "blank_line"], For("pretrain", "evaluate/text")] = (
        "file"
    )
    """What counts as one document in plain text files; in tables, each row is a document."""
    document_separator: Annotated[
        Annotated[str, Field(min_length=1)] | None, For("pretrain", "evaluate/text")
    ] = None
    """String between the documents of plain text files, such as `</s>`, instead of `document`;
    it is matched exactly and removed."""
    encoding: Annotated[Encoding, TABLES] = "utf-8"
    """Encoding of text files."""
    errors: Annotated[Literal["strict", "replace", "ignore"], TABLES] = "strict"
    """What to do with bytes that are invalid in the encoding."""
    block_size: Annotated[
        Annotated[int, Field(strict=True, ge=2)] | Auto, For("pretrain", "finetune/completion")
    ] = "auto"
    """Number of tokens in one training sequence."""
    isolate_documents: Annotated[bool, For("pretrain")] = True
    """Documents packed into one block do not attend to one another."""

    @field_validator("mixture")
    @classmethod
    def _check_mixture(
        cls, mixture: dict[str, DomainConfig], info: ValidationInfo
    ) -> dict[str, DomainConfig]:
        return _checked_mixture(mixture, info.data)

    @field_validator("document_separator")
    @classmethod
    def _check_separator(cls, separator: str | None, info: ValidationInfo) -> str | None:
        if separator is not None and info.data.get("document", "file") != "file":
            raise ValueError("cannot be combined with data.document; remove one")
        return separator

    @field_validator("mixture_temperature")
    @classmethod
    def _check_temperature(cls, temperature: float, info: ValidationInfo) -> float:
        return _checked_temperature(temperature, info.data)


class TrainConfig(Section):
    """How the weights are trained."""

    objective: Literal["auto", "causal", "masked", "classification", "completion"] = "auto"
    """What to learn. `pretrain`: each token from those before it (`causal`), or masked tokens from
    those around them (`masked`); `auto` follows the model. `finetune`: a label (`classification`,
    the default) or the response to a prompt (`completion`)."""
    mask_probability: Annotated[Annotated[float, Field(gt=0, lt=1)] | Auto, MASKED] = "auto"
    """Fraction of tokens to mask and predict; `auto` is 0.15, and 0.3 for models after BERT, such
    as ModernBERT."""
    whole_word_masking: Annotated[bool, MASKED] = False
    """Mask whole words instead of tokens."""
    max_steps: Whole | None = None
    """Stop after this many optimizer steps."""
    num_train_epochs: Positive | None = None
    """Stop after this many passes over the training data; may be a fraction. For a mixture, one
    pass is as many examples as all domains with a weight contain."""
    max_minutes: Positive | None = None
    """Stop after this many minutes in total; the schedule is planned to end with them. Without
    another limit, a new causal model stops after four epochs."""
    plan: tuple[PlanRevision, ...] = Field(default=(), strict=False)
    """Recorded plan of a time-limited run, a list of `[step, total steps]`; following it instead of
    the clock reproduces the weights."""
    global_batch_size: Count | Auto = "auto"
    """Sequences per optimizer step over all processes."""
    micro_batch_size: Count | Auto = "auto"
    """Sequences that one device computes at once; changes no result."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """`muon` uses Muon for hidden matrices and AdamW for the rest; `adamw` uses AdamW for all."""
    learning_rate: Positive | Auto = "auto"
    """Peak learning rate of the schedule."""
    lr_scheduler_type: Literal["auto", "constant", "linear", "cosine", "warmup_stable_decay"] = (
        "auto"
    )
    """Schedule of the learning rate after the warm-up."""
    warmup_steps: Whole | Fraction | Auto = "auto"
    """Steps of linear warm-up; a number below 1 is a fraction of all steps."""
    weight_decay: Rate | Auto = "auto"
    """Decoupled weight decay of matrices; biases and norms get none. `auto` is 0.01 to finetune,
    0.1 to pretrain, and up to 2 as new weights see the same text more often."""
    adam_beta1: Fraction = 0.9
    """Decay rate of AdamW's first moment."""
    adam_beta2: Fraction | Auto = "auto"
    """Decay rate of AdamW's second moment; `auto` is 0.95 to pretrain and 0.999 to finetune."""
    adam_epsilon: Rate = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Positive | None = 1.0
    """Clip gradients to this norm; `null` does not clip."""
    max_nonfinite_steps: Count = 5
    """Stop after this many consecutive steps with a NaN or infinite loss or gradient."""
    loss_spike: Literal["warn", "skip", "stop"] = "warn"
    """What to do when a step's loss is more than six standard deviations above the previous 128:
    `warn`, `skip` the update, or `stop`."""
    ddp_timeout: Count = 1800
    """Seconds that a process waits for the other ranks before the run fails."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the forward and backward pass; weights are always kept in fp32. On a GPU, fp32
    uses TF32 matrix products for training, and true fp32 for validation."""
    compile: bool | Auto = "auto"
    """Whether to use torch.compile; `auto` uses it if it saves more time than it takes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    logging_steps: Count | Auto = "auto"
    """Number of steps between reports of the training loss."""
    eval_steps: Count | Auto = "auto"
    """Number of steps between validations."""
    max_eval_samples: Count | Auto = "auto"
    """Number of validation examples to use during training, sampled once; `auto` is all, or as many
    as take a tenth of `max_minutes`."""
    save_steps: Count | Auto = "auto"
    """Number of steps between checkpoints."""
    save_total_limit: Annotated[int, Field(strict=True, ge=2)] = 2
    """Number of newest checkpoints to keep; the best one is kept as well."""
    metric_for_best_model: str = "auto"
    """Metric used to choose the best checkpoint; `loss/novels` is that of one domain of a mixture.
    `auto` is `f1_macro` for a classifier and `loss` otherwise."""
    load_best_model_at_end: bool | Auto = "auto"
    """Whether `final/` is the best checkpoint instead of the last; `auto` is `true` for `finetune`,
    and for `pretrain` with more than one epoch."""
    early_stopping_patience: Count | None = None
    """Stop after this many consecutive validations without a new best."""
    class_weights: Annotated[Literal["none", "balanced"], CLASSIFIER] = "none"
    """`balanced` weights each class by the inverse of its frequency."""
    label_smoothing_factor: Annotated[Fraction, CLASSIFIER] = 0.0
    """Fraction of each label that is spread over all labels."""
    freeze: Annotated[Literal["none", "embeddings", "body"], CLASSIFIER] = "none"
    """Weights to freeze; `body` is everything but the classification head."""
    layer_decay: Annotated[Annotated[float, Field(gt=0, le=1)], CLASSIFIER] = 1.0
    """Factor on the learning rate from each layer to the one below."""
    head_scale: Annotated[Positive | Auto, CLASSIFIER] = "auto"
    """Factor on the learning rate of the classification head; `auto` is 5 for a new head on a fully
    trained pretrained model, and 1 otherwise."""


class Config(Section):
    """The whole config of a command."""

    output_dir: Annotated[FilePath | None, TRAINING] = None
    """Run directory; by default `runs/`, the command, the name of the data and a number. The same
    command with the same config finds its directory again."""
    seed: Annotated[Whole, NOT_PREDICT] = 0
    """Seed of weights, order of examples, dropout and sampling."""
    resume: Annotated[NameOrPath, TRAINING] = "auto"
    """`auto` resumes from the newest intact checkpoint, `never` starts a new run; a path resumes
    from that checkpoint."""
    report_to: Annotated[Trackers, TRAINING] = ()
    """Trackers to log to besides the run directory: `tensorboard`, `wandb`."""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    train: Annotated[TrainConfig, TRAINING] = TrainConfig()
    generation: Annotated[
        GenerationConfig,
        For("generate", "chat", "pretrain", "finetune/completion", "evaluate/references"),
    ] = GenerationConfig()
    predict: Annotated[PredictConfig, For("predict")] = PredictConfig()
    evaluation: Annotated[EvaluationConfig, For("evaluate")] = EvaluationConfig()

    _typed: frozenset[tuple[str, ...]] = PrivateAttr(frozenset())
    """The paths of values from the command line."""

    @property
    def sampling_seed(self) -> int:
        """The seed that texts are written with: that of `generation`, else the run's."""
        return self.seed if self.generation.seed is None else self.generation.seed


def _checked_mixture(
    mixture: dict[str, DomainConfig], data: Mapping[str, Any]
) -> dict[str, DomainConfig]:
    """The mixture unchanged; raises an error for pydantic if its names, weights or other data keys
    are invalid. `data` holds the keys of the data section before it."""
    weights = {name: domain.weight for name, domain in mixture.items()}
    left_open = [name for name, weight in weights.items() if weight == "auto"]
    for name in mixture:
        if not re.fullmatch(r"[\w-]+", name):
            raise rule(f"the name {name!r} of a domain should be letters, digits, - and _")
    for key in ("train_files", "validation_files"):
        if mixture and data.get(key):
            raise rule(f"cannot be combined with data.{key}; remove one, or make that a domain")
    if left_open and len(left_open) < len(mixture):
        raise rule(f"{', '.join(left_open)} has no weight; set weights for all domains or for none")
    if mixture and not left_open and not any(weights.values()):
        raise rule(f"all weights are 0 ({', '.join(mixture)}); set one above 0")
    return mixture


def _checked_temperature(temperature: float, data: Mapping[str, Any]) -> float:
    """The temperature unchanged; raises an error for pydantic if all domains have weights."""
    mixture: Mapping[str, DomainConfig] = data.get("mixture", {})
    if temperature != 1 and any(domain.weight != "auto" for domain in mixture.values()):
        raise rule("applies to domains without weights; remove it, or the weights")
    return temperature
