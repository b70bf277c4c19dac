"""How alike two texts are, told from two short signatures."""

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.minhash import BINS, near_pairs, shingles, signature, similarity

HASHES = st.sets(st.integers(0, 2**32 - 1), min_size=1)


def overlapping(size: int, jaccard: float, seed: int) -> tuple[set[int], set[int]]:
    """Return two random sets of `size` whose Jaccard similarity is about `jaccard`."""
    draw = random.Random(seed)
    shared = round(2 * size * jaccard / (1 + jaccard))
    pool = draw.sample(range(2**32), 2 * size - shared)
    return set(pool[:size]), set(pool[size - shared :])


class TestShingles:
    def test_runs_of_four_words(self) -> None:
        """A text of five words has two runs of four."""
        assert len(shingles("one two three four five")) == 2

    def test_layout_and_case_do_not_matter(self) -> None:
        """Spaces, punctuation and capitals make no difference."""
        assert shingles("One, two (three)\n\tfour FIVE!") == shingles("one two three four five")

    @pytest.mark.parametrize("text", ["", "   ", "one", "one two three"])
    def test_short_texts_have_one(self, text: str) -> None:
        """There is always at least one."""
        assert len(shingles(text)) == 1

    def test_chinese_by_the_character(self) -> None:
        """Scripts that don't part their words are taken by the character."""
        assert len(shingles("天地玄黄宇宙洪荒")) == 5


class TestSignature:
    @given(HASHES)
    def test_is_the_set_s_own(self, hashes: set[int]) -> None:
        """It has a fixed length and depends on nothing but the set."""
        one = signature(hashes)

        assert len(one) == BINS
        assert one == signature(sorted(hashes))

    def test_does_not_change_between_versions(self) -> None:
        """Signatures that were stored stay comparable."""
        assert signature(shingles("the quick brown fox jumps over the lazy dog"))[:8].hex() == "b41933dda0a64d17"


class TestSimilarity:
    @given(HASHES)
    def test_of_a_set_with_itself(self, hashes: set[int]) -> None:
        """Equal sets are wholly alike."""
        assert similarity(signature(hashes), signature(hashes)) == 1

    @settings(max_examples=50)
    @given(st.integers(60, 3000), st.floats(0, 1), st.integers(0, 10**6))
    def test_estimates_jaccard(self, size: int, jaccard: float, seed: int) -> None:
        """It is off by no more than five standard errors."""
        one, other = overlapping(size, jaccard, seed)
        true = len(one & other) / len(one | other)

        estimate = similarity(signature(one), signature(other))

        assert abs(estimate - true) < 5 * 0.045

    @pytest.mark.parametrize("size", [1, 4, 20, 100, 2000])
    @pytest.mark.parametrize("jaccard", [0.0, 0.3, 0.8])
    def test_is_right_on_average(self, size: int, jaccard: float) -> None:
        """Over many pairs the errors cancel out, for small sets as well."""
        errors = []
        for seed in range(200):
            one, other = overlapping(size, jaccard, seed)
            true = len(one & other) / len(one | other)
            errors.append(similarity(signature(one), signature(other)) - true)

        assert abs(mean(errors)) < 0.03


class TestNearPairs:
    def test_finds_what_is_alike(self) -> None:
        """Pairs above the threshold are found, the closest first, and no others."""
        base = [f"w{number}" for number in range(600)]
        texts = {
            "base": " ".join(base),
            "close": " ".join(base[:590] + ["x"] * 10),
            "near": " ".join(base[:560] + ["y"] * 40),
            "far": " ".join(f"z{number}" for number in range(600)),
        }
        signatures = {name: signature(shingles(text)) for name, text in texts.items()}

        pairs = near_pairs(signatures, 0.8)

        assert pairs[0][:2] == ("base", "close")
        assert {frozenset(pair[:2]) for pair in pairs} == {
            frozenset(names) for names in [("base", "close"), ("base", "near"), ("close", "near")]
        }
        assert [score for *_, score in pairs] == sorted((score for *_, score in pairs), reverse=True)

    def test_misses_next_to_none(self) -> None:
        """Pairs of similarity 0.85 are found at a threshold of 0.7."""
        signatures = {}
        for seed in range(100):
            for side, hashes in zip("ab", overlapping(500, 0.85, seed), strict=True):
                signatures[f"{seed}{side}"] = signature(hashes)

        pairs = near_pairs(signatures, 0.7)

        assert len(pairs) >= 99

    def test_many_equals_stay_affordable(self) -> None:
        """Thousands of equal files give pairs in proportion to their number, not to its square."""
        one = signature({1, 2, 3})

        pairs = near_pairs({f"{number:05}": one for number in range(2000)}, 0.8)

        assert 2000 <= len(pairs) <= 2000 * 50

    def test_of_nothing(self) -> None:
        """No files, no pairs."""
        assert near_pairs({}, 0.8) == []
