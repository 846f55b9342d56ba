"""What an annotation says, in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

DASH = "\N{EN DASH}"

#: Statuses, in the order of the report: what each is called, means, and what to do about it.
STATUS_WORDS = {
    "assigned": ("assigned", "a type was assigned without reservation", ""),
    "ambiguous": (
        "ambiguous",
        "the cell lies between types: the name is the most probable one, not a sure one",
        "use the safe name if there is one, or a coarser type",
    ),
    "unexpected": (
        "unexpected",
        "the cell is rather of a known type that was said not to be there",
        "check the markers of this type, and allow it if it is there",
    ),
    "novel": (
        "novel",
        "the cell resembles none of the known types",
        "look at the markers of its group below",
    ),
    "doublet": (
        "doublet",
        "the cell resembles a mixture of two types, as two cells in one droplet do",
        "leave it out",
    ),
    "low_quality": (
        "low quality",
        "very few counts or genes for its type",
        "leave it out",
    ),
}

#: What to do about an alarm, by how it begins.
ADVICE = {
    "labels: too few": "Add labelled cells of these types, or check their names by markers.",
    "genes: only": "Trust coarse types only.",
    "shift:": "Expect more errors than scores and risk say, and check the markers of the types.",
    "shares:": "Check the markers of this type: cells of another type may bear its name.",
    "allowed:": "Check the markers of these types, and allow them if they are there.",
    "prior:": "Check the markers of this type, and whether the shares hold for this sample.",
    "names:": "Check the markers of the two types that are named.",
    "novel: low sensitivity": "Look by markers for types that are close to these.",
    "novel: '": "Dismiss this group unless other markers speak for a type of its own.",
    'novel: "': "Dismiss this group unless other markers speak for a type of its own.",
    "risk:": "Use more labelled cells, or rename the type.",
    "references: the labels": "Check the labels of this reference, or leave it out.",
    "references: about": "Leave these cells out of one of the two.",
    "references: held-out": "Join the cells of the references, or annotate with each and compare.",
    "references: types": "Rename one of the types if the references mean different cells by it.",
    "types:": "Do not expect these types to be found; choose values or genes that they express.",
}

#: What the notes of the audit are about, by how they begin, and how to read them.
TOPICS = {
    "query": (
        "The query: the cells that were annotated",
        "Which values were read, and on which scale. Check that these are the expected ones.",
    ),
    "ref": (
        "The reference: the labelled cells",
        "Which values were read, and on which scale. Check that these are the expected ones.",
    ),
    "genes": (
        "Genes",
        "Genes are matched by name, and only those that both sides have are used. Below 500 "
        "similar types may not be distinguishable.",
    ),
    "labels": ("Labels", "What was found about the labels of the reference."),
    "allowed": ("Allowed types", "Which types may be there, as the caller said."),
    "prior": ("Expected shares", "How frequent types are, as the caller said."),
    "hierarchy": ("Hierarchy", "How types were combined into groups of types."),
    "model": ("Model", "What was trained, or used again."),
    "novel": ("Search for novel types", "How cells of unknown types were searched for."),
    "doublets": ("Doublets", "How droplets with two cells were searched for."),
    "low quality": ("Low quality", "How cells of low quality were searched for."),
    "": ("Other notes", ""),
}

#: Scores of :func:`sctool.tl.evaluate` that are shown, and what they are.
SCORES = {
    "overall_accuracy": "share of all cells with the right name or group",
    "seen_accuracy": "share of the cells of known types with the right name",
    "macro_f1": "F1 score, averaged over the known types",
    "novel_accuracy": "share of the cells of novel types in the right group",
    "novel_auroc": "how well the novelty score ranks novel cells first: 0.5 by chance, 1 at best",
    "ece": "mean gap between score and accuracy: 0 at best",
}


def number(value: float, digits: int = 2) -> str:
    """An integer with separators, or a decimal number; a dash if there is none."""
    if value is None or not np.isfinite(value):
        return DASH
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # -0.0 + 0.0 is 0.0


def percent(share: float) -> str:
    """A share in percent, never rounded to 0% or 100% unless it is that."""
    if share is None or not np.isfinite(share):
        return DASH
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def some(n: int, singular: str, plural: str = "") -> str:
    """A number and its noun."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def join_words(words: list[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def advise(alarms: Iterable[Any]) -> list[tuple[str, str]]:
    """Alarms as sentences, and what to do about each."""
    return [
        (_sentence(text), next((do for start, do in ADVICE.items() if text.startswith(start)), ""))
        for text in map(str, alarms)
    ]


def sort_audit(notes: Iterable[Any]) -> list[tuple[str, str, list[str]]]:
    """Notes of the audit by topic: its name, how to read them, and the notes as sentences."""
    by_topic: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for text in map(str, notes):
        topic, colon, rest = text.partition(": ")
        known = bool(colon) and topic in TOPICS
        by_topic[topic if known else ""].append(_sentence(rest if known else text))
    return [(*TOPICS[topic], notes) for topic, notes in by_topic.items() if notes]


def call(params: Mapping[str, Any], key: str) -> str:
    """The call of :func:`sctool.tl.annotate` that the recorded parameters stand for."""
    given = {name: plain(value) for name, value in params.items() if name != "preset"}
    if key != "sctool":
        given["key_added"] = key
    lines = [f"    {name}={value!r}," for name, value in given.items()]
    return "\n".join(["sctool.tl.annotate(", "    adata,", "    ref,", *lines, ")"])


def plain(value: Any) -> Any:
    """A value as it was before it was stored in a file, of Python's own types."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def short_reason(reason: Any) -> str:
    """The reason of a status without what differs from cell to cell."""
    return re.sub(r"^probability [\d.]+$", "score below 0.5", str(reason))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
