"""References in docstrings (``:class:`Name``` and the like) as links, where the site has a target for them."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|attr):`(~?)([\w.\s]+)`")
# Functions in a module of the same name, which hides them from the analysis.
HIDDEN = {
    "lightning_stable.certify": "lightning_stable.stability.certify.certify",
    "lightning_stable.certify_windows": "lightning_stable.stability.tube.certify_windows",
}


def link(text: str, prefix: str = "") -> str:
    """Return a text with its references as links; one that has no target stays code."""

    def replace(match: re.Match[str]) -> str:
        name = "".join(match[2].split())  # it may go on in the next line
        target, shown = name if "." in name else prefix + name, name.rpartition(".")[2] if match[1] else name
        return f'<autoref optional identifier="{HIDDEN.get(target, target)}"><code>{shown}</code></autoref>'

    return ROLE.sub(replace, text)


class Roles(Extension):
    """Makes the references of every docstring links as it is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Replace the references of one object; short names are looked up in its scope."""
        if obj.docstring is not None:
            scope = obj if obj.is_class or obj.parent is None else obj.parent
            # The section with code in it has a plural name.
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = link(text, f"{scope.path}.")
