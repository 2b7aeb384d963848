"""Taking normalization out of other people's networks: to train them anew, or to go on from their weights.

``convert(model, example)`` reads the network with :mod:`torch.fx` and returns a new one and a list of what it did;
what it does not understand it refuses by name.
"""

from .change import Change
from .conversion import Conversion, convert, convert_model
from .layers import Rescale

__all__ = ["Change", "Conversion", "Rescale", "convert", "convert_model"]
