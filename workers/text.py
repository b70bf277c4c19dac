"""The text agent: what a document is about."""

from workers import app
from workers.documents import Described, Description, Document, unpack
from workers.language import kind_of, prose_of
from workers.words import lix, top_words

CAPABILITIES = "nlp"


@app.task(requires={"nlp"}, timeout=30, max_attempts=3)
def keywords(text: str, limit: int = 10) -> list[str]:
    """Return the `limit` most telling words of `text`, best first."""
    return list(top_words(text, limit))


@app.task(requires={"nlp"}, timeout=120, max_attempts=3, ignore_result=True)
def describe(documents: list[Document]) -> list[Described]:
    """Add to each document its kind, its readability and its keywords."""
    return [Described(document=document, description=_description(document)) for document in documents]


def _description(document: Document) -> Description | None:
    if document["outcome"] != "profiled":
        return None
    text = unpack(document["packed"])
    kind = kind_of(document["path"], text)
    return Description(kind=kind, readability=lix(prose_of(text, kind)), keywords=top_words(text, limit=8))
