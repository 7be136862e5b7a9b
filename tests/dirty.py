"""Made-up texts of several kinds, and faults planted in them by a seed."""

# ruff: noqa: RUF001 (letters of several scripts are meant)
from __future__ import annotations

import random
from collections.abc import Iterator

SENTENCES = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren, über alle Länder.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "zh": "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心，並應以兄弟關係的精神相對待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}
"""The same sentence in several languages."""

_SYLLABLES = "ka lo mi ren tas vor sel un pra ga dim os thel ni bar cu wen ol".split()


def vocabulary(seed: int, size: int = 2000) -> list[str]:
    """Words that are like those of no other seed."""
    chance = random.Random(seed)
    return ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4))) for _ in range(size)]


def prose(n: int, seed: int = 0, words: int = 120) -> list[str]:
    """Documents of sentences, whose words are as frequent as those of a language."""
    chance, known = random.Random(seed), vocabulary(seed)
    weights = [1 / (rank + 3) for rank in range(len(known))]
    return [" ".join(chance.choices(known, weights, k=words)) + "." for _ in range(n)]


def verse(n: int, seed: int = 1) -> list[str]:
    """Poems with a refrain."""
    found = []
    for text in prose(n, seed, 60):
        words = text.split()
        lines = [" ".join(words[at : at + 6]) for at in range(0, 60, 6)]
        refrain = lines[0]
        found.append("\n".join([*lines[:4], refrain, *lines[4:8], refrain]))
    return found


def plays(n: int, seed: int = 2) -> list[str]:
    """Scenes in which few speakers say much, each named above what he says."""
    chance, speeches = random.Random(seed), iter(prose(8 * n, seed, 20))
    people = ["ROMEO:", "JULIET:", "NURSE:"]
    return [
        "\n\n".join(f"{chance.choice(people)}\n{next(speeches)}" for _ in range(8))
        for _ in range(n)
    ]


def programs(n: int, seed: int = 3) -> list[str]:
    """Programs with the same imports and licence."""
    chance, names = random.Random(seed), vocabulary(seed)
    head = "# Licensed under the Apache License, Version 2.0\nimport os\nimport sys\n"
    return [head + "".join(_function(chance, names) for _ in range(6)) for _ in range(n)]


def _function(chance: random.Random, names: list[str]) -> str:
    name, value, other = chance.sample(names, 3)
    number = chance.randint(2, 99)
    return (
        f"\n\ndef {name}({value}):\n    {other} = os.path.join({value}, {number})\n"
        f"    if not {other}:\n        return {name}({value} + {number * 7})\n    return {other}\n"
    )


def poems(n: int, seed: int = 4) -> list[str]:
    """Poems of four lines of Chinese characters, most of them frequent ones."""
    chance = random.Random(seed)
    characters = [chr(0x4E00 + 7 * number) for number in range(2500)]
    weights = [1 / (rank + 20) for rank in range(2500)]
    return [
        "\n".join("".join(chance.choices(characters, weights, k=5)) + "。" for _ in range(4))
        for _ in range(n)
    ]


def with_other_words(text: str, share: float, chance: random.Random) -> str:
    """The text with a share of its words replaced by words that are nowhere else."""
    words = text.split(" ")
    for place in chance.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = f"changed{chance.randrange(10**6)}"
    return " ".join(words)


def mojibake(text: str) -> str:
    """The text as UTF-8 that was read as Windows-1252, or Latin-1 where that cannot be."""
    encoded = text.encode()
    try:
        return encoded.decode("cp1252")
    except UnicodeDecodeError:
        return encoded.decode("latin-1")


def second_corpora(n: int) -> Iterator[tuple[str, list[str]]]:
    """Clean documents of kinds for which rules made for web pages often fail."""
    yield "verse", verse(n)
    yield "plays", plays(n)
    yield "programs", programs(n)
    yield "poems", poems(n)
    yield "languages", list(SENTENCES.values())
