"""Every key that a config may hold, with its type, its default and what it means.

The field docstrings are the documentation: the README's table, the JSON schema and the error
messages are made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from llmkit.config.evaluation import EvaluationConfig as EvaluationConfig
from llmkit.config.evaluation import PredictConfig as PredictConfig
from llmkit.config.generation import GenerationConfig as GenerationConfig
from llmkit.config.mixture import DomainConfig, check_mixture, check_temperature
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
    """Low-rank updates beside the weights of a model to finetune, which stay as they are."""

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
    """Model type of transformers to build when `name_or_path` is not given; `auto` is `qwen3` to
    pretrain and `modernbert` to pretrain with masks and to finetune."""
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
    chat_template: str = "auto"
    """How a conversation is written to finetune a completion: the file of a Jinja template, `plain`
    (prompt and response as they are), or `auto`: the tokenizer's own, else one with headings."""


class DataConfig(Section):
    """Which text, and how it becomes examples."""

    train_files: Files = ()
    """Files, directories, globs, or hub data sets (`hub:NAME`, `hub:NAME:CONFIG@SPLIT`)."""
    validation_files: Files = ()
    """Held-out data; without it a part of the training data is held out."""
    test_files: Files = ()
    """Data that is only measured: what `evaluate` reads."""
    mixture: dict[str, DomainConfig] = Field(default_factory=dict)
    """Domains to mix, instead of `train_files`."""
    mixture_temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Domains without weights weigh tokens ^ (1 / this): 1 draws all texts equally often, a large
    number all domains."""
    validation_fraction: Fraction | Auto = "auto"
    """Share of the training data that is held out; `auto` is a tenth, of text at most 2 MB."""
    format: Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet", "label_text", "fasttext"] = (
        "auto"
    )
    """Format of the files; `auto` recognises their content, and otherwise goes by name."""
    delimiter: Delimiter | Auto = "auto"
    """Field separator of CSV and TSV files, such as `;` or `tab`; `auto` finds it."""
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
    prompt_column: Column | Columns | None = None
    """Column of the prompt that a completion follows, by name or by number from 0; several are
    joined by a blank line; found, if not given, by a usual name."""
    response_column: Column | None = None
    """Column of the response to the prompt, by name or by number from 0."""
    messages_column: Column | None = None
    """Column of whole conversations instead: lists of messages, each with `role` and `content`."""
    problem_type: Literal[
        "auto", "single_label_classification", "multi_label_classification", "regression"
    ] = "auto"
    """What a label is; `auto` goes by the labels."""
    max_length: Annotated[int, Field(strict=True, ge=3)] | Auto = "auto"
    """Tokens of a classified text or of a conversation, the rest is cut; `auto` is what the model
    takes."""
    allow: Faults = ()
    """Faults of labelled data that need not stop the run."""
    document: Literal["file", "line", "blank_line"] = "file"
    """What one document of a plain text file is; in tables a row is a document."""
    document_separator: Annotated[str, Field(min_length=1)] | None = None
    """String between the documents of plain text files, such as `</s>`, instead of `document`;
    it is matched exactly and belongs to no document."""
    encoding: str = "utf-8"
    """Encoding of text files."""
    errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that the encoding does not allow."""
    block_size: Annotated[int, Field(strict=True, ge=2)] | Auto = "auto"
    """Tokens in one training example."""
    isolate_documents: bool = True
    """Documents packed into one block do not see each other."""

    @field_validator("mixture")
    @classmethod
    def _check_mixture(
        cls, mixture: dict[str, DomainConfig], info: ValidationInfo
    ) -> dict[str, DomainConfig]:
        return check_mixture(mixture, info.data)

    @field_validator("document_separator")
    @classmethod
    def _check_separator(cls, separator: str | None, info: ValidationInfo) -> str | None:
        if separator is not None and info.data.get("document", "file") != "file":
            raise ValueError("separates documents itself: leave data.document out")
        return separator

    @field_validator("mixture_temperature")
    @classmethod
    def _check_temperature(cls, temperature: float, info: ValidationInfo) -> float:
        return check_temperature(temperature, info.data)


class TrainConfig(Section):
    """How the weights are trained."""

    objective: Literal["auto", "causal", "masked", "classification", "completion"] = "auto"
    """What is learned: to pretrain, each token from those before it (`causal`) or hidden ones from
    those around them (`masked`), where `auto` goes by the model; to finetune, a label
    (`classification`, which is `auto`) or the response to a prompt (`completion`)."""
    mask_probability: Annotated[float, Field(gt=0, lt=1)] | Auto = "auto"
    """Share of the tokens that a masked model has to predict; `auto` is 0.15, and 0.3 for models
    after BERT, such as ModernBERT."""
    whole_word_masking: bool = False
    """Hide whole words instead of tokens."""
    max_steps: Whole | None = None
    """Stop after this many optimizer steps."""
    num_train_epochs: Positive | None = None
    """Stop after this many passes over the training data; a fraction will do. Of a mixture, one
    pass is as many examples as its domains with a weight hold together."""
    max_minutes: Positive | None = None
    """Stop after this many minutes, everything included; the schedule ends with them, and at the
    latest when a new causal model has seen its text four times, if nothing else limits the run."""
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
    """Decoupled weight decay of matrices, biases and norms have none; `auto` is 0.01 to finetune,
    0.1 to pretrain, and up to 2 the more often new weights see the same text."""
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
    """Arithmetic of the forward and backward pass; weights are always kept in fp32. On a GPU, fp32
    multiplies matrices in TF32 while it trains; validation is in true fp32."""
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
    """Validation figure that the best checkpoint is best in, of one domain of a mixture such as
    `loss/novels`; `auto` is `f1_macro` for a classifier and `loss` for everything else."""
    load_best_model_at_end: bool | Auto = "auto"
    """Whether `final/` is the best checkpoint or the last; `auto` is `true` to finetune, and to
    pretrain for more than one epoch."""
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
    head_scale: Positive | Auto = "auto"
    """Factor on the learning rate of a classifier's head; `auto` is 5 for a new head on a model
    that exists, all of which is trained, and 1 otherwise."""


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
