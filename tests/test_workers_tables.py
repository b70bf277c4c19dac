"""What the demo shows."""

from datetime import UTC, datetime, timedelta

from rich.console import Console

from orchestra.types import TaskRecord, TaskState
from workers.documents import Report
from workers.tables import WIDTH, findings, shown, what_ran_where

START = datetime(2025, 1, 1, tzinfo=UTC)


def lines_of(*tables: object) -> list[str]:
    """Return what a terminal of the demo's width shows."""
    console = Console(width=WIDTH, record=True, file=None, quiet=False, markup=False)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def record(agent: str, queue: str, *, waited: float, ran: float) -> TaskRecord:
    """Return the record of a task that succeeded."""
    started = START + timedelta(seconds=waited)
    return TaskRecord(
        task_id=f"{agent}-{waited}",
        name="a.task",
        requires="nlp",
        queue=queue,
        state=TaskState.SUCCEEDED,
        attempt=1,
        agent=agent,
        submitted_at=START,
        started_at=started,
        finished_at=started + timedelta(seconds=ran),
        error=None,
        history=(),
    )


class TestWhatRanWhere:
    def test_a_row_for_each_agent_and_queue(self) -> None:
        """Tasks are counted, and times are medians."""
        records = [
            record("text-1@host", "workers:nlp", waited=0.02, ran=1),
            record("text-1@host", "workers:nlp", waited=0.04, ran=1),
            record("general@host", "workers:general", waited=2, ran=0.5),
        ]

        lines = lines_of(what_ran_where(records, {"text-1@host-0.02": 20, "text-1@host-0.04": 15}, 4))

        assert [line.split() for line in lines] == [
            ["agent", "served", "queue", "tasks", "files", "busy", "p50", "run", "p50", "wait"],
            ["general", "workers:general", "1", "-", "12", "%", "500", "ms", "2.0", "s"],
            ["text-1", "workers:nlp", "2", "35", "50", "%", "1.0", "s", "30", "ms"],
        ]

    def test_agents_of_one_name_are_told_apart(self) -> None:
        """Containers of one kind share a name: then a part of the host stands beside it."""
        records = [
            record("text@0123456789ab", "workers:nlp", waited=0, ran=1),
            record("text@ba9876543210", "workers:nlp", waited=0, ran=1),
            record("io@cafe01234567", "workers:io", waited=0, ran=1),
        ]

        lines = lines_of(what_ran_where(records, {}, 4))

        assert ["agent", "io", "text@012345", "text@ba9876"] == [line.split()[0] for line in lines]


class TestFindings:
    def test_fit_into_the_terminal(self) -> None:
        """However long names are, lines keep to the width, and nothing in them moves the cursor."""
        long = "a/very/long/path/" * 9 + "\x1b[2Jname.py"
        report = Report(
            files=12,
            bytes=1000,
            outcomes={"profiled": 10, "binary": 2},
            kinds={f"Kind {number}": 9 - number for number in range(9)},
            encodings={"utf-8": 10},
            readability={"Kind 0": 41.5},
            near_duplicates=1,
            pairs=[(long, "[red]b[/red]", 0.934)],
            keywords={long: ["word" * 9] * 8},
            skipped=[(long, "binary", "bytes that are no text")],
        )

        lines = lines_of(*findings(report))

        assert max(map(len, lines)) <= WIDTH
        assert "\x1b" not in "".join(lines)
        assert any("[red]b[/red]" in line and "0.93" in line for line in lines)
        assert any(line.startswith("3 more") for line in lines)

    def test_of_little(self) -> None:
        """Where there is nothing to tell, there is no table."""
        report = Report(
            files=0,
            bytes=0,
            outcomes={},
            kinds={},
            encodings={},
            readability={},
            near_duplicates=0,
            pairs=[],
            keywords={},
            skipped=[],
        )

        assert len(list(findings(report))) == 1


class TestShown:
    def test_control_characters(self) -> None:
        """What could move the cursor or turn the line around is replaced."""
        assert shown("a\x1b[1m\n\u202eb") == "a�[1m��b"
