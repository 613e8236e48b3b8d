"""The commands of ``lightning-stable``: one file each, with the options, the parser and what is run.

Nothing here imports torch before a command runs, so that ``--help`` comes at once.
"""
