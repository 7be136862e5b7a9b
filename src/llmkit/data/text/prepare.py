"""Turn the data section of a config into token files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmkit.config.schema import Config, DataConfig
from llmkit.data.readers.decode import Reading
from llmkit.data.readers.files import Source, Sources
from llmkit.data.text import domains, token_file
from llmkit.data.text.corpus import Documents
from llmkit.data.text.documents import pieces
from llmkit.data.text.domains import DomainText, RawText, Split
from llmkit.data.text.fingerprints import Overlap
from llmkit.data.text.found_domains import FoundDomains
from llmkit.data.text.sample import TextSample, trainer_of
from llmkit.data.text.token_file import TokenFile
from llmkit.errors import DataError, InputNotFound
from llmkit.models import tokenizer as tokenizers
from llmkit.progress import Say, Watch
from llmkit.reporting.format import many
from llmkit.storage import cache
from llmkit.storage.units import ALONE, Workers

_log = logging.getLogger(__name__)

TOKENIZER_BYTES = 100_000_000
"""Maximum text to train a tokenizer on, sampled evenly; more hardly changes its merges."""


@dataclass(frozen=True)
class Prepared:
    """The training and validation data of a run."""

    train: TokenFile
    validation: TokenFile | None
    """None if nothing is held out and no validation files are given."""
    tokenizer: PreTrainedTokenizerFast


def prepare_domains(
    config: Config,
    sources: Sources,
    tokenizer: PreTrainedTokenizerFast | None,
    watch: Watch,
    say: Say,
    found: FoundDomains | None = None,
    workers: Workers = ALONE,
) -> dict[str, Prepared]:
    """The training and validation text of each domain of `data.mixture` as token files.

    Token files are reused from the cache. Data without a mixture is one domain with an empty name.
    All domains share the given tokenizer, or one trained on the training parts of the domains with
    a weight. `found` are the domains of `data.domains: auto`. `workers` make a large text. Raises
    the errors of finding, reading and writing, and DataError if a part has too little text.
    """
    pairs = found.texts() if found else domains.domain_texts(config, sources, watch, workers)
    try:
        for name, domain in config.data.mixture.items():
            if domain.weight != 0 and name not in pairs:
                raise _too_little(name, "train", 0)
        if tokenizer is None:
            learned = [pair for pair in pairs.values() if pair.is_learned]
            tokenizer = _trained(learned, say)
        make = _Maker(tokenizer, watch, say, workers)
        prepared = {name: make.both(pair) for name, pair in pairs.items()}
        for pair in pairs.values():
            pair.close(done=True)
        return prepared
    finally:
        for pair in pairs.values():
            pair.close()


def held_out_domains(
    config: Config,
    sources: Sources,
    tokenizer: PreTrainedTokenizerFast,
    watch: Watch,
    say: Say,
    found: FoundDomains | None = None,
) -> dict[str, TokenFile]:
    """The held-out text of each domain of `data.mixture`; raises InputNotFound if none has any.
    `found` are the domains of `data.domains: auto`."""
    pairs = found.texts() if found else domains.domain_texts(config, sources, watch)
    make = _Maker(tokenizer, watch, say)
    try:
        kept = {
            name: make.counted(pair.held_out, pair.held_out_part)
            for name, pair in pairs.items()
            if pair.held_out
        }
        for pair in pairs.values():
            pair.close(done=True)
    finally:
        for pair in pairs.values():
            pair.close()
    if not kept:
        raise InputNotFound(
            "no domain of data.mixture has held-out text",
            where="data.validation_fraction",
            next="remove data.validation_fraction=0, or name text in data.test_files",
        )
    return kept


def tokens_of(
    found: Sequence[Source],
    key: str,
    config: Config,
    tokenizer: PreTrainedTokenizerFast,
    watch: Watch,
    say: Say,
) -> TokenFile:
    """All text of the sources of a key, such as `data.test_files`, as a token file."""
    text = RawText(found, key, config, watch)
    try:
        made = _Maker(tokenizer, watch, say).counted(text, "all")
        text.close(done=True)
        return made
    finally:
        text.close()


def data_report(
    config: Config, sources: Sources, watch: Watch, samples: Mapping[str, TextSample] | None = None
) -> dict[str, Any]:
    """The files of each key of the data section, and the total of documents, bytes and blanks.

    The text of a key in `samples` is sampled on the way. Raises the first error that is found.
    """
    wanted = ["train_files", "validation_files", "test_files"]
    for name in config.data.mixture:
        wanted += [f"mixture.{name}.files", f"mixture.{name}.validation_files"]
    report = {}
    for key in wanted:
        if found := sources.of(f"data.{key}"):
            sample = (samples or {}).get(f"data.{key}")
            with watch(f"reading data.{key}", sum(each.n_bytes for each in found)) as advance:
                files = [_file_report(source, config.data, advance, sample) for source in found]
            names = ("documents", "blank", "text_bytes", "undecodable")
            report[key] = {name: sum(file[name] for file in files) for name in names}
            report[key]["files"] = files
    return report


def text_report(
    config: Config,
    sources: Sources,
    data: Mapping[str, Prepared],
    overlaps: Mapping[str, Overlap],
) -> dict[str, dict[str, Any]]:
    """What of the text of each domain is trained on and what is held out, for the record of a run;
    `overlaps` are those of the held-out with the training text."""
    report: dict[str, dict[str, Any]] = {}
    for name, (learned, held_out) in domains.keys_by_domain(config).items():
        report[name] = {"train": _tokens_report(data[name].train)}
        if (tokens := data[name].validation) is not None:
            found, shared = sources.of(held_out) or sources.of(learned), overlaps.get(name)
            report[name]["validation"] = {
                **_tokens_report(tokens),
                **_files_report(tokens, found),
                "overlap": shared.sentence("document") if shared and shared.is_notable else None,
            }
    return report


def _files_report(tokens: TokenFile, found: Sequence[Source]) -> dict[str, Any]:
    """The names of the files that a text comes from, given the sources."""
    names = [Path(str(found[number].path)).name for number, _, _ in tokens.by_source]
    return {"files": names[:_SHOWN], "more_files": max(0, len(names) - _SHOWN)}


def _tokens_report(tokens: TokenFile) -> dict[str, Any]:
    names = ("n_bytes", "characters", "blank", "undecodable", "lost")
    counts = {name.removeprefix("n_"): getattr(tokens, name) for name in names}
    return {"documents": len(tokens.starts), "tokens": len(tokens.ids), **counts}


def sampled_report(
    config: Config, sources: Sources, watch: Watch
) -> tuple[dict[str, Any], TextSample]:
    """The report on the data, and a sample of the text that is trained on, read once for both."""
    sample = TextSample()
    samples = dict.fromkeys(domains.learned_keys(config), sample)
    return data_report(config, sources, watch, samples), sample


class _Maker:
    """Makes token files with one tokenizer, and reports their content."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        watch: Watch,
        say: Say,
        workers: Workers = ALONE,
    ) -> None:
        self.tokenizer, self.watch, self.say, self.workers = tokenizer, watch, say, workers
        self.framing = tokenizers.framing(tokenizer)
        self.fingerprint = tokenizers.tokenizer_fingerprint(tokenizer)

    def both(self, pair: DomainText) -> Prepared:
        return Prepared(
            self.tokens(pair.train, pair.train_part), self.held_out(pair), self.tokenizer
        )

    def held_out(self, pair: DomainText) -> TokenFile | None:
        return self.counted(pair.held_out, pair.held_out_part) if pair.held_out else None

    def counted(self, text: RawText, part: Split) -> TokenFile:
        """`tokens` with the number of characters and the hash of the text, which older token files
        lack."""
        made = self.tokens(text, part)
        if made.characters is None or made.text_hash is None:
            digest, chosen = hashlib.sha256(), text.part(part)
            with self.watch("counting characters", 0):
                characters = sum(len(p.text) for p in token_file.hashed(chosen.pieces(), digest))
            made = replace(made, characters=characters, text_hash=digest.hexdigest())
        return made

    def tokens(self, text: RawText, part: Split) -> TokenFile:
        def documents() -> Documents:
            chosen = text.part(part)
            if not chosen.n_documents:
                raise _too_little(text.name, part, 0)
            return chosen

        name = f"tokens-{cache.key(_key(text, part), self.fingerprint)}"
        made = token_file.tokenize(
            name, documents, self.tokenizer, self.framing, self.watch, self.say, self.workers
        )
        if len(made.ids) < _FEWEST:
            raise _too_little(text.name, part, len(made.ids))
        self._report(made, text, part)
        return made

    def _report(self, made: TokenFile, text: RawText, part: Split) -> None:
        label = text.name if part == "all" else f"{text.name} ({part} part)"
        n_text = len(made.ids) - len(made.starts)
        facts = [
            f"{label}: {many(len(made.starts), 'document')}",
            many(made.n_bytes, "byte"),
            f"{len(made.ids):,} tokens",
            f"{made.n_bytes / max(1, n_text):.2f} bytes per token",
        ]
        if made.blank:
            facts.append(f"{made.blank:,} blank skipped")
        if made.undecodable:
            facts.append(f"{made.undecodable:,} bytes that are not {text.config.data.encoding}")
        if made.lost >= _LOST:
            facts.append(f"{made.lost:.0%} of the letters and digits unknown to the tokenizer")
        self.say(", ".join(facts))
        if part == "validation":
            self.say(_held_out(made, text))
        _log.info("%s: %s", "reused" if made.reused else "made", made.path)
        block_size = text.config.data.block_size
        if block_size != "auto" and len(made.ids) <= block_size:
            self.say(f"{label}: less than one block of {block_size} tokens; the block is padded")


def _key(text: RawText, part: Split) -> list[object]:
    """The part of a cache key that everything made of a text shares."""
    return [token_file.FORMAT, *text.key(part)]


_LOST = 0.01  # share of unknown text from which on it is reported
_SHOWN = 5  # maximum number of files named in a line
_FEWEST = 3  # tokens: two predicted ones and the one before them


def _trained(pairs: Sequence[DomainText], say: Say) -> PreTrainedTokenizerFast:
    """The tokenizer trained on the training parts, or reused from the cache."""
    first = pairs[0].train
    requested, model_type = first.config.tokenizer.vocab_size, first.config.model.architecture
    objective = first.config.train.objective
    train = trainer_of(objective)
    kind = {"masked": ["framed"], "span_corruption": ["sentinels"]}.get(objective, [])

    def build(directory: Path) -> dict[str, Any]:
        parts = [pair.train.part(pair.train_part) for pair in pairs]
        n_bytes = sum(part.n_bytes for part in parts)
        size = tokenizers.auto_vocab_size(n_bytes) if requested == "auto" else requested
        n_read = min(n_bytes, TOKENIZER_BYTES)
        with first.watch("training a tokenizer", n_read) as advance:
            # Sample each part in proportion to its size.
            shares = [max(1, TOKENIZER_BYTES * part.n_bytes // max(1, n_bytes)) for part in parts]
            samples = (part.sample(share) for part, share in zip(parts, shares, strict=True))
            texts = _with_progress(chain.from_iterable(samples), n_read, advance)
            train(texts, size, model_type).save_pretrained(directory)
        return {"vocab_size": size, "n_bytes": n_read}

    wanted = [
        *(_key(pair.train, pair.train_part) for pair in pairs),
        requested,
        model_type,
        *kind,
    ]
    entry = cache.open_or_build(f"tokenizer-{cache.key(wanted)}", build, first.watch, say)
    tokenizer = tokenizers.load_tokenizer(str(entry.path))
    say(
        f"tokenizer: {len(tokenizer):,} tokens (at most {entry.info['vocab_size']:,}), byte-level "
        f"BPE trained on {entry.info['n_bytes']:,} bytes of "
        f"{', '.join(pair.train.name for pair in pairs)}"
    )
    _log.info("%s: %s", "reused" if entry.reused else "made", entry.path)
    return tokenizer


def _with_progress(
    texts: Iterable[str], n_bytes: int, advance: Callable[[int], None]
) -> Iterable[str]:
    """The texts, whose bytes are counted; at the end all are, whatever lies between the texts."""
    for text in texts:
        size = len(text.encode())
        n_bytes -= size
        advance(size)
        yield text
    advance(max(0, n_bytes))


def _held_out(made: TokenFile, text: RawText) -> str:
    """The files that the held-out text comes from."""
    cut = sum(segments for _, _, segments in made.by_source)
    whole = sum(documents for _, documents, _ in made.by_source) - cut
    parts = [many(whole, "whole document")] if whole else []
    parts += [f"the end of {many(cut, 'document')}"] if cut else []
    names = [str(text.found[number].path) for number, _, _ in made.by_source]
    if len(text.found) == 1:
        of_file = Path(names[0]).name
        return f"held out: {many(whole, 'document') if whole else 'the end'} of {of_file}"
    shown = ", ".join(Path(name).name for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    of = f"{len(names):,} of {many(len(text.found), 'file')}"
    return f"held out: {' and '.join(parts)}, from {of}: {shown}{more}"


def _too_little(name: str, part: Split, n_tokens: int) -> DataError:
    return DataError(
        f"too little text for {'validation' if part == 'validation' else name}: {n_tokens} tokens, "
        f"at least {_FEWEST} are needed",
        where=name,
        next="add text, or data.validation_fraction=0 to hold nothing out"
        if part == "validation"
        else "add text",
    )


def _file_report(
    source: Source,
    data: DataConfig,
    advance: Callable[[int], None],
    sample: TextSample | None = None,
) -> dict[str, Any]:
    reading = Reading(data, advance)
    documents = blank = text_bytes = size = 0
    empty = True
    for text, last in pieces(source, reading):
        if sample is not None:
            sample.add(text)
        size += len(text.encode())
        empty = empty and (not text or text.isspace())
        if last:
            documents += not empty
            blank += empty
            text_bytes += 0 if empty else size
            empty, size = True, 0
    return {
        "path": str(source.path),
        "format": source.format,
        "compression": source.compression,
        "bytes": source.n_bytes,
        "documents": documents,
        "blank": blank,
        "text_bytes": text_bytes,
        "undecodable": reading.undecodable,
    }
