"""How the documentation is built: `make docs`, with warnings as errors."""

from __future__ import annotations

import functools
import re
from typing import Any

from sphinx.util import logging

from docs.rooms import aliases, imported, modules

project = "Mirage"
author = "the Mirage authors"
copyright = "the Mirage authors, Apache 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "docs.docstrings",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
html_theme = "furo"
html_title = "Mirage"
html_copy_source = False

autosummary_ignore_module_all = False
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_mock_imports = sorted(imported()[1])
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
    (r"py:class", r"(dict|tuple)\[.*"),  # how Sphinx splits a type that it could not read
]


def short(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Show the side bar's tree open at the page alone, modules by the last part of their names.

    Whole, on each of hundreds of pages, it would be most of the site. A heading that is a module's name
    breaks between words.
    """
    if "body" in context:
        breaks = functools.partial(re.sub, r"[._]", r"\g<0><wbr>")
        context["body"] = re.sub(r"(?<=<h1>)[\w.]+", lambda name: breaks(name[0]), context["body"])
    if "toctree" in context:
        whole = context["toctree"]

        def tree(**options: Any) -> str:
            return re.sub(r">(?:\w+\.)+(\w+)</a>", r">\1</a>", whole(**options | {"collapse": True}))

        context["toctree"] = tree


def beside(app: Any, page: str, source: list[str]) -> None:
    """Hand out a Markdown file of the repository as it is: MyST takes a link to one for a page of this site."""
    source[0] = re.sub(r"\]\((\.\./[^)]+\.md)\)", r"](path:\1)", source[0])


def complete(app: Any, environment: Any) -> None:
    """Warn of public modules without a page."""
    for name in sorted({f"api/{name}" for name in modules()} - environment.found_docs):
        logging.getLogger(__name__).warning("the reference has no page for %s", name)


def setup(app: Any) -> None:
    app.connect("source-read", beside)
    app.connect("env-check-consistency", complete)
    app.connect("html-page-context", short, priority=400)  # before the theme asks, at 500
