"""The version of the package; pyproject.toml reads the literal without importing anything."""

__version__ = "0.1.0"
