"""The version of the package; pyproject.toml reads the literal without importing anything."""

__version__ = "0.2.0"
