"""Where the memory of a program goes, how little it could need, and how far plans can take it."""

from tiny_backprop.analysis.report import Compressibility as Compressibility
from tiny_backprop.analysis.report import FrontierSummary as FrontierSummary
from tiny_backprop.analysis.report import GraphReport as GraphReport
from tiny_backprop.analysis.report import LiveValue as LiveValue
from tiny_backprop.analysis.report import LoopReport as LoopReport
from tiny_backprop.analysis.report import analyze_graph as analyze_graph
from tiny_backprop.analysis.report import loop_reports as loop_reports
from tiny_backprop.analysis.report import summarize_frontier as summarize_frontier
from tiny_backprop.liveness import frontier as frontier
from tiny_backprop.liveness import live_ranges as live_ranges
