"""The pages of the app, one per file: widgets, and how they show an address. No computing."""

from .about import AboutPage as AboutPage
from .compare import ComparePage as ComparePage
from .diff import DiffPage as DiffPage
from .feature import FeaturePage as FeaturePage
from .health import HealthPage as HealthPage
from .inspect import InspectPage as InspectPage
from .labels import LabelsPage as LabelsPage
from .map import MapPage as MapPage
from .picture import PicturePage as PicturePage
from .search import SearchPage as SearchPage
from .steer import SteerPage as SteerPage
from .tour import Tour as Tour
from .why import WhyPage as WhyPage

ALL = (
    InspectPage,
    PicturePage,
    FeaturePage,
    SearchPage,
    MapPage,
    LabelsPage,
    DiffPage,
    SteerPage,
    WhyPage,
    HealthPage,
    ComparePage,
    AboutPage,
)
"""In the order of their tabs; an SAE has those that fit it."""
