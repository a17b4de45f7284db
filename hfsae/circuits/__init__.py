"""Circuits: what made what, through several transcoders or SAEs.

Read `frozen` first: it holds a language model as it runs on one text, so that the rest is sums.
`attribution_graph` has the nodes and weights of a graph, its exactness, pruning and interventions.
`graph_files` writes it for the front ends that exist: circuit-tracer's and Neuronpedia's.
`graph_page` draws it as one page that opens offline, by graph.js, which the app uses too.
`effects` has effects on a metric over many texts, and circuits, of SAEs at any sites.
For one SAE and one text, summed over positions, there is `hfsae.attribution`.
"""

from .attribution_graph import Effect as Effect
from .attribution_graph import Graph as Graph
from .attribution_graph import Node as Node
from .attribution_graph import Pruned as Pruned
from .attribution_graph import check_shares as check_shares
from .attribution_graph import graph as graph
from .attribution_graph import influence as influence
from .attribution_graph import shares as shares
from .effects import Circuit as Circuit
from .effects import Effects as Effects
from .effects import Metric as Metric
from .effects import NodeEffect as NodeEffect
from .effects import effects as effects
from .effects import logit_difference as logit_difference
from .frozen import Frozen as Frozen
from .frozen import frozen as frozen
from .graph_files import check_slug as check_slug
from .graph_files import digest as digest
from .graph_files import graph_content as graph_content
from .graph_files import read_supernodes as read_supernodes
from .graph_files import save_graph as save_graph
from .graph_page import SCRIPT as SCRIPT
from .graph_page import STYLE as STYLE
from .graph_page import GraphFile as GraphFile
from .graph_page import drawing as drawing
from .graph_page import graph_page as graph_page
from .graph_page import read_graph as read_graph
from .graph_page import read_graphs as read_graphs
from .graph_page import short_page as short_page
