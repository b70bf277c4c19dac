"""Arguments as the catalogue describes them."""

from typing import Any

import pytest

from orchestra.catalogue_schema import CatalogueSchema
from orchestra.exceptions import ValidationError


def schema_of(schema: dict[str, Any]) -> CatalogueSchema:
    """Return the schema of a task with one parameter."""
    return CatalogueSchema.from_catalogue(
        {"parameters": [{"name": "x", "kind": "keyword_only", "required": True, "schema": schema}]}
    )


class TestFromCatalogue:
    @pytest.mark.parametrize(
        "entry",
        [
            {},
            {"parameters": 3},
            {"parameters": [{}]},
            {"parameters": [3]},
            {"parameters": [{"name": "x", "kind": "odd", "required": True, "schema": {}}]},
        ],
    )
    def test_other_things_are_refused(self, entry: dict[str, Any]) -> None:
        """What isn't an entry is refused, and the error says what may be the cause."""
        with pytest.raises(ValidationError, match="another version"):
            CatalogueSchema.from_catalogue(entry)


class TestCheck:
    @pytest.mark.parametrize(
        ("schema", "value", "message"),
        [
            ({"type": "string"}, 1, "Input should be a valid string"),
            ({"type": "string", "minLength": 2}, "a", "String should have at least 2 characters"),
            ({"type": "string", "maxLength": 2}, "abc", "String should have at most 2 characters"),
            ({"type": "string", "pattern": "^a"}, "b", "String should match pattern '^a'"),
            ({"type": "string", "format": "date"}, "b", "Input should be a valid date"),
            ({"type": "integer"}, 1.0, "Input should be a valid integer"),
            ({"minimum": 3}, 2, "Input should be greater than or equal to 3"),
            ({"exclusiveMinimum": 3}, 3, "Input should be greater than 3"),
            ({"maximum": 3}, 4, "Input should be less than or equal to 3"),
            ({"exclusiveMaximum": 3}, 3, "Input should be less than 3"),
            ({"multipleOf": 3}, 4, "Input should be a multiple of 3"),
            ({"const": "a"}, "b", "Input should be 'a'"),
            ({"enum": ["a", "b", 3]}, "c", "Input should be 'a', 'b' or 3"),
            ({"minItems": 1}, [], "List should have at least 1 items"),
            ({"maxItems": 1}, [1, 2], "List should have at most 1 items"),
            ({"not": {}}, 1, "Input should fit the task's schema"),
            (
                {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                [],
                "Input should be a valid string, or Input should be a valid integer",
            ),
            ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1, "Input should be a valid string"),
        ],
    )
    def test_messages_say_what_is_asked_for(self, schema: dict[str, Any], value: object, message: str) -> None:
        """Each rule of a schema has its words, and they don't hold the value."""
        with pytest.raises(ValidationError) as caught:
            schema_of(schema).check("task", (), {"x": value})

        assert [("x", message)] == [(error.field, error.message) for error in caught.value.errors]

    def test_nothing_is_fetched(self) -> None:
        """A schema that refers to another place isn't followed there."""
        with pytest.raises(Exception, match="Unresolvable"):
            schema_of({"$ref": "http://127.0.0.1:9/schema"}).check("task", (), {"x": 1})

    @pytest.mark.parametrize("verdict", ["can't run", "was not submitted"])
    def test_the_verdict_is_the_callers(self, verdict: str) -> None:
        """The error says what became of the call."""
        with pytest.raises(ValidationError, match=f"^task {verdict}: x: Missing required argument$"):
            schema_of({}).check("task", (), {}, verdict=verdict)
