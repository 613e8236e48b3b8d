"""The tasks of ``lightning-stable reproduce``: one YAML file each, in the form that ``reproduce.Task`` documents."""
