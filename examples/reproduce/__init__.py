"""The tasks of ``lightning-stable reproduce``, one YAML file each: what is in it, ``reproduce.Task`` says.

The folder installs as ``lightning_stable.reproduce.tasks``.
"""
