"""Every key that a config may hold, with its type, its default and what it means.

The field docstrings are the documentation: the README's table, the JSON schema and the error
messages are made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
"""`auto`: llmkit measures or chooses, prints the choice with its reason, and records it."""

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _tab(value: Any) -> Any:
    return "\t" if value in ("tab", "\\t") else value


Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Files = Annotated[
    tuple[str, ...],
    BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...]),
    Field(strict=False),
]


Column = str | Whole
"""A column of a table, by its name, or by its number from 0."""
Columns = Annotated[tuple[Column, ...], Field(strict=False, min_length=1)]
Delimiter = Annotated[
    str, BeforeValidator(_tab, json_schema_input_type=str), Field(pattern=r"^[^\r\n\"]$")
]
Fault = Literal["blank", "one_row_classes", "unseen_labels"]
Faults = Annotated[
    tuple[Fault, ...],
    BeforeValidator(_several, json_schema_input_type=Fault | tuple[Fault, ...]),
    Field(strict=False),
]


class Section(BaseModel):
    """A part of the config: frozen, strict, and without room for unknown keys."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """Which model: one that exists, or an architecture of transformers built anew."""

    name_or_path: str | None = None
    """Hub name, directory, or run directory of a model to continue from; none builds a new one."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    architecture: str = "llama"
    """Model type of transformers to build when `name_or_path` is not given."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the transformers config class (`hidden_size`, `num_hidden_layers`, ...)."""


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
    """Column of the label, by name or by number from 0; several columns of 0 and 1 are one label
    each."""
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
    weight_decay: Rate = 0.1
    """Decoupled weight decay of matrices; biases, norms and embeddings have none."""
    adam_beta1: Fraction = 0.9
    """Decay rate of AdamW's first moment."""
    adam_beta2: Fraction = 0.95
    """Decay rate of AdamW's second moment."""
    adam_epsilon: Rate = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; `null` leaves them."""
    max_nonfinite_steps: Count = 5
    """Steps in a row refused for a loss or gradient that is no number before the run stops."""
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


class GenerationConfig(Section):
    """How text is sampled: during training, and by `generate`."""

    max_new_tokens: Count = 64
    """Most tokens of one continuation."""
    do_sample: bool = True
    """Draw tokens by their probability; `false` always takes the likeliest."""
    temperature: Positive = 0.8
    """Below 1 sharper, above 1 flatter probabilities."""
    top_k: Whole = 50
    """Draw from this many likeliest tokens only; 0 from all."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Draw from the likeliest tokens that hold this probability together."""
    num_return_sequences: Count = 2
    """Continuations per prompt."""
    seed: Whole | None = None
    """Seed of sampling; the run's `seed` if not given."""


class Config(Section):
    """The whole config of a command."""

    output_dir: str | None = None
    """The run directory; without it `runs/` and a name made from the command and its config."""
    seed: Whole = 0
    """Seed of weights, order of examples, dropout and sampling."""
    resume: str = "auto"
    """`auto` goes on from the newest good checkpoint, `never` starts anew, or a checkpoint."""
    report_to: Files = ()
    """Trackers besides the run directory's own files: `tensorboard`, `wandb`."""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    generation: GenerationConfig = GenerationConfig()
