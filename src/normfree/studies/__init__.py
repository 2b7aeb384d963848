"""Studies: one recipe, what is varied in it, several seeds, and a table and a plot of what came out.

from normfree import studies

study = studies.load_study("batch_size", {"train.epochs": 5}, seeds=3)  # by name, or a YAML file
for planned in studies.plan(study):  # the runs and their cost
    print(planned.cell.name, planned.cost)
outcome = studies.run(study, "studies/five")  # normfree study batch_size --train.epochs 5 --seeds 3 --out studies/five
print((outcome.folder / "table.md").read_text())
"""

from .cells import Cell, cells, parse_part
from .cost import Cost, Planned, plan, total
from .listing import described
from .report import Report
from .results import Result, Results
from .search import Search, Tried, best_trial, load_search, run_search
from .start import Outcome, default_folder, run, write
from .study import Study, dump_study, list_studies, load_study, study_header, study_text
from .summary import Summary, summarize

__all__ = [
    "Cell",
    "Cost",
    "Outcome",
    "Planned",
    "Report",
    "Result",
    "Results",
    "Search",
    "Study",
    "Summary",
    "Tried",
    "best_trial",
    "cells",
    "default_folder",
    "described",
    "dump_study",
    "list_studies",
    "load_search",
    "load_study",
    "parse_part",
    "plan",
    "run",
    "run_search",
    "study_header",
    "study_text",
    "summarize",
    "total",
    "write",
]
