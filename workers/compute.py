"""The compute agent: numbers that tell files apart, and alike."""

import base64
from hashlib import blake2b

from workers import app
from workers.documents import Described, Fingerprint, Profile, unpack
from workers.minhash import shingles, signature

CAPABILITIES = "cpu_intensive"


@app.task(requires={"cpu_intensive"}, timeout=120, max_attempts=3)
def fingerprint(described: list[Described]) -> list[Profile]:
    """Add to each document a digest and a MinHash signature of its text, and let go of the text."""
    return [_profile(each) for each in described]


def _profile(described: Described) -> Profile:
    document = described["document"]
    return Profile(
        path=document["path"],
        outcome=document["outcome"],
        note=document["note"],
        bytes=document["bytes"],
        encoding=document["encoding"],
        description=described["description"],
        fingerprint=_fingerprint(unpack(document["packed"])) if document["outcome"] == "profiled" else None,
    )


def _fingerprint(text: str) -> Fingerprint:
    return Fingerprint(
        digest=blake2b(text.encode(), digest_size=16).hexdigest(),
        signature=base64.b64encode(signature(shingles(text))).decode("ascii"),
    )
