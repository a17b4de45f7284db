"""The pages of the app: widgets, and how they show an address. No computing."""

from collections.abc import Callable

from ...io.units import PATCH
from ..subject import Subject
from .feature import FeaturePage as FeaturePage
from .health import AboutPage as AboutPage
from .health import ComparePage as ComparePage
from .health import HealthPage as HealthPage
from .inspect import InspectPage as InspectPage
from .inspect import PicturePage as PicturePage
from .page import Page
from .search import DiffPage as DiffPage
from .search import LabelsPage as LabelsPage
from .search import MapPage as MapPage
from .search import SearchPage as SearchPage
from .steer import SteerPage as SteerPage
from .why import GraphPage as GraphPage
from .why import WhyPage as WhyPage

ALL: dict[type[Page], Callable[[Subject], bool]] = {
    InspectPage: lambda subject: subject.runs_text,
    PicturePage: lambda subject: subject.unit == PATCH,
    FeaturePage: lambda subject: True,
    SearchPage: lambda subject: True,
    MapPage: lambda subject: True,
    LabelsPage: lambda subject: bool(subject.columns),
    DiffPage: lambda subject: bool(subject.diff),
    SteerPage: lambda subject: subject.runs_text,
    WhyPage: lambda subject: subject.runs_text,
    GraphPage: lambda subject: bool(subject.graphs or subject.transcoders),
    HealthPage: lambda subject: True,
    ComparePage: lambda subject: True,
    AboutPage: lambda subject: True,
}
"""In the order of their tabs, with the SAEs that each fits."""
