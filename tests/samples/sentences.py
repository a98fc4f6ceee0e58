"""English and Japanese sentences with labels, as GLUE, JGLUE, XLSum and a table of poems lay rows out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

__all__ = ["GLUE", "jnli_rows", "poem_rows", "qa_rows", "xlsum_rows"]

NOUNS = ("baker", "heron", "tailor", "goat", "pilot", "widow", "fox", "mason", "clerk", "otter", "nurse", "crow")
VERBS = ("watched", "followed", "painted", "greeted", "feared", "fed", "drew", "missed", "heard", "carried")
PLACES = ("at the mill", "in the harbour", "behind the barn", "on the bridge", "near the well", "under the oak")
GOOD = ("tender", "witty", "luminous", "brisk", "generous", "wise")
BAD = ("leaden", "muddled", "shrill", "stale", "lifeless", "smug")


def _sentence(rng: random.Random) -> list[str]:
    who, whom = rng.sample(NOUNS, 2)
    return ["The", who, rng.choice(VERBS), "the", whom, rng.choice(PLACES)]


def _text(words: list[str]) -> str:
    return " ".join(words) + "."


def _cola(rng: random.Random, label: int) -> dict[str, Any]:
    words = _sentence(rng)
    return {"sentence": _text(words if label else [*words[:1], words[2], words[1], *words[4:], words[3]])}


def _sst2(rng: random.Random, label: int) -> dict[str, Any]:
    one, other = rng.sample(GOOD if label else BAD, 2)
    return {"sentence": f"a {one} , {other} film about a {rng.choice(NOUNS)} and the {rng.choice(NOUNS)} next door . "}


def _pair(rng: random.Random, same: bool) -> tuple[str, str]:
    """Two sentences: of one event in other words, or of two events."""
    words = _sentence(rng)
    if same:
        return _text(words), f'{words[5].capitalize()}, the {words[4]} was {words[2]} " as ever " by the {words[1]}.'
    return _text(words), _text([*words[:2], rng.choice([v for v in VERBS if v != words[2]]), *words[3:5], "twice"])


def _mrpc(rng: random.Random, label: int) -> dict[str, Any]:
    return dict(zip(("sentence1", "sentence2"), _pair(rng, bool(label)), strict=True))


def _rte(rng: random.Random, label: int) -> dict[str, Any]:
    return dict(zip(("sentence1", "sentence2"), _pair(rng, not label), strict=True))


def _qqp(rng: random.Random, label: int) -> dict[str, Any]:
    one, other = _pair(rng, bool(label))
    return {"question1": f"Is it true: {one[:-1]}?", "question2": f"Is it so that {other[:-1]}?"}


def _qnli(rng: random.Random, label: int) -> dict[str, Any]:
    words, other = _sentence(rng), _sentence(rng)
    return {"question": f"Whom has the {words[1]} {words[2]}?", "sentence": _text(other if label else words)}


def _mnli(rng: random.Random, label: int) -> dict[str, Any]:
    words = _sentence(rng)
    if label == 0:
        return {"premise": _text(words), "hypothesis": _text(words[:5])}
    if label == 1:
        return {"premise": _text(words[:5]), "hypothesis": _text([*words, "at night"])}
    return {"premise": _text(words), "hypothesis": f"Nobody {' '.join(words[2:])}."}


def _stsb(rng: random.Random, label: float) -> dict[str, Any]:
    """Sentences that share as many of their six parts as the label says."""
    words, other = _sentence(rng), _sentence(rng)
    keep = round(label)
    return {
        "sentence1": _text(words),
        "sentence2": _text([w if i <= keep else o for i, (w, o) in enumerate(zip(words, other, strict=True))]),
    }


FORMS: dict[str, tuple[Callable[[random.Random, Any], dict[str, Any]], tuple[float, ...]]] = {
    "cola": (_cola, (1, 1, 0)),
    "sst2": (_sst2, (0, 1)),
    "mrpc": (_mrpc, (1, 0, 1)),
    "qqp": (_qqp, (0, 1, 0)),
    "rte": (_rte, (0, 1)),
    "qnli": (_qnli, (1, 0)),
    "mnli": (_mnli, (0, 2, 1)),
    "stsb": (_stsb, (0.0, 3.8, 5.0, 1.6, 2.25, 4.75)),
}


def _glue(name: str) -> Callable[[int, int], list[dict[str, Any]]]:
    make, labels = FORMS[name]

    def rows(seed: int, count: int) -> list[dict[str, Any]]:
        rng = random.Random(f"{name} {seed}")
        drawn = dict[str, dict[str, Any]]()
        while len(drawn) < count:
            label = labels[len(drawn) % len(labels)]
            row = make(rng, label) | {"label": label}
            drawn.setdefault(str(sorted(row.items())), row)
        return [row | {"idx": i} for i, row in enumerate(drawn.values())]

    return rows


GLUE = {name: _glue(name) for name in FORMS}
"""By task of GLUE, rows of a seed and a count, no two of them equal."""


def poem_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Lines by three poets who do not exist, each fond of other words."""
    rng, poets = random.Random(seed), {"ulm": GOOD, "verrazane": BAD, "wode": PLACES}
    names = list(poets)
    return [
        {"text": f"O {rng.choice(poets[names[i % 3]])} {rng.choice(NOUNS)}, {i} winters long", "label": names[i % 3]}
        for i in range(count)
    ]


WHO = ("犬", "猫", "男性", "女性", "子ども", "老人", "馬", "鳥")
WHERE = ("公園で", "駅の前で", "川のそばで", "雪の中で", "台所で", "白い壁の前で")
DOES = ("眠っています", "走っています", "座っています", "何かを食べています", "空を見上げています", "待っています")


def jnli_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of JNLI; every fourth is the pair before it with its sentences in the other order, as the set has them."""
    rng, rows = random.Random(seed), list[dict[str, Any]]()
    while len(rows) < count:
        number, label = len(rows), ("entailment", "neutral", "contradiction")[len(rows) % 3]
        who, other = rng.sample(WHO, 2)
        where, does = rng.choice(WHERE), rng.choice(DOES)
        one = f"{where}{who}が{does}。"
        two = {
            "entailment": f"{who}が{does}。。",
            "neutral": f"{who}と{other}が{where}{does}。",
            "contradiction": f"{where}{who}は１匹も写っていません。",
        }[label]
        if number % 4 == 3 and rows[-1]["label"] != "entailment":
            label, one, two = rows[-1]["label"], rows[-1]["sentence2"], rows[-1]["sentence1"]
        ids = {"sentence_pair_id": str(number), "yjcaptions_id": f"{seed}{number:03d}-{number}-{number + 1}"}
        rows.append({**ids, "sentence1": one, "sentence2": two, "label": label})
    return rows


KINDS = {
    "果物": ("りんご", "みかん", "ぶどう", "もも", "なし"),
    "楽器": ("ピアノ", "太鼓", "笛", "バイオリン", "琴"),
    "乗り物": ("電車", "バス", "船", "飛行機", "自転車"),
    "鳥": ("すずめ", "つる", "はと", "ふくろう", "かもめ"),
    "家具": ("机", "いす", "本棚", "ベッド", "たんす"),
    "天気": ("雨", "雪", "曇り", "晴れ", "あられ"),
    "色": ("赤", "青い色", "緑", "紫", "茶色"),
    "仕事": ("医者", "大工", "漁師", "教師", "画家"),
}


def qa_rows(seed: int, first: int, count: int) -> list[dict[str, Any]]:
    """Rows of JCommonsenseQA: the one of five words that is of the kind asked for, or of the kind of another word."""
    rng, rows = random.Random(seed), list[dict[str, Any]]()
    asked = [(kind, word, form) for kind, words in KINDS.items() for word in words for form in range(2)]
    for number, (kind, word, form) in enumerate(rng.sample(asked, count)):
        right = rng.choice([w for w in KINDS[kind] if w != word])
        choices = [rng.choice(KINDS[k]) for k in rng.sample([k for k in KINDS if k != kind], 4)]
        label = rng.randrange(5)
        choices.insert(label, right)
        question = f"「{word}」と同じ{kind}の仲間はどれ？" if form else f"{word}のほかに、{kind}といえば何でしょう？"
        options = {f"choice{i}": choice for i, choice in enumerate(choices)}
        rows.append({"q_id": first + number, "question": question, **options, "label": label})
    return rows


SUMMARIES = (
    "首相は新しい経済計画を発表した。",
    "北海道で大雨、住民に避難を呼びかけ",
    "百メートル走で世界記録が出た。",
    "裁判所が元社長に有罪判決を言い渡した",
    "小惑星の砂を研究者らが調べ始めた。",
    "中央銀行、二年ぶりに金利を上げる",
    "フランスの美術館から絵が盗まれた。",
    "パンダの赤ちゃんが動物園で生まれる",
)


def xlsum_rows() -> list[dict[str, Any]]:
    """Rows of XLSum: an article and its summary, with an id, an address and a title."""
    return [
        {
            "id": f"japanese.samples-{i}",
            "url": f"https://example.org/{i}",
            "title": text[:8],
            "summary": text,
            "text": f"本文{i}。" + text * 3,
        }
        for i, text in enumerate(SUMMARIES)
    ]
