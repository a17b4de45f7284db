"""The pages of the app: widgets, and how they show an address. No computing."""

from .feature import FeaturePage as FeaturePage
from .health import AboutPage as AboutPage
from .health import ComparePage as ComparePage
from .health import HealthPage as HealthPage
from .inspect import InspectPage as InspectPage
from .inspect import PicturePage as PicturePage
from .search import DiffPage as DiffPage
from .search import LabelsPage as LabelsPage
from .search import MapPage as MapPage
from .search import SearchPage as SearchPage
from .steer import SteerPage as SteerPage
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
