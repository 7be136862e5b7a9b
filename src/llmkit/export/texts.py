"""The texts on which an exported model is compared with the model: awkward ones, and random ones
from the tokenizer's own vocabulary."""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerFast

from llmkit.models.tokenizer_saving import PROBE

COUNT = 100
"""The number of texts."""

_TEXTS = (
    "",
    " ",
    "\n",
    "a",
    "Once upon a time there was a little girl who lived in a small house near the forest.",
    "Hello, World! HELLO WORLD 12345 67 8,900.01 3.14e-10 0x7F",
    "I'm sure they'll say it's what we've done, you'd think; DON'T you? 'tis",
    "   leading, trailing   \t and \t\ttabs \n\n\n new lines\r\n and CRLF\r\n\r\n",
    "def f(x):\n    if x != None:\n\treturn {'a': [x**2, -1]}  # comment\n\n\nclass A(B): pass\n",
    '{"name": "x", "values": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u0130stanbul \u1e9e \u017fpecial don'\u017ft",
    "e\u0301 n\u0303 a\u030a \u1e9b\u0323 \ufb01 \u2460 \u212b \u212a",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u5e8a\u524d\u660e\u6708\u5149\uff0c\u7591\u662f\u5730\u4e0a\u971c",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \uff8a\uff9d\uff76\uff78",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \u1112\u1161\u11ab",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 "
    "\u1780\u17d2\u1798\u17c2\u179a",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0393\u03b5\u03b9\u03ac "
    "\u03c3\u03bf\u03c5",
    "\U0001f642\U0001f469\u200d\U0001f4bb\u2764\ufe0f\U0001f1ea\U0001f1fa\U0001f44d\U0001f3fd",
    "\u00a0nbsp\u3000wide\u2003em\u2028line\u2029paragraph\u0085next\u200bzero\ufeffbom",
    "a\x00b\x01c\x7f \x1b[0m \\ / | ~ ` ^ \u00a9 \u20ac \u2014 \u2026 \u201cq\u201d \u00bd\u00b2",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U00020000 \u2160\u216b \u0bf0 \u3289",
    "<b>!=</b> &amp; http://a.b/c?d=e#f user@example.com @name #tag $5.00 50% (a+b)*c",
    "1 12 123 1234 12345 123456 1234567 2024-11-25T10:30:00Z +1-555-0100",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA          ........!!!!????----____====",
)


def probe_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """`COUNT` texts, the same for the same tokenizer; some hold the names of its special tokens."""
    chance = random.Random(0)
    special = [str(token) for token in tokenizer.all_special_tokens][:8]
    found = [PROBE, *_TEXTS, *(f"a {token} b{token}\n" for token in special)]
    ids = sorted(tokenizer.get_vocab().values())
    alphabet = [*PROBE, *"".join(_TEXTS)]
    while len(found) < COUNT:
        words = tokenizer.decode(chance.choices(ids, k=12), skip_special_tokens=True)
        letters = "".join(chance.choices(alphabet, k=24))
        found.append(words + letters if len(found) % 2 else letters + words)
    return found[:COUNT]
