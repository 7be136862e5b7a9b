"""The sections of a config on data: files, columns, domains and how they become examples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from llmkit.config.jobs import For
from llmkit.config.types import (
    AllowedFaults,
    Auto,
    Column,
    ColumnNames,
    Delimiter,
    Encoding,
    FilePath,
    Files,
    Fraction,
    Names,
    Rate,
    RowRange,
    Section,
    Share,
    expert_name,
    rule,
)

TRAINING = For("pretrain", "finetune")
COMPLETION = For("finetune/completion")
PAIRED = For("finetune/sequence_to_sequence")
_EVALUATED = ("evaluate/labels", "evaluate/tags", "evaluate/answers")
SOURCES = For(
    *PAIRED.jobs, "generate/sequence_to_sequence", "evaluate/references", "predict", "serve"
)
PREFERRED = For("finetune/preference", "evaluate/preferences")
RESPONDING = For("finetune/completion", "finetune/preference", "evaluate/preferences")
LABELS = For("finetune/classification", "evaluate/labels", "export")
TAGS = For("finetune/token_classification", "evaluate/tags")
LABELLED = For(
    "finetune/classification", "finetune/token_classification", "finetune/question_answering",
    "evaluate/labels", "evaluate/tags", "evaluate/answers", "export",
)  # fmt: skip
RAW_TEXT = For("pretrain", "evaluate/text", "merge")
DOCUMENTS = For(*RAW_TEXT.jobs, "clean")
"""The commands that read raw text, or the domains of a mixture."""
TABLES = For("pretrain", "finetune", "predict", "generate", "evaluate", "merge", "export", "clean")
"""The commands that read files of text or rows."""

FOUND = 4
"""Number of domains that are found by default."""


class DomainConfig(Section):
    """One domain of a mixture."""

    files: Files = ()
    """Text of the domain: files, directories, globs, or hub data sets."""
    validation_files: Files = ()
    """Held-out text of the domain; by default a part of its text is held out."""
    weight: Rate | Auto = "auto"
    """The domain's share of the training examples is its weight divided by the sum of all weights;
    a domain of weight 0 is only evaluated, and no part of the overall metrics. `auto`, for all
    domains or none, weights by size: see
    `data.mixture_temperature`."""


class DataConfig(Section):
    """The data, and how it becomes examples."""

    train_files: Annotated[Files, For(*TRAINING.jobs, *_EVALUATED, "clean")] = ()
    """Files, directories, globs, or hub data sets (`hub:NAME`, `hub:NAME:CONFIG@SPLIT`)."""
    validation_files: Annotated[Files, For(*TRAINING.jobs, "clean")] = ()
    """Held-out data; by default a part of the training data is held out. `clean` removes training
    data that is like it."""
    test_files: Annotated[
        Files,
        For(
            "finetune/classification",
            "finetune/token_classification",
            "finetune/question_answering",
            "predict",
            "evaluate",
            "export",
            "clean",
        ),
    ] = ()
    """Data to predict or evaluate; `finetune` evaluates a classifier or tagger on it at the end,
    `export` a classifier before and after, and `clean` removes training data that is like it."""
    train_rows: Annotated[RowRange | None, For("finetune")] = None
    """Rows of `train_files` to train on, as `START:STOP` like a Python slice: `:8000`, `8000:` or
    `-1000:`, numbered from 0 through all files. By default those that no other part takes."""
    validation_rows: Annotated[RowRange | None, For("finetune")] = None
    """Rows of `train_files` to hold out, instead of `validation_files`."""
    test_rows: Annotated[
        RowRange | None,
        For(
            "finetune/classification",
            "finetune/token_classification",
            "finetune/question_answering",
        ),
    ] = None
    """Rows of `train_files` to evaluate the finished model on, instead of `test_files`."""
    expert: Annotated[str | None, For("pretrain/causal")] = None
    """Domain of the mixture to train an expert of: the only one with a weight. The others are
    measured."""
    domains: Annotated[Literal["auto"] | None, RAW_TEXT] = None
    """`auto` finds domains in `train_files`: documents with similar words become a domain, none
    smaller than half or larger than twice the mean (TF-IDF, balanced k-means). They are named
    `domain-0`, `domain-1`, ..., the largest first, and mixed like those of `mixture`, which may
    give their weights. A model trained on them keeps them for the runs that begin with it."""
    num_domains: Annotated[Annotated[int, Field(strict=True, ge=2, le=256)], RAW_TEXT] = FOUND
    """Number of domains that `domains: auto` finds."""
    mixture: Annotated[dict[str, DomainConfig], RAW_TEXT] = Field(
        default_factory=dict, validate_default=True
    )
    """Domains to mix, instead of `train_files`."""
    mixture_temperature: Annotated[float, Field(ge=1, allow_inf_nan=False), RAW_TEXT] = 1.0
    """Domains without weights are sampled in proportion to tokens ^ (1 / temperature): 1 samples
    all texts equally often, a large number all domains."""
    validation_fraction: Annotated[
        Fraction | Auto, For("pretrain", "finetune", "evaluate/text", "merge")
    ] = "auto"
    """Fraction of the training data to hold out; `auto` is 0.1, for text at most 2 MB."""
    format: Annotated[
        Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet", "label_text", "fasttext", "conll"],
        TABLES,
    ] = "auto"
    """Format of the files; `auto` recognises it by content, otherwise by file name. `conll` is for
    taggers: a word and its columns in each line, a blank line after each sentence."""
    delimiter: Annotated[Delimiter | Auto, TABLES] = "auto"
    """Field separator of CSV and TSV files, such as `;` or `tab`; `auto` detects it."""
    header: Annotated[bool | Auto, TABLES] = "auto"
    """Whether the first row of a CSV or TSV file names the columns; `auto` detects it."""
    text_column: Annotated[
        Column | ColumnNames | None,
        For(
            "pretrain", "finetune/classification", "finetune/token_classification",
            "finetune/question_answering", "predict", "generate", "evaluate/text",
            "evaluate/labels", "evaluate/tags", "evaluate/answers", "merge", "export", "clean",
        ),
    ] = None  # fmt: skip
    """Column of the text, by name or by number from 0. Two columns are a text pair for a
    classifier, or a question and its context; more are joined by a space. For a tagger, a list of
    tokens or a text. By default detected if only one column is possible."""
    label_column: Annotated[Column | ColumnNames | None, LABELLED] = None
    """Column of the label, by name or by number from 0; white space around labels is removed.
    With several columns of 0 and 1, each is one label. For a tagger, a list of tags, one for each
    token, or of spans of the text, each with `start`, `end` and `label`. For questions, SQuAD's
    answers, or two columns: the text of the answer (empty for none) and its start."""
    mark_column: Annotated[
        Column | None, For("finetune/token_classification", "evaluate/tags", "predict")
    ] = None
    """Column of the word that the tags of a row are about, such as the predicate of semantic roles:
    its number from 0, its offsets in the text, or a mark for each word."""
    tag_scheme: Annotated[Literal["auto", "bio", "bilou", "plain"], TAGS] = "auto"
    """How tags mark entities: `bio` (B-X, I-X, O), `bilou` (also L-X and U-X, or E-X and S-X), or
    `plain`, a separate tag for each word. `auto` detects it; spans become `bio`."""
    label_separator: Annotated[Annotated[str, Field(min_length=1)] | None, LABELS] = None
    """Separator of several labels in one field, such as `,`; a row may have none."""
    label_names: Annotated[FilePath | None, LABELLED] = None
    """File with label names: label 0 in the first line, label 1 in the second, and so on."""
    prompt_column: Annotated[Column | ColumnNames | None, RESPONDING] = None
    """Column of the prompt, by name or by number from 0; several are joined by a blank line. By
    default detected by common names."""
    response_column: Annotated[Column | None, COMPLETION] = None
    """Column of the response to the prompt, by name or by number from 0."""
    messages_column: Annotated[Column | None, COMPLETION] = None
    """Column of conversations, instead of prompts and responses: lists of messages, each with
    `role` and `content`."""
    source_column: Annotated[Column | None, PAIRED] = None
    """Column of the source text, such as the text to translate or summarise, by name or by number
    from 0. By default detected by common names, or the first of two columns."""
    target_column: Annotated[Column | None, PAIRED] = None
    """Column of the target text, by name or by number from 0."""
    prefix: Annotated[str | None, SOURCES] = None
    """Text before each source, such as `translate English to German: ` for T5; the model remembers
    it."""
    source_lang: Annotated[str | None, SOURCES] = None
    """Code of the language of the sources, for tokenizers that mark it, such as those of mBART
    (`en_XX`), M2M100 (`en`) and NLLB (`eng_Latn`); the model remembers it."""
    target_lang: Annotated[str | None, SOURCES] = None
    """Code of the language of the targets."""
    chosen_column: Annotated[Column | None, PREFERRED] = None
    """Column of the better of two responses to a prompt, by name or by number from 0: a text, or a
    conversation that ends with it."""
    rejected_column: Annotated[Column | None, PREFERRED] = None
    """Column of the worse response, like that of the better one."""
    problem_type: Annotated[
        Literal["auto", "single_label_classification", "multi_label_classification", "regression"],
        LABELS,
    ] = "auto"
    """Kind of label; `auto` detects it from the labels."""
    max_length: Annotated[Annotated[int, Field(strict=True, ge=3)] | Auto, For("finetune")] = "auto"
    """Maximum number of tokens of a text or conversation; longer ones are truncated, and those of a
    tagger and contexts of questions read in overlapping windows. `auto` is the maximum length of
    the model; of an encoder-decoder model it is that of a source text."""
    max_target_length: Annotated[Annotated[int, Field(strict=True, ge=2)] | Auto, PAIRED] = "auto"
    """Maximum number of tokens of a target text; longer ones are truncated. `auto` is the maximum
    length of the model."""
    allow: Annotated[AllowedFaults, LABELLED] = ()
    """Data problems to tolerate instead of stopping; rows that cannot be used are skipped."""
    document: Annotated[Literal["file", "line", "blank_line"], DOCUMENTS] = "file"
    """What counts as one document in plain text files; in tables, each row is a document."""
    document_separator: Annotated[Annotated[str, Field(min_length=1)] | None, DOCUMENTS] = None
    """String between the documents of plain text files, such as `</s>`, instead of `document`;
    it is matched exactly and removed."""
    encoding: Annotated[Encoding, TABLES] = "utf-8"
    """Encoding of text files."""
    errors: Annotated[Literal["strict", "replace", "ignore"], TABLES] = "strict"
    """What to do with bytes that are invalid in the encoding."""
    block_size: Annotated[
        Annotated[int, Field(strict=True, ge=2)] | Auto,
        For("pretrain", "finetune/completion", "merge"),
    ] = "auto"
    """Number of tokens in one training sequence."""
    isolate_documents: Annotated[bool, For("pretrain", "merge")] = True
    """Documents packed into one block do not attend to one another."""

    @field_validator("validation_rows", "test_rows")
    @classmethod
    def _check_rows(cls, rows: str | None, info: ValidationInfo) -> str | None:
        files = f"{str(info.field_name).removesuffix('_rows')}_files"
        if rows is not None and info.data.get(files):
            raise rule(f"cannot be combined with data.{files}; remove one of them")
        return rows

    @field_validator("num_domains")
    @classmethod
    def _check_number(cls, number: int, info: ValidationInfo) -> int:
        if number != FOUND and info.data.get("domains") is None:
            raise rule("is the number of domains to find; add data.domains=auto, or remove it")
        return number

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


def _checked_mixture(
    mixture: dict[str, DomainConfig], data: Mapping[str, Any]
) -> dict[str, DomainConfig]:
    """The mixture unchanged; raises an error for pydantic if its names, weights or other data keys
    are invalid. `data` holds the keys of the data section before it."""
    if data.get("domains") is not None:
        mixture = _found_mixture(mixture, int(data.get("num_domains", FOUND)))
        data = {**data, "train_files": (), "validation_files": ()}
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
    return _of_expert(mixture, data.get("expert"))


def _found_mixture(mixture: dict[str, DomainConfig], number: int) -> dict[str, DomainConfig]:
    """The mixture of domains to be found, with the weights that are given."""
    names = [f"domain-{each}" for each in range(number)]
    for name, domain in mixture.items():
        if name not in names:
            raise rule(
                f"{name!r} cannot be combined with data.domains=auto, which finds the domains "
                f"{names[0]} to {names[-1]}; remove one of them"
            )
        if domain.files or domain.validation_files:
            raise rule(
                f"the text of {name} is found in data.train_files; remove the files of {name}, or "
                "data.domains"
            )
    return {name: mixture.get(name, DomainConfig()) for name in names}


def _of_expert(mixture: dict[str, DomainConfig], expert: str | None) -> dict[str, DomainConfig]:
    """The mixture to train an expert on: the other domains have no weight."""
    if expert is None:
        return mixture
    if expert not in mixture:
        names = ", ".join(mixture) or "none, so add data.mixture"
        raise rule(f"data.expert={expert} is not a domain of the mixture; the domains are {names}")
    expert_name(expert)
    return {name: domain.changed(weight=float(name == expert)) for name, domain in mixture.items()}


def _checked_temperature(temperature: float, data: Mapping[str, Any]) -> float:
    """The temperature unchanged; raises an error for pydantic if all domains have weights."""
    mixture: Mapping[str, DomainConfig] = data.get("mixture", {})
    if data.get("expert") is not None:
        return 1.0
    if temperature != 1 and any(domain.weight != "auto" for domain in mixture.values()):
        raise rule("applies to domains without weights; remove it, or the weights")
    return temperature


class CleanConfig(Section):
    """Which stages of cleaning a text passes, and their limits."""

    output: FilePath | None = None
    """Directory for the cleaned text, the trace of what was removed, and the report."""
    explain: str | None = None
    """`FILE#ROW`: print what every stage finds in this document, and write nothing."""
    html: bool = False
    """Extract the main text of HTML pages (extra `html`), also of .html files in directories."""
    mojibake: bool = True
    """Repair text that was decoded with a wrong encoding, such as `Ã¤` for `ä`."""
    unicode: bool = False
    """Compose characters (NFC), and end lines by `\\n`."""
    boilerplate: Annotated[int, Field(strict=True, ge=2)] | None = None
    """Take out lines of three words or more that occur in at least this many documents. The report
    lists candidates; verse, plays and code repeat lines that belong to them."""
    pii: Literal["mask"] | None = None
    """`mask` replaces e-mail addresses, IP addresses and telephone numbers by `<email>`, `<ip>` and
    `<phone>`."""
    repeated: Share | None = 0.5
    """Remove documents of which a larger share of characters lies in lines that occurred before in
    the same document."""
    languages: Names = ()
    """Remove documents in other languages than these, such as `en` or `zh`."""
    quality: Literal["web"] | None = None
    """`web` removes what breaks the rules of Gopher for text from web pages; they also remove good
    books, verse and code."""
    exact: bool = True
    """Remove documents that are equal to an earlier one."""
    near_duplicate: Share | None = 0.6
    """Remove documents whose runs of three words overlap with those of an earlier one by at least
    this share (Jaccard, estimated by MinHash with a standard error of 0.05)."""
    lowercase: bool = False
    """Write text in lower case, to compare models that count words."""
    stop_words: str | None = None
    """Take out stop words, to compare models that count words: `english`, or a file with a word in
    each line. A language model without them is far worse (3.35 against 2.30 bits per byte)."""
    keep_removed: bool = False
    """Write the text of removed documents into `removed.jsonl`."""
