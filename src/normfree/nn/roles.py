"""What a parameter is, declared by the module that owns it (or by one that contains that module)."""

import enum


class Role(enum.Enum):
    """Role of a parameter in the optimizer (table "Who gets what" in ``docs/facts.md``).

    A module declares roles in a class or instance attribute ``parameter_roles``: a dict from parameter name, dotted
    for parameters of its children, to role. The outermost declaration of a parameter wins, so that a head can say
    that its linear layer is the classifier.
    """

    WEIGHT = "weight"  # of a convolution or linear layer: decayed, clipped per unit
    CLASSIFIER = "classifier"  # weight of the last linear layer: decayed, not clipped
    GAIN = "gain"  # not decayed, clipped as one unit
    BIAS = "bias"  # not decayed, clipped as one unit
    SKIP_GAIN = "skip_gain"  # not decayed, clipped as one unit
