"""The paper's tasks: train the pairs of a task, compare them with each other and with published figures."""
