"""The papers behind a certificate, as BibTeX."""

from __future__ import annotations

from collections.abc import Iterable

_ENTRIES = {
    "miller2019stable": (
        "inproceedings",
        "Stable Recurrent Models",
        "Miller, John and Hardt, Moritz",
        {"booktitle": "International Conference on Learning Representations", "year": "2019"},
    ),
    "revay2020contracting": (
        "inproceedings",
        "Contracting Implicit Recurrent Neural Networks: Stable Models with Improved Trainability",
        "Revay, Max and Manchester, Ian R.",
        {"booktitle": "Learning for Dynamics and Control", "year": "2020"},
    ),
    "ando1973structure": (
        "article",
        "Structure of Operators with Numerical Radius One",
        "Ando, T.",
        {"journal": "Acta Scientiarum Mathematicarum", "volume": "34", "year": "1973"},
    ),
    "bonassi2021stability": (
        "article",
        "On the Stability Properties of Gated Recurrent Units Neural Networks",
        "Bonassi, Fabio and Farina, Marcello and Scattolini, Riccardo",
        {"journal": "Systems {\\&} Control Letters", "volume": "157", "year": "2021"},
    ),
    "terzi2021learning": (
        "article",
        "Learning Model Predictive Control with Long Short-Term Memory Networks",
        "Terzi, Enrico and Bonassi, Fabio and Farina, Marcello and Scattolini, Riccardo",
        {"journal": "International Journal of Robust and Nonlinear Control", "volume": "31", "year": "2021"},
    ),
    "collins2017capacity": (
        "inproceedings",
        "Capacity and Trainability in Recurrent Neural Networks",
        "Collins, Jasmine and Sohl-Dickstein, Jascha and Sussillo, David",
        {"booktitle": "International Conference on Learning Representations", "year": "2017"},
    ),
    "jaeger2007optimization": (
        "article",
        "Optimization and Applications of Echo State Networks with Leaky-Integrator Neurons",
        r"Jaeger, Herbert and Luko{\v{s}}evi{\v{c}}ius, Mantas and Popovici, Dan and Siewert, Udo",
        {"journal": "Neural Networks", "volume": "20", "year": "2007"},
    ),
    "feng2024were": (
        "misc",
        "Were {RNNs} All We Needed?",
        "Feng, Leo and Tung, Frederick and Ahmed, Mohamed Osama and Bengio, Yoshua and Hajimirsadeghi, Hossein",
        {"eprint": "2410.01201", "archivePrefix": "arXiv", "year": "2024"},
    ),
}
_OF_CELL = {
    "gru": "bonassi2021stability",
    "lstm": "terzi2021learning",
    "ugrnn": "collins2017capacity",
    "intersection": "collins2017capacity",
    "leaky": "jaeger2007optimization",
    "mingru": "feng2024were",
    "minlstm": "feng2024were",
}
_OF_NORM = {"full": ("revay2020contracting", "ando1973structure")}


def bibtex(certificates: Iterable[tuple[str, str]]) -> str:
    """Return the entries of the papers that certificates rest on, each once.

    Args:
        certificates: Cell and norm of each certificate; what is not known by name, a user's own cell, adds nothing.
    """
    keys = ["miller2019stable"]
    for cell, norm in certificates:
        keys += [*_OF_NORM.get(norm, ()), *([_OF_CELL[cell]] if cell in _OF_CELL else [])]
    return "\n\n".join(_entry(key) for key in dict.fromkeys(keys))


def _entry(key: str) -> str:
    kind, title, authors, more = _ENTRIES[key]
    values = {"title": f"{{{title}}}", "author": authors, **more}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in values.items())
    return f"@{kind}{{{key},\n{lines}\n}}"
