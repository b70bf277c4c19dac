"""
The site's paths: the same as the repository's.

A link from one file to another so works alike in the site, on the web pages of a repository, and in a checkout.
"""  # noqa: INP001  # MkDocs loads it by its path

from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

BESIDES_DOCS: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Move what MkDocs found in docs/ below docs/, and put the files beside that folder above it."""
    root = Path(config.config_file_path).parent
    for found in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(found)
        if not found.src_uri.endswith(".py"):
            files.append(File.generated(config, f"docs/{found.src_uri}", abs_src_path=str(found.abs_src_path)))
    for name in BESIDES_DOCS:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files
