"""Docstrings for the site: Sphinx's roles become code, and an example is shown as one."""

import re

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # outside of a section
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`~?\.?([^`]+)`")


class Roles(griffe.Extension):
    """Runs on every object that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrite its docstring; code in double backticks is the same in Markdown."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = DOCTEST.sub(r"```python\n\g<0>\n```", text)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
