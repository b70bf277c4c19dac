"""The io agent: every file has an outcome, whatever it is."""

import os
import socket
from pathlib import Path
from random import Random

import pytest

from workers.documents import unpack
from workers.io import LARGEST_PACKED, find, printable, read

AS_ROOT = os.geteuid() == 0  # to whom no file is unreadable


class TestFind:
    def test_lists_files_with_their_sizes(self, tmp_path: Path) -> None:
        """Files are listed by their names below the root, in order."""
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "two.txt").write_text("22")
        (tmp_path / "one.txt").write_text("1")

        listing = find(str(tmp_path))

        assert listing == {
            "root": str(tmp_path),
            "files": [("b/two.txt", 2), ("one.txt", 1)],
            "unreadable": {},
            "passed_over": {},
        }

    def test_folders_of_tools_are_passed_over(self, tmp_path: Path) -> None:
        """What tools keep for themselves isn't entered, and counted."""
        for folder in ("__pycache__", "a/__pycache__", ".git"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "x").write_text("x")

        listing = find(str(tmp_path))

        assert listing["files"] == []
        assert listing["passed_over"] == {"__pycache__": 2, ".git": 1}

    def test_links(self, tmp_path: Path) -> None:
        """Links to files are files; broken ones, circles and links to folders say so."""
        (tmp_path / "file").write_text("text")
        (tmp_path / "to-file").symlink_to("file")
        (tmp_path / "broken").symlink_to("nowhere")
        (tmp_path / "circle").symlink_to("circle")
        (tmp_path / "up").symlink_to(tmp_path)

        listing = find(str(tmp_path))

        assert [name for name, _ in listing["files"]] == ["file", "to-file"]
        assert listing["unreadable"] == {
            "broken": "no such file or directory",
            "circle": "too many levels of symbolic links",
            "up": "link to a folder, not followed",
        }

    def test_other_things_than_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pipes and sockets aren't read."""
        os.mkfifo(tmp_path / "pipe")
        monkeypatch.chdir(tmp_path)  # a socket's path may not be long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")

            listing = find(str(tmp_path))

        assert listing["unreadable"] == {"pipe": "not a regular file", "socket": "not a regular file"}

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        """A name that can't be sent is shown escaped."""
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))).write_text("x")

        listing = find(str(tmp_path))

        assert listing["unreadable"] == {"caf\\xe9": "its name is not UTF-8"}

    @pytest.mark.skipif(AS_ROOT, reason="root may read everything")
    def test_a_folder_that_may_not_be_entered(self, tmp_path: Path) -> None:
        """A closed folder is one unreadable entry."""
        (tmp_path / "closed").mkdir(mode=0)

        assert find(str(tmp_path))["unreadable"] == {"closed": "permission denied"}

    def test_deep_trees(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tree deeper than paths may be long ends in an unreadable folder, not in an error."""
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for _ in range(60):
                Path("d" * 100).mkdir()
                os.chdir("d" * 100)

        listing = find(str(tmp_path))

        assert list(listing["unreadable"].values()) == ["file name too long"]

    def test_no_such_folder(self, tmp_path: Path) -> None:
        """A root that doesn't exist is an error."""
        with pytest.raises(FileNotFoundError, match="nowhere"):
            find(str(tmp_path / "nowhere"))


class TestRead:
    def test_a_text(self, tmp_path: Path) -> None:
        """A text comes with its size and its encoding."""
        (tmp_path / "a").write_text("naïve", encoding="utf-16")

        (document,) = read(str(tmp_path), ["a"])

        about = {"path": "a", "outcome": "profiled", "note": "", "bytes": 12, "encoding": "utf-16"}
        assert unpack(document["packed"]) == "naïve"
        assert {**document, "packed": ""} == {**about, "packed": ""}

    def test_each_file_has_its_outcome(self, tmp_path: Path) -> None:
        """What can't be read says why, and doesn't stop the others."""
        (tmp_path / "empty").write_bytes(b"")
        (tmp_path / "blank").write_bytes(b" \n\t\n")
        (tmp_path / "binary").write_bytes(bytes(100))
        (tmp_path / "huge").write_bytes(b"x" * 1001)
        (tmp_path / "limit").write_bytes(b"x" * 1000)
        (tmp_path / "folder").mkdir()
        (tmp_path / "circle").symlink_to("circle")
        os.mkfifo(tmp_path / "pipe")
        names = ["empty", "blank", "binary", "huge", "limit", "folder", "circle", "pipe", "vanished", "n" * 300]

        documents = read(str(tmp_path), names, max_bytes=1000)

        assert [document["path"] for document in documents] == names
        assert {each["path"]: (each["outcome"], each["note"], each["bytes"]) for each in documents} == {
            "empty": ("empty", "no text in it", 0),
            "blank": ("empty", "no text in it", 4),
            "binary": ("binary", "bytes that are no text", 100),
            "huge": ("huge", "over 1,000 bytes", 1001),
            "limit": ("profiled", "", 1000),
            "folder": ("unreadable", "is a directory", 0),
            "circle": ("unreadable", "too many levels of symbolic links", 0),
            "pipe": ("unreadable", "not a regular file", 0),
            "vanished": ("unreadable", "no such file or directory", 0),
            "n" * 300: ("unreadable", "file name too long", 0),
        }

    @pytest.mark.skipif(AS_ROOT, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tmp_path: Path) -> None:
        """A closed file is unreadable."""
        (tmp_path / "closed").touch(mode=0)

        (document,) = read(str(tmp_path), ["closed"])

        assert (document["outcome"], document["note"]) == ("unreadable", "permission denied")

    def test_a_huge_file_is_not_read_whole(self, tmp_path: Path) -> None:
        """Its size is known without its content."""
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(10**12)

        (document,) = read(str(tmp_path), ["sparse"])

        assert (document["outcome"], document["bytes"]) == ("huge", 10**12)

    def test_a_text_that_does_not_pack(self, tmp_path: Path) -> None:
        """A text within the limit that a message can't carry counts as huge."""
        draw = Random(1)
        (tmp_path / "noise").write_text("".join(chr(draw.randrange(0x4E00, 0x9FFF)) for _ in range(340_000)))

        (document,) = read(str(tmp_path), ["noise"])

        assert document["outcome"] == "huge"
        assert "packed" in document["note"]
        assert LARGEST_PACKED < 1024 * 1024


class TestPrintable:
    def test_any_bytes(self) -> None:
        """Whatever a name is made of, it can be written as UTF-8."""
        name = os.fsdecode(bytes(range(1, 256)).replace(b"/", b""))

        assert printable(name).encode()
