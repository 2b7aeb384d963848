"""Signal Propagation Plots: a network's signal, and its faults (NF-ResNets, section 3).

``record(model, (8, 3, 224, 224))`` measures any network in one forward pass; its result is a table, a picture
(:meth:`SPP.plot`) and sentences (:meth:`SPP.diagnose`).
"""

from .concatenation import Concatenation
from .diagnose import diagnose
from .film import Film, plot_film, read_film, read_first
from .finding import Finding
from .frame import Frame
from .plot import plot
from .record import record
from .result import SPP
from .rows import Row
from .spectra import Spectrum, spectra
from .weight_scale import ComputedWeight
from .width import WidthCheck, width_check

__all__ = [
    "SPP",
    "ComputedWeight",
    "Concatenation",
    "Film",
    "Finding",
    "Frame",
    "Row",
    "Spectrum",
    "WidthCheck",
    "diagnose",
    "plot",
    "plot_film",
    "read_film",
    "read_first",
    "record",
    "spectra",
    "width_check",
]
