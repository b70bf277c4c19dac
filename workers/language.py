"""What kind of text a file holds: a programming language, a format, or prose in a natural language."""

import re
from typing import Final

__all__ = ["COMMON_WORDS", "kind_of", "natural_language", "prose_of"]

_KINDS: Final = {
    "Python": "py pyi pyw",
    "C": "c h",
    "C++": "cc cpp cxx hh hpp",
    "C#": "cs",
    "CSS": "css",
    "Go": "go",
    "Java": "java",
    "JavaScript": "js mjs cjs jsx",
    "Kotlin": "kt kts",
    "PHP": "php",
    "Perl": "pl pm",
    "Ruby": "rb",
    "Rust": "rs",
    "Scala": "scala",
    "Shell": "sh bash zsh",
    "Swift": "swift",
    "TypeScript": "ts tsx",
    "INI": "ini cfg conf properties",
    "Makefile": "mk",
    "TOML": "toml",
    "YAML": "yaml yml",
    "CSV": "csv tsv",
    "HTML": "html htm xhtml",
    "JSON": "json jsonl ipynb",
    "SQL": "sql",
    "XML": "xml svg dtd xsl",
}
_BY_SUFFIX: Final = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}
_BY_PROGRAM: Final = {"python": "Python", "sh": "Shell", "bash": "Shell", "perl": "Perl", "node": "JavaScript"}
_SHEBANG: Final = re.compile(r"#!\s*\S*?(?:env\s+)?([a-z]+)[\d.]*\s")

# Each pattern also ends at the end of the text: an unclosed comment would else be searched for again and again.
_HASH: Final = re.compile(r'"""(.*?)(?:"""|\Z)|' + r"'''(.*?)(?:'''|\Z)|#([^\n]*)", re.DOTALL)
_SLASH: Final = re.compile(r"/\*(.*?)(?:\*/|\Z)|//([^\n]*)", re.DOTALL)
_COMMENTS: Final = {
    **dict.fromkeys(("Python", "Shell", "Perl", "Ruby", "INI", "Makefile", "TOML", "YAML"), _HASH),
    **dict.fromkeys(("C", "C++", "C#", "CSS", "Go", "Java", "JavaScript", "Kotlin", "PHP", "Rust"), _SLASH),
    **dict.fromkeys(("Scala", "Swift", "TypeScript"), _SLASH),
}
_WITHOUT_PROSE: Final = frozenset({"CSV", "HTML", "JSON", "SQL", "XML"})

COMMON_WORDS: Final = {
    "English": "the of and to in is that it for was on are as with be this have from or by not but which at an you if",
    "German": "der die das und ist nicht ein eine zu den von mit sich auf für im dem auch es als wird sind bei",
    "French": "le la les et est des une un du que pour dans qui sur pas au avec ce il sont par plus ne se",
    "Spanish": "el la los de que y en un una es por con para no se las del al como más lo su son pero",
    "Italian": "il di che la e è un una per non sono con del le si dei nel alla da come anche più della i gli",
    "Portuguese": "o de que e do da em um uma para com não os as no se na por mais dos como mas ao é das",
    "Dutch": "de het een en van ik te dat die is niet zijn op aan met voor er maar om ook als bij door wordt",
}
_COMMON: Final = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}
_WORD: Final = re.compile(r"[^\W\d_]{2,}")  # single letters are too common in formulas and data
_SAMPLE_LENGTH: Final = 10_000
_LEAST_SHARE: Final = 0.15  # of all words; prose has 0.3 to 0.5 of its language's common ones, other texts hardly any
_LEAST_WORDS: Final = 10


def kind_of(path: str, text: str) -> str:
    """Name the kind of a text by its file's suffix, its first line, or its most common words."""
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    return _BY_SUFFIX.get(suffix) or _by_first_line(text) or natural_language(text) or "text"


def _by_first_line(text: str) -> str | None:
    shebang = _SHEBANG.match(text[:200])
    if shebang:
        return _BY_PROGRAM.get(shebang[1])
    return "XML" if text.startswith("<?xml") else None


def natural_language(text: str) -> str | None:
    """Name the language of a prose by the share of its common words; None when there is no clear winner."""
    words = _WORD.findall(text[:_SAMPLE_LENGTH].lower())
    hits = {language: sum(word in common for word in words) for language, common in _COMMON.items()}
    best = max(hits, key=hits.__getitem__)
    return best if len(words) >= _LEAST_WORDS and hits[best] >= _LEAST_SHARE * len(words) else None


def prose_of(text: str, kind: str) -> str:
    """Return what a person wrote for people: comments and docstrings of code, all of a prose, nothing of data."""
    if kind in _WITHOUT_PROSE:
        return ""
    pattern = _COMMENTS.get(kind)
    return "\n".join("".join(found) for found in pattern.findall(text)) if pattern else text
