"""A web page of a text in which each token is shaded by its surprise to the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmkit.data.text.token_file import TokenFile
from llmkit.evaluation.likelihood import Scores
from llmkit.storage.outputs import EVALUATION

_MAX_TOKENS = 20_000
"""Maximum number of tokens on a page: browsers struggle with more."""

_LEVELS = 12
"""Shades, one for each bit of surprise."""

_STYLE = """\
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fdfdfb;--faint:#6b6b6b;--heat:214,69,42}
@media(prefers-color-scheme:dark){:root{--ink:#e8e6e3;--paper:#17181a;--faint:#9a9a9a;--heat:196,70,30}}
body{margin:2.5rem auto;max-width:50rem;padding:0 1.2rem;color:var(--ink);background:var(--paper);
font:1.06rem/1.75 Georgia,"Noto Serif","Noto Serif CJK SC",serif}
header{font:.85rem/1.55 system-ui,sans-serif;color:var(--faint)}
h1{font-size:1.15rem;color:var(--ink);margin:0 0 .4rem;overflow-wrap:anywhere}
article{white-space:pre-wrap;overflow-wrap:anywhere;margin:1.4rem 0;padding-top:1.4rem;
border-top:1px solid rgba(128,128,128,.35)}
article>h2{font:.78rem system-ui,sans-serif;color:var(--faint);margin:0 0 .6rem;
overflow-wrap:anywhere}
b{font-weight:normal;border-radius:.2em;cursor:help;color:var(--ink)}
.warning{border-left:.3rem solid rgb(var(--heat));padding:.4rem .7rem;margin:.7rem 0;
color:var(--ink)}
b:hover{outline:1px solid var(--ink)}
.x{font-size:.75em}
"""


def page(
    title: str,
    facts: Sequence[str],
    warnings: Sequence[str],
    names: Sequence[str],
    tokens: TokenFile,
    scores: Scores,
    tokenizer: PreTrainedTokenizerFast,
) -> str:
    """The page as one file without scripts or links, its text escaped.

    `facts` and `warnings` appear below the title, `names` above the documents. The tooltip of a
    token shows its id, its probability, its surprise in bits and the model's most likely token.
    """
    count = len(scores.token_nll)
    shades = "".join(
        f".s{level}{{background:rgba(var(--heat),{0.75 * level / (_LEVELS - 1):.2f})}}\n"
        for level in range(1, _LEVELS)
    )
    legend = " ".join(f'<b class="s{level}">&nbsp;{level}&nbsp;</b>' for level in range(_LEVELS))
    articles = "\n".join(_articles(names, tokens, scores, tokenizer))
    lines = [*facts]
    if count < len(tokens.ids) - 1:
        lines.append(f"The first {count:,} of {len(tokens.ids) - 1:,} tokens are shown.")
    notes = "<br>\n".join(escape(line) for line in lines)
    bands = "".join(f'<p class="warning">{escape(text)}</p>\n' for text in warnings)
    return (
        '<!doctype html>\n<html lang="und">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{EVALUATION}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}{shades}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{notes}\n{bands}"
        f"<p>Surprise of each token in bits: {legend} or more. Hover over a token to see its "
        f"probability and what the model expected.</p>\n</header>\n{articles}\n</body>\n</html>\n"
    )


def n_page_tokens(tokens: TokenFile) -> int:
    """The number of tokens of a text that its page shows."""
    return min(_MAX_TOKENS, len(tokens.ids) - 1)


def _articles(
    names: Sequence[str], tokens: TokenFile, scores: Scores, tokenizer: PreTrainedTokenizerFast
) -> Iterator[str]:
    count = len(scores.token_nll)
    bounds = [*tokens.starts[tokens.starts < count].tolist(), count]
    for name, (start, end) in zip(names, pairwise(bounds), strict=False):
        ids = tokens.ids[start + 1 : end + 1].tolist()
        pieces = zip(
            ids, token_texts(ids, tokenizer), scores.token_nll[start:end].tolist(),
            scores.guesses[start:end].tolist(), strict=True,
        )  # fmt: skip
        spans = "".join(_span(*piece, tokens, tokenizer) for piece in pieces)
        nll = scores.token_nll[start:end]
        mean = float(nll[nll >= 0].mean()) / math.log(2) if (nll >= 0).any() else 0.0
        named = f"{escape(name)}: {mean:.2f} bits per token"
        yield f"<article><h2>{named}</h2>{spans}</article>"


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text that each id adds; a character that spans several ids belongs to the last."""
    found: list[str] = []
    # Decoding starts at `done`, so that a token after a word keeps its space.
    done = start = 0
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[done:start])
        whole = tokenizer.decode(ids[done:end])
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and end - start < 4:
            found.append("")
            continue
        found.append(whole[len(before) :])
        done, start = start, end
    return found


def _span(
    id: int,
    text: str,
    nll: float,
    guess: int,
    tokens: TokenFile,
    tokenizer: PreTrainedTokenizerFast,
) -> str:
    token = str(tokenizer.convert_ids_to_tokens(id))
    shown = escape(text)
    if id in (tokens.opening, tokens.closing):
        shown = f'<span class="x">{escape(token)}</span>'
    elif not text:
        shown = '<span class="x">\N{MIDDLE DOT}</span>'
    if nll < 0 and id == tokens.opening:
        return ""  # the opening token of the next document
    if nll < 0:
        return f'<b title="{_attribute([("token", token), ("", "not scored")])}">{shown}</b>'
    surprise = nll / math.log(2)
    level = min(_LEVELS - 1, int(surprise))
    facts: list[tuple[str, Any]] = [
        ("token", f"{token!r}, id {id}"),
        ("probability", f"{math.exp(-nll):.3g}"),
        ("surprise", f"{surprise:.2f} bits"),
        ("likeliest", repr(tokenizer.decode([guess]))),
    ]
    return f'<b class="s{level}" title="{_attribute(facts)}">{shown}</b>'


def _attribute(facts: Sequence[tuple[str, Any]]) -> str:
    lines = [f"{name}: {value}" if name else str(value) for name, value in facts]
    return escape("\n".join(lines)).replace("\n", "&#10;")
