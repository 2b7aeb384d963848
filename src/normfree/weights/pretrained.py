"""Published weights: which there are, where, and how they reach a model."""

from ..models import registry
from ..models.body import ResidualNet


def create_model(name: str, *, pretrained: bool = False, **options) -> ResidualNet:
    """A model by name, perhaps with its published weights."""
    return registry.create_model(name, pretrained=pretrained, **options)
