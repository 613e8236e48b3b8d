"""The update gate RNN."""

from lightning_stable.cells.base import MixingRNN


class UGRNN(MixingRNN):
    r"""The update gate RNN: a GRU without its reset gate.

    .. code-block:: text

        g  = sigmoid(W_ig x + b_ig + W_hg h + b_hg)
        c  = tanh(W_ic x + b_ic + W_hc h + b_hc)
        h' = g * h + (1 - g) * c

    Source: Collins, Sohl-Dickstein, Sussillo, *Capacity and Trainability in Recurrent Neural Networks* (ICLR 2017).
    Their forget bias is ``gate_bias``, here a part of the initial bias. Signature, layouts and names of the parameters
    are those of ``nn.GRU``; rows are stacked in the order g, c.

    Example:
        >>> output, h_n = UGRNN(8, 16, num_layers=2, batch_first=True)(torch.randn(4, 10, 8))
        >>> output.shape, h_n.shape
        (torch.Size([4, 10, 16]), torch.Size([2, 4, 16]))
    """
