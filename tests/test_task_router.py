"""A requirement becomes a queue's name, and what a project routes itself is left alone."""

from collections.abc import Mapping
from typing import Any

import pytest

from orchestra.capabilities import GENERAL, Requirement
from orchestra.exceptions import ValidationError
from orchestra.queues import QueueNames
from orchestra.task_router import TaskRouter

DECLARED = {"shop.index": Requirement.parse("nlp"), "shop.mail": GENERAL}
ROUTER = TaskRouter(QueueNames("shop", "celery"), DECLARED.get)


def signature(task: str, **options: object) -> Mapping[str, Any]:
    """Write a signature as it travels inside another task's arguments."""
    return {"task": task, "args": [], "kwargs": {}, "options": options, "subtask_type": None}


class TestRoute:
    def test_declared_requirement_chooses_the_queue(self) -> None:
        """A task goes where its own requirement sends it."""
        assert {"queue": "shop:nlp"} == ROUTER("shop.index", (), {}, {})

    def test_general_task_goes_to_the_default_queue(self) -> None:
        """General work waits where stock workers look."""
        assert {"queue": "celery"} == ROUTER("shop.mail")

    @pytest.mark.parametrize("asked", ["gpu,mem_gb>=016", {"mem_gb>=16.0", "gpu"}, Requirement.parse("gpu,mem_gb>=16")])
    def test_caller_has_the_last_word(self, asked: object) -> None:
        """What a call asks for, in whatever form, is taken in place of what the task declares."""
        assert {"queue": "shop:gpu+mem_gb~ge~16"} == ROUTER("shop.index", (), {}, {"requires": asked})

    def test_unknown_task_is_left_to_others(self) -> None:
        """A task of which no requirement is known takes the routes behind this one."""
        assert ROUTER("else.task", (), {}, {}) is None

    def test_unknown_task_of_a_canvas(self) -> None:
        """A task that nobody here knows goes where the sender of its canvas knew that it has to; known ones don't."""
        options = {"headers": {"declared_requires": "gpu"}}

        assert {"queue": "shop:gpu"} == ROUTER("else.task", (), {}, options)
        assert {"queue": "shop:nlp"} == ROUTER("shop.index", (), {}, options)
        assert {"queue": "shop:lang=fr"} == ROUTER("else.task", (), {}, {**options, "requires": "lang=fr"})
        assert ROUTER("else.task", (), {}, {**options, "queue": "mine"}) is None

    @pytest.mark.parametrize("option", ["queue", "exchange", "routing_key"])
    def test_project_that_routes_itself_wins(self, option: str) -> None:
        """Explicit routing is left alone."""
        assert ROUTER("shop.index", (), {}, {option: "billing"}) is None

    @pytest.mark.parametrize("option", ["queue", "exchange", "routing_key"])
    def test_empty_routing_is_none(self, option: str) -> None:
        """An option that is there and empty, as Celery passes some, routes nothing."""
        assert {"queue": "shop:nlp"} == ROUTER("shop.index", (), {}, {option: None})
        assert {"queue": "shop:nlp"} == ROUTER("shop.index", (), {}, {option: ""})

    def test_works_as_celery_calls_it(self) -> None:
        """Celery passes the task along, and may leave arguments and options out."""
        assert {"queue": "shop:nlp"} == ROUTER("shop.index", None, None, None, task=object())

    def test_unreadable_requirement_is_refused(self) -> None:
        """A call that asks for nonsense is refused, naming the term."""
        with pytest.raises(ValidationError, match="mem_gb>=lots"):
            ROUTER("shop.index", (), {}, {"requires": "mem_gb>=lots"})


class TestInnerTask:
    @pytest.mark.parametrize("name", ["celery.map", "celery.starmap"])
    def test_decides(self, name: str) -> None:
        """A map goes where its inner task would go."""
        assert {"queue": "shop:nlp"} == ROUTER(name, (), {"task": signature("shop.index"), "it": [1]}, {})

    def test_own_options_count(self) -> None:
        """What an inner signature asks for is taken in place of what its task declares."""
        kwargs = {"task": signature("shop.index", requires=["gpu"]), "it": [1]}

        assert {"queue": "shop:gpu"} == ROUTER("celery.map", (), kwargs, {})

    def test_may_be_a_map_itself(self) -> None:
        """Maps in maps go where the innermost task would go."""
        inner = {**signature("celery.map"), "kwargs": {"task": signature("shop.index")}, "options": None}

        assert {"queue": "shop:nlp"} == ROUTER("celery.starmap", (), {"task": inner}, {})

    def test_map_asked_for_elsewhere_goes_there(self) -> None:
        """A requirement on the map itself comes first."""
        assert {"queue": "shop:gpu"} == ROUTER("celery.map", (), {"task": signature("shop.index")}, {"requires": "gpu"})

    def test_unknown_one_is_left_to_others(self) -> None:
        """A map of a task without a requirement takes the routes behind this one."""
        assert ROUTER("celery.map", (), {"task": signature("else.task")}, {}) is None
        assert ROUTER("celery.map", (), {"task": "not a signature"}, {}) is None
        assert ROUTER("celery.map", (), {"task": {}}, {}) is None

    def test_argument_called_task_means_nothing_elsewhere(self) -> None:
        """An ordinary task may have an argument called `task`."""
        assert {"queue": "celery"} == ROUTER("shop.mail", (), {"task": signature("shop.index")}, {})
