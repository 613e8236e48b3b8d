"""The library in one page: certify a recurrent layer, project it, truncate it and measure what that loses.

python examples/certify_and_project.py        (two seconds; nothing is trained)
"""

import argparse

import torch
from torch import nn

from lightning_stable import certify, project_, truncate, truncation_profile
from lightning_stable.options import HelpFormatter

argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()  # --help says what this is

torch.manual_seed(0)
layer = nn.LSTM(input_size=8, hidden_size=32)
inputs = torch.rand(200, 4, 8) * 2 - 1  # time, batch, features; every |x| <= 1
with torch.no_grad():
    for parameter in layer.parameters():
        parameter.mul_(3)  # as large as training may make them

# A rate below 1 says that two runs on the same inputs, from any two states, come together.
print(certify(layer, input_bound=1.0))

# Move the weights no further than needed until the rate is 0.9 at most.
report = project_(layer, rate=0.9, input_bound=1.0)
print(report)

# Such a layer needs its last inputs only. This many are certified to leave an error of 0.001 on all inputs ...
certified = report.required_window(1e-3)
assert certified is not None

# ... and on these inputs so many are enough.
profile = truncation_profile(layer, inputs, max_window=32, input_bound=1.0)
measured = profile.required_window(1e-3)

# The layer as a feed-forward function of its last inputs: same weights, same outputs up to that error.
with torch.no_grad():
    error = (truncate(layer, certified)(inputs)[0] - layer(inputs)[0]).norm(dim=-1).max()
print(f"A window of {certified} inputs is certified, one of {measured} is measured. The first leaves {error:.0e}.")
assert error <= 1e-3
