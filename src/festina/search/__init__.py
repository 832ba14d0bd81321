"""Search for plans: genome, seeds, NSGA-II engine, evaluator, archive and front."""

from festina.search.archive import Archive
from festina.search.engine import search
from festina.search.evaluation import Evaluation
from festina.search.evaluator import Evaluator
from festina.search.front import Front, Point
from festina.search.genome import Genome
from festina.search.session import Job, learn
from festina.search.settings import ECAD_MUTATION, WORKING_MUTATION, Mutation, SearchSettings
from festina.search.workload import Workload

__all__ = [
    "ECAD_MUTATION",
    "WORKING_MUTATION",
    "Archive",
    "Evaluation",
    "Evaluator",
    "Front",
    "Genome",
    "Job",
    "Mutation",
    "Point",
    "SearchSettings",
    "Workload",
    "learn",
    "search",
]
