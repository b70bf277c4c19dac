"""What agents can and tasks require, and whether the one satisfies the other."""

import copy
import pickle
import re
import timeit
from collections.abc import Callable

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from orchestra.capabilities import GENERAL, CapabilitySet, Requirement
from orchestra.exceptions import ValidationError
from orchestra.terms import Operator, Term, Value

ORDER: dict[str, Callable[[Value, Value], bool]] = {
    ">=": lambda one, other: not one < other,
    ">": lambda one, other: other < one,
    "<=": lambda one, other: not other < one,
    "<": lambda one, other: one < other,
}

LABELS = st.sampled_from(["gpu", "mem_gb", "lang", "cuda", "a.b-c_0"])
NUMBERS = st.sampled_from(["0", "-1", "1", "01", "1.0", "1.5", "2", "16", "016.00"])
VERSIONS = st.sampled_from(["v1", "v1.0", "v1.2", "1.2.0", "v1.10", "v2-rc1", "v2-rc2", "v2", "1.2.x"])
WORDS = st.sampled_from(["fr", "en", "1e3", "a100", "v", "vlc", "-", ".", "x.y.z"])
ANY_WORDS = st.from_regex(r"\A[A-Za-z0-9._-]{1,12}\Z").filter(
    lambda text: text.lstrip("-").lower() not in {"nan", "inf", "infinity"}
)
VALUES = NUMBERS | VERSIONS | WORDS | ANY_WORDS
TERMS = st.one_of(
    LABELS,
    LABELS.map("!{}".format),
    st.tuples(LABELS, st.sampled_from(["=", "!="]), VALUES).map("".join),
    st.tuples(LABELS, st.sampled_from(list(ORDER)), NUMBERS | VERSIONS).map("".join),
)
CAPABILITIES = st.lists(LABELS | st.tuples(LABELS, st.just("="), VALUES).map("".join), max_size=8).map(
    CapabilitySet.parse
)


@st.composite
def requirements(draw: st.DrawFn, terms: st.SearchStrategy[str] = TERMS) -> Requirement:
    """Draw a requirement that doesn't contradict itself."""
    try:
        return Requirement.parse(draw(st.lists(terms, min_size=1, max_size=5)))
    except ValidationError:
        reject()


def holds(requirement: Requirement, capabilities: CapabilitySet) -> bool:
    """Say anew, and from the definition alone, whether capabilities satisfy a requirement."""
    pairs = [text.partition("=")[::2] for text in capabilities]

    def ordered_hold(label: str) -> bool:
        ordered = [term for term in requirement.terms if term.label == label and term.operator.value in ORDER]
        values = [Value.parse(value) for name, value in pairs if name == label and value]
        return not ordered or any(
            all(
                term.value is not None
                and value.kind is term.value.kind
                and ORDER[term.operator.value](value, term.value)
                for term in ordered
            )
            for value in values
        )

    def term_holds(term: Term) -> bool:
        known = any(name == term.label for name, _ in pairs)
        same = (term.label, str(term.value)) in pairs
        answers = {
            Operator.HAS: known,
            Operator.LACKS: not known,
            Operator.EQUAL: same,
            Operator.DIFFERENT: not same,
        }
        return answers.get(term.operator, True)

    labels = {term.label for term in requirement.terms}
    return all(map(term_holds, requirement.terms)) and all(map(ordered_hold, labels))


class TestRequirementParse:
    @pytest.mark.parametrize(
        ("given_text", "text", "suffix"),
        [
            ("gpu", "gpu", "gpu"),
            ("gpu,mem_gb>=16", "gpu,mem_gb>=16", "gpu+mem_gb~ge~16"),
            (" mem_gb >= 016.0 , gpu,gpu ", "gpu,mem_gb>=16", "gpu+mem_gb~ge~16"),
            ("cuda>=v12,<v13", "cuda>=v12,cuda<v13", "cuda~ge~v12+cuda~lt~v13"),
            ("lang=fr,lang=en", "lang=en,lang=fr", "lang=en+lang=fr"),
            ("!spot", "!spot", "not~spot"),
            ("! spot,gpu", "gpu,!spot", "gpu+not~spot"),
            ("lang!=fr,!=en", "lang!=en,lang!=fr", "lang~ne~en+lang~ne~fr"),
            ("a>1,<=2", "a>1,a<=2", "a~gt~1+a~le~2"),
            ("a>=-0.0", "a>=0", "a~ge~0"),
            ("python>=3.11.0", "python>=v3.11", "python~ge~v3.11"),
            ("0.a-b_c=X", "0.a-b_c=X", "0.a-b_c=X"),
            ("not!=x", "not!=x", "not~ne~x"),
        ],
    )
    def test_every_text_has_one_canonical_form(self, given_text: str, text: str, suffix: str) -> None:
        """Terms are sorted, single and complete, values canonical, and the suffix says the same."""
        requirement = Requirement.parse(given_text)

        assert (text, suffix) == (requirement.text, requirement.suffix)
        assert text == str(requirement)
        assert text.count(",") + 1 == len(requirement)

    @given(requirements())
    def test_the_canonical_text_is_a_fixed_point(self, requirement: Requirement) -> None:
        """Reading a canonical text gives the requirement that it is the text of."""
        again = Requirement.parse(requirement.text)

        assert requirement == again
        assert (requirement.suffix, requirement.terms) == (again.suffix, again.terms)

    @given(requirements(), st.randoms())
    def test_order_and_repetition_mean_nothing(self, requirement: Requirement, random: object) -> None:
        """However its terms are shuffled and repeated, in one text or several, a requirement is the same."""
        terms = [term.text for term in requirement.terms] * 2
        random.shuffle(terms)  # type: ignore[attr-defined]

        assert requirement == Requirement.parse(",".join(terms)) == Requirement.parse(terms)
        assert requirement == Requirement.parse(set(terms)) == Requirement.parse(iter(terms))
        assert hash(requirement) == hash(Requirement.parse(terms))

    @given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3))
    def test_one_number_has_one_form(self, number: int, zeros_before: int, zeros_behind: int) -> None:
        """Zeros around a number change nothing."""
        written = f"{'0' * zeros_before}{number}.{'0' * zeros_behind}".rstrip(".")

        assert Requirement.parse(f"a>={number}") == Requirement.parse(f"a>={written}")

    def test_a_requirement_is_taken_as_it_is(self) -> None:
        """A requirement that was read before is returned."""
        assert Requirement.parse(GENERAL) is GENERAL

    @pytest.mark.parametrize(
        ("value", "term", "problem"),
        [
            ("", "", "leave `requires` away"),
            (None, "None", "leave `requires` away"),
            (set(), "", "leave `requires` away"),
            (" ", "", "leave `requires` away"),
            ("gpu,,nlp", "gpu,,nlp", "nothing between two commas"),
            ("gpu,", "gpu,", "nothing between two commas"),
            ("GPU", "GPU", "no requirement term"),
            ("gpu nlp", "gpu nlp", "no requirement term"),
            ("mem_gb=>16", "mem_gb=>16", "no requirement term"),
            ("mem_gb>>16", "mem_gb>>16", "no requirement term"),
            ("mem_gb>=", "mem_gb>=", "no requirement term"),
            ("gpu~x", "gpu~x", "no requirement term"),
            ("gpu+x", "gpu+x", "no requirement term"),
            ("größe", "größe", "no requirement term"),
            ("mem_gb=٣", "mem_gb=٣", "no requirement term"),
            (">=16", ">=16", "no label stands before"),
            ({"cuda>=v12", "<v13"}, "<v13", "no label stands before"),
            ("mem_gb>=nan", "mem_gb>=nan", "'nan'"),
            ("mem_gb=-Infinity", "mem_gb=-Infinity", "'-Infinity'"),
            ("lang>=fr", "lang>=fr", "is text"),
            ("cuda<vlc", "cuda<vlc", "is text"),
            ("mem_gb>=16,<v20", "mem_gb<v20", "a version"),
            ("mem_gb>=16,=fr", "mem_gb=fr", "text"),
            ("mem_gb>=20,<10", "mem_gb>=20", "exclude each other"),
            ("mem_gb>20,<=20", "mem_gb>20", "exclude each other"),
            ("mem_gb>=20,<=20,!=20", "mem_gb!=20", "exclude each other"),
            ("cuda>=v12,<v12.0", "cuda<v12", "exclude each other"),
            ("gpu,!gpu", "!gpu", "exclude each other"),
            ("gpu=a100,!gpu", "gpu=a100", "exclude each other"),
            ("gpu>=1,!gpu", "gpu>=1", "exclude each other"),
            ("lang=fr,!=fr", "lang!=fr", "exclude each other"),
            (["gpu", 3], "3", "must be a text"),
            (5, "5", "give a text"),
            (b"gpu", "b'gpu'", "give a text"),
            ({"gpu": 1}, "{'gpu': 1}", "give a text"),
            (",".join(f"a{number}" for number in range(33)), "33 terms", "at most 32"),
            ("a" * 600, "600", "512"),
            (",".join(f"{'a' * 40}{number}" for number in range(20)), "characters", "512"),
            ("a," * 40_000, "80000 characters", "too long"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, value: object, term: str, problem: str) -> None:
        """The error names the very term and the problem, and shows the grammar."""
        with pytest.raises(ValidationError, match=re.escape(problem)) as caught:
            Requirement.parse(value)  # type: ignore[arg-type]

        assert term in str(caught.value)
        assert "Terms are written gpu, lang=fr" in str(caught.value)
        assert "requires" == caught.value.errors[0].field
        assert len(caught.value.errors[0].given) <= 60

    @pytest.mark.parametrize(
        "text", ["mem_gb>=16,<=16", "cuda=v11,cuda>=v12", "lang=fr,lang!=en", "!gpu,gpu!=a", "x!=1,!=v1,!=a"]
    )
    def test_what_an_agent_can_satisfy_is_not_refused(self, text: str) -> None:
        """Terms that some agent satisfies together are no contradiction: a label may have several values."""
        assert Requirement.parse(text)

    def test_known_texts_are_cheap(self) -> None:
        """A text that was read before costs about a microsecond, here with a wide margin."""
        text = "gpu,mem_gb>=16,cuda>=v12,<v13"
        Requirement.parse(text)

        seconds = min(timeit.repeat(lambda: Requirement.parse(text), number=1000, repeat=5)) / 1000

        assert seconds < 20e-6

    @pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
    def test_requirements_survive_copy_and_pickle(self, remake: Callable[[Requirement], Requirement]) -> None:
        """A copy is equal and still answers."""
        requirement = Requirement.parse("gpu,mem_gb>=16")

        again = remake(requirement)

        assert requirement == again
        assert ("gpu",) == again.missing(CapabilitySet.parse("mem_gb=64"))


class TestSuffix:
    @given(requirements())
    def test_it_round_trips_in_safe_characters(self, requirement: Requirement) -> None:
        """A suffix gives the requirement back, and needs no quoting anywhere."""
        assert requirement == Requirement.from_suffix(requirement.suffix)
        assert re.fullmatch(r"[A-Za-z0-9_.~+=-]+", requirement.suffix)

    @given(requirements(), requirements())
    def test_it_is_injective(self, one: Requirement, other: Requirement) -> None:
        """Two requirements share a suffix only if they are the same."""
        assert (one == other) == (one.suffix == other.suffix)

    @pytest.mark.parametrize(
        "suffix",
        [
            "",
            "b+a",
            "gpu+gpu",
            "mem_gb~ge~016",
            "gpu,nlp",
            "gpu+",
            "not~",
            "not~gpu=1",
            "a~eq~1",
            "a~b",
            "!gpu",
            "a>=1",
            "GPU",
        ],
    )
    def test_what_names_no_queue_is_refused(self, suffix: str) -> None:
        """Only what `suffix` writes is read, so that no queue has two names."""
        with pytest.raises(ValidationError, match="names no queue"):
            Requirement.from_suffix(suffix)


class TestSatisfiedBy:
    @given(requirements(), CAPABILITIES)
    def test_it_is_the_definition(self, requirement: Requirement, capabilities: CapabilitySet) -> None:
        """Capabilities satisfy a requirement exactly when each term holds, ordered ones for one and the same value."""
        assert holds(requirement, capabilities) == requirement.satisfied_by(capabilities)

    @given(requirements(), CAPABILITIES)
    def test_nothing_is_missing_exactly_when_satisfied(
        self, requirement: Requirement, capabilities: CapabilitySet
    ) -> None:
        """What is missing are terms of the requirement, and none when it is satisfied."""
        missing = requirement.missing(capabilities)

        assert requirement.satisfied_by(capabilities) == (missing == ())
        assert set(missing) <= {term.text for term in requirement.terms}

    @given(requirements(LABELS | st.tuples(LABELS, st.just("="), VALUES).map("".join)), CAPABILITIES, CAPABILITIES)
    def test_more_capabilities_never_hurt_positive_terms(
        self, requirement: Requirement, some: CapabilitySet, others: CapabilitySet
    ) -> None:
        """An agent that can more satisfies whatever asks for labels and values alone."""
        assert requirement.satisfied_by(CapabilitySet.parse([*some, *others])) or not requirement.satisfied_by(some)

    @pytest.mark.parametrize(
        ("requires", "capabilities", "missing"),
        [
            ("gpu", "gpu=a100", ()),
            ("gpu=a100", "gpu", ("gpu=a100",)),
            ("mem_gb>=16", "mem_gb=64", ()),
            ("mem_gb>=16", "mem_gb=8", ("mem_gb>=16",)),
            ("mem_gb>=16", "mem_gb", ("mem_gb>=16",)),
            ("mem_gb>=16", "mem_gb=v64", ("mem_gb>=16",)),
            ("mem_gb>=16,<32,<64", "mem_gb=8,mem_gb=64", ("mem_gb>=16",)),
            ("mem_gb>=16,<32", "mem_gb=64", ("mem_gb<32",)),
            ("mem_gb>=16,<32", "", ("mem_gb>=16", "mem_gb<32")),
            ("cuda>=v12,<v13", "cuda=v11.8,cuda=v12.4", ()),
            ("cuda>=v12.9", "cuda=v12.10", ()),
            ("cuda=v12", "cuda=12.0.0", ()),
            ("python>=3.11.4", "python=v3.12", ()),
            ("app>=v2", "app=v2-rc1", ("app>=v2",)),
            ("lang=fr,lang=en", "lang=en,lang=fr", ()),
            ("lang=fr,lang=en", "lang=en", ("lang=fr",)),
            ("lang!=fr", "", ()),
            ("lang!=fr", "lang=en,lang=fr", ("lang!=fr",)),
            ("!spot", "gpu", ()),
            ("!spot", "spot=yes", ("!spot",)),
            ("lang=fr", "lang=FR", ("lang=fr",)),
        ],
    )
    def test_examples(self, requires: str, capabilities: str, missing: tuple[str, ...]) -> None:
        """The examples of the grammar's description."""
        assert missing == Requirement.parse(requires).missing(CapabilitySet.parse(capabilities))


class TestCapabilitySet:
    @given(CAPABILITIES)
    def test_the_canonical_text_is_a_fixed_point(self, capabilities: CapabilitySet) -> None:
        """Reading the canonical text, or its parts in any order, gives the same set."""
        again = CapabilitySet.parse(str(capabilities))

        assert capabilities == again == CapabilitySet.parse(reversed(list(capabilities)))
        assert hash(capabilities) == hash(again)
        assert len(list(capabilities)) == len(capabilities)

    def test_labels_may_have_several_values(self) -> None:
        """A label comes with all its values; one without a value is known too."""
        capabilities = CapabilitySet.parse("lang=fr, lang=en,gpu,mem_gb=064.0")

        assert "gpu,lang=en,lang=fr,mem_gb=64" == str(capabilities)
        assert (Value.parse("en"), Value.parse("fr")) == capabilities.values("lang")
        assert ((), None) == (capabilities.values("gpu"), capabilities.values("nlp"))

    @pytest.mark.parametrize("nothing", ["", " ", [], set()])
    def test_an_agent_may_offer_nothing(self, nothing: str | list[str]) -> None:
        """No capabilities is a set too, an empty one."""
        assert (0, "") == (len(CapabilitySet.parse(nothing)), str(CapabilitySet.parse(nothing)))

    @pytest.mark.parametrize(
        ("value", "term"),
        [
            ("GPU", "'GPU'"),
            ("mem_gb>=64", "'mem_gb>=64'"),
            ("!gpu", "'!gpu'"),
            ("=3", "'=3'"),
            ("nlp;gpu", "'nlp;gpu'"),
            ("nlp,,gpu", "'nlp,,gpu'"),
            ("a=inf", "'a=inf'"),
            (["gpu", None], "None"),
            (None, "None"),
            ("a" * 600, "600 characters"),
            ([f"a{number}" for number in range(257)], "257"),
        ],
    )
    def test_what_is_no_capability_is_refused(self, value: object, term: str) -> None:
        """The error names the very part, and shows the grammar."""
        with pytest.raises(ValidationError, match=re.escape(term)) as caught:
            CapabilitySet.parse(value)  # type: ignore[arg-type]

        assert "Capabilities are written gpu, lang=fr, mem_gb=64" in str(caught.value)
