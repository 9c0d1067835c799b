"""How the documentation is built: `make docs`, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from rooms import aliases, import_all

import_all()

project = "Mirage"
author = "the Mirage authors"
copyright = "the Mirage authors, Apache 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "docstrings",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
html_theme = "furo"
html_title = "Mirage"
html_copy_source = False

autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_mock_imports = ["breaching", "flwr", "pfl"]  # peers that are timed in an environment of their own
autodoc_type_aliases = {name: name for name in aliases()}
maximum_signature_line_length = 88
suppress_warnings = ["autodoc.mocked_object"]

nitpicky = True
nitpick_ignore = [("py:class", name) for name in autodoc_type_aliases]
nitpick_ignore_regex = [
    # other people's types have no page here, and the build asks no network
    (
        r"py:class",
        r"(argparse|asyncio|collections|cryptography|flwr|_?io|matplotlib|nn|np|numpy|omegaconf|pathlib|pfl|torch)\..*",
    ),
    (r"py:class", r"TypeAliasForwardRef|dict\[.*"),  # how Sphinx splits what it keeps of an alias
]


def collapsed(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Show the side bar's tree open at the page alone: whole, on each of hundreds of pages, it is most of the site."""
    if "toctree" in context:
        whole = context["toctree"]
        context["toctree"] = lambda **options: whole(**options | {"collapse": True})


def setup(app: Any) -> None:
    app.connect("html-page-context", collapsed, priority=400)  # before the theme asks, at 500
