"""One word for each thing: the words of `docs/vocabulary.md` are those of the code, and coined ones stay out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    f
    for folder in ("tiny_backprop", "widgets", "benchmarks", "docs", "notebooks")
    for f in sorted((ROOT / folder).rglob("*"))
    if f.suffix in (".py", ".js", ".md", ".ipynb")
]
CODE = "\n".join(f.read_text() for f in SOURCES if f.suffix in (".py", ".js"))
TERMS = [
    term.strip("` ")
    for row in re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "vocabulary.md").read_text(), re.MULTILINE)[1:]
    for term in row.split(",")
    if not row.startswith("-")
]
COINED = re.compile(r"\b(ladders?|rungs?|landmarks?|lean|is_lean|dear|dearer|dearest)\b|class (Found|Counted|Latest)\b")
"""What no reader of the checkpointing literature, or of a compiler, would know."""


@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_used(term):
    spelled = r"[\s_-]?".join(map(re.escape, re.split(r"[\s_-]", re.sub("y$", "", term))))  # boundary, boundaries
    assert re.search(spelled, CODE, re.IGNORECASE), f"{term!r} is explained, and no code speaks of it"


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_coined_word_is_used(file):
    found = [
        f"line {i}: {m[0]}" for i, line in enumerate(file.read_text().splitlines(), 1) if (m := COINED.search(line))
    ]
    assert not found
